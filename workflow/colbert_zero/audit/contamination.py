"""Show which texts of the test stand in the training rows: counts for each recipe and collection.

colbert-zero contamination --directory local [--json]

The counts come from the artifacts `contamination/*`, which a study with `audit: true` makes, and `find_contamination`
explains; of any study, `snakemake audit --config audit=True` makes them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import SPEC_FILE, Artifact, artifact_folder
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.study import Study
from colbert_zero.report.columns import counted
from colbert_zero.report.overlaps import EXPLANATION, MATCHES, PARTS, by_sources, collection_name, overlaps


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(options: argparse.Namespace) -> int:
    """Write, for each recipe and collection, how many judged texts are in its training rows; return 0.

    Raises:
        UserError: It was not looked for yet.
    """
    # Whether or not the study ends with an audit: the names are the same.
    study = Study(read_config(Path(CONFIG_FILE), {"audit": True}), Path(), remember=False)
    sources = {row: [spec.name for spec in specs] for row, specs in study.contamination.items()}
    missing = [
        name for names in sources.values() for name in names if not (artifact_folder(name) / SPEC_FILE).is_file()
    ]
    if missing:
        raise UserError(f"{missing[0]} is not there: run snakemake audit --config audit=True")
    tables = [
        {
            "recipes": recipes,
            "sources": artifacts,
            "collections": {
                name: {part: asdict(overlap) for part, overlap in parts.items()}
                for name, parts in overlaps([Artifact.open(artifact) for artifact in artifacts]).items()
            },
        }
        for recipes, artifacts in by_sources(sources)
    ]
    if options.json:
        sys.stdout.write(json.dumps(tables, indent=1, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(map(_as_text, tables)) + f"\n{EXPLANATION}\n")
    return 0


def _as_text(table: Mapping[str, Any]) -> str:
    """The table of the recipes that train on the same sources, for a terminal."""
    header = ["collection"]
    for part in PARTS.values():
        header += [part, "exact", "13-gram"]
    lines = [header]
    for name, parts in table["collections"].items():
        line = [collection_name(name)]
        for part in PARTS:
            counts = parts[part]
            line += [str(counts["judged"]), *(_share(counts[match], counts["judged"]) for match in MATCHES)]
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = "".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        + "\n"
        for line in lines
    )
    count = len(table["sources"])
    return one_line(f"{', '.join(table['recipes'])} ({counted(count, 'source')})") + "\n" + text


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.1f} %)" if of else "0"
