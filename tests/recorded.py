"""Artifacts that are there by their records alone: a spec and a manifest, as if a step had made them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import Spec

HOUR = 3600.0


def attempt(minute: int = 0, minutes: float | None = 60, end: str = "published", **more: Any) -> dict[str, Any]:
    """An attempt that began so many minutes after ten; one without a duration was killed."""
    began, hours = f"2026-01-01T{10 + minute // 60}:{minute % 60:02}:00+00:00", None
    if minutes is not None:
        last = minute + int(minutes)
        hours = {"ended": f"2026-01-01T{10 + last // 60}:{last % 60:02}:00+00:00"}
    return {"started": began, "host": "node", **(hours or {}), "end": end} | more


def record(
    spec: Spec,
    facts: Mapping[str, Any] | None = None,
    seconds: float = HOUR,
    attempts: Sequence[Mapping[str, Any]] = (),
    outputs: Mapping[str, int] | None = None,
    **more: Any,
) -> Spec:
    """Publish a spec and a manifest in the study of the current folder; `outputs` has the bytes of its files."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    (spec.folder / "spec.json").write_text(spec.text)
    manifest = {
        "name": spec.name,
        "facts": dict(facts or {}),
        "outputs": {name: {"sha256": "0" * 64, "bytes": count} for name, count in (outputs or {}).items()},
        "seconds": seconds,
        "threads": 2,
        "attempts": list(attempts) or [attempt()],
    }
    (spec.folder / "manifest.json").write_text(json.dumps(manifest | more))
    return spec


def record_attempts(spec: Spec, *attempts: Mapping[str, Any]) -> Path:
    """Leave the state of an artifact that is not finished; return its state folder."""
    spec.state.mkdir(parents=True, exist_ok=True)
    (spec.state / "attempts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in attempts))
    return spec.state
