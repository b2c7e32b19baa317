"""Which artifacts an audit looks at: all that are there, or those that a user names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import KEY_DIGITS, KINDS, Artifact, published_folders
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What reading a damaged record or file raises, besides `UserError`."""


def open_artifacts() -> tuple[list[Artifact], dict[str, str]]:
    """The artifacts of the current study that can be opened, sorted by name; what is wrong with the others, by name."""
    artifacts, problems = [], {}
    for folder in published_folders(Path()):
        name = f"{folder.parent.name}/{folder.name}"
        try:
            artifacts.append(Artifact.open(name))
        except (UserError, *DAMAGE) as error:
            problems[name] = f"{folder} cannot be opened ({error}): colbert-zero verify says more"
    return sorted(artifacts, key=lambda artifact: artifact.name), problems


def select(text: str, artifacts: Sequence[Artifact], problems: Mapping[str, str]) -> Artifact:
    """The artifact that `text` names.

    Args:
        text: A key or the beginning of one, a name `KIND/LABEL-KEY`, or a cell of the table, `ROW/COLLECTION`, which
            stands for its measures.
        artifacts: The artifacts to choose from.
        problems: What is wrong with those that cannot be opened, by name.

    Raises:
        UserError: There is no such artifact, or there are several, or it cannot be opened.
    """
    names = [*names_of(artifacts), *problems]
    found = [name for name in names if name == text.removeprefix("results/").rstrip("/")]
    if not found and "/" not in text and text:
        found = [name for name in names if name[-KEY_DIGITS:].startswith(text)]
    if len(found) > 1:
        raise UserError(f"{text} begins the keys of {len(found)} artifacts: {', '.join(found)}")
    name = found[0] if found else _cell(text, artifacts)
    for artifact in artifacts:
        if artifact.name == name:
            return artifact
    if name is not None:
        if name in problems:
            raise UserError(problems[name])
        raise UserError(f"{text} is {name}, which has not been made yet")
    raise UserError(
        f"{text} is no artifact of this study: give a key, a name (measures/dev-0123456789ab), or a row and a "
        "collection of its table (ROW/COLLECTION)"
    )


def _cell(text: str, artifacts: Iterable[Artifact]) -> str | None:
    """The name of the measures of a cell `ROW/COLLECTION` of the table; None if the table has no such cell.

    The table is the report's. If there are several reports, or none, it is the one that today's config plans.
    """
    row, _, collection = text.rpartition("/")
    reports = [artifact.spec for artifact in artifacts if artifact.spec.kind == "reports"]
    if len(reports) != 1:
        if not Path(CONFIG_FILE).is_file():
            return None
        reports = [Study(read_config(Path(CONFIG_FILE)), Path(), remember=False).report]
    names = reports[0].inputs.get(row, ())
    return next((name for name in names if name[: -KEY_DIGITS - 1] == f"measures/{collection}"), None)


def damage_text(error: Exception) -> str:
    """What to tell of an error while reading an artifact: a `UserError`'s message, or that something is damaged."""
    if isinstance(error, UserError):
        return str(error)
    return f"its record or a file is damaged ({type(error).__name__}: {error}): colbert-zero verify says more"


def names_of(artifacts: Iterable[Artifact]) -> list[str]:
    """The names of artifacts."""
    return [artifact.name for artifact in artifacts]


def count_by_kind(names: Iterable[str]) -> str:
    """How many artifacts there are of each kind: `runs 4, measures 4`."""
    counts = Counter(name.partition("/")[0] for name in names)
    order = sorted(counts, key=lambda kind: (KINDS.index(kind) if kind in KINDS else len(KINDS), kind))
    return ", ".join(f"{kind} {counts[kind]}" for kind in order)


def seconds_of(artifact: Artifact) -> float:
    """How long it took to make an artifact; of a training, all attempts together."""
    return max(_number(artifact.manifest.get("seconds")), _number(artifact.facts.get("seconds")))


def gpu_hours_of(artifact: Artifact) -> float:
    """The GPU-hours that an artifact took: 0 if it was made without a GPU."""
    if gpu_of(artifact.manifest) is None:
        return 0.0
    return max(1.0, _number(artifact.facts.get("processes"))) * seconds_of(artifact) / 3600


def gpu_of(manifest: Mapping[str, Any]) -> str | None:
    """The GPU model that an artifact was made on, None without one."""
    device = manifest["facts"].get("device")
    return str(device) if device not in (None, "cpu") else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def format_cost(artifacts: Iterable[Artifact]) -> str:
    """What making artifacts took, as text: `1.5 h, 4.0 GPU-hours`."""
    chosen = list(artifacts)
    seconds, gpu_hours = sum(map(seconds_of, chosen)), sum(map(gpu_hours_of, chosen))
    text = f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
    return f"{text}, {gpu_hours:.1f} GPU-hours"


def with_consumers(names: Iterable[str], artifacts: Iterable[Artifact]) -> set[str]:
    """These names, and those of all artifacts that are made from them, directly or not."""
    consumers: dict[str, list[str]] = {}
    for artifact in artifacts:
        for name in artifact.spec.input_names:
            consumers.setdefault(name, []).append(artifact.name)
    reached: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += consumers.get(name, [])
    return reached
