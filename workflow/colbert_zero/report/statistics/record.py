"""`statistics.json`: everything that is known of the differences, for programs. docs/statistics.md has its fields."""

from __future__ import annotations

import json
from typing import Any

from colbert_zero.report.statistics.comparison import Comparison, Statistics
from colbert_zero.report.statistics.resampling import FLIPS, RESAMPLES
from colbert_zero.report.statistics.significance import ALPHA, CONFIDENCE, POWER

STATISTICS_FILE = "statistics.json"
DIGITS = 10
"""Significant digits of a number: the last bits of some depend on the processor."""


def record(statistics: Statistics, study: str, measure: str, seed: int) -> str:
    """The text of the file."""
    pairs = statistics.pairs
    value = {
        "study": study,
        "measure": measure,
        "seed": seed,
        "reference": statistics.reference,
        "seeds": statistics.seeds,
        "columns": statistics.columns,
        "level": ALPHA,
        "power": POWER,
        "confidence": CONFIDENCE,
        "draws": {"signs": FLIPS, "resamples": RESAMPLES, "orders": pairs.draws},
        "comparisons": [_comparison(comparison) for comparison in statistics.comparisons.values()],
        "every_order": pairs.every_order,
        "pairs": [
            {"rows": [row, other], "difference": float(pairs.means[i] - pairs.means[j]), "p": float(pairs.p[i, j])}
            for i, row in enumerate(pairs.rows)
            for j, other in enumerate(pairs.rows)
            if i < j
        ],
    }
    return json.dumps(_rounded(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _comparison(comparison: Comparison) -> dict[str, Any]:
    spread = comparison.spread
    wins, ties, losses = comparison.signs
    return {
        "row": comparison.row,
        "column": comparison.column,
        "difference": spread.mean,
        "interval": list(comparison.interval),
        "p": comparison.p,
        "p_holm": comparison.p_holm,
        "p_max_t": comparison.p_max_t,
        "p_corrected": comparison.p_corrected,
        "p_over_columns": comparison.p_over_columns,
        "every_sign": comparison.every_sign,
        "verdict": comparison.verdict,
        "d_z": spread.effect,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "detectable": spread.detectable,
        "t": spread.t,
        "t_degrees": spread.degrees,
        "t_p": spread.p,
        "t_interval": spread.interval,
    }


def _rounded(value: Any) -> Any:
    """A JSON value, its numbers with `DIGITS` digits."""
    match value:
        case dict():
            return {name: _rounded(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_rounded(inner) for inner in value]
        case float():
            return float(f"{value:.{DIGITS}g}")
    return value
