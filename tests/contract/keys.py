"""The keys of the studies that come along, and what moved them.

    python tests/contract/keys.py

writes `keys/*.txt` anew: name and spec of every artifact of `local/config.yaml` and `config.yaml`. It prints which
leaves of which specs moved, which models must be trained again, and the line that CHANGELOG.md then needs.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.digests import digest
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_name("keys")
CONFIGS = {"embedded": ROOT / "local" / "config.yaml", "paper": ROOT / "config.yaml"}


def recorded(name: str) -> dict[str, Spec]:
    """The specs that were promised, by the artifact's name."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {artifact: Spec.parse(text) for artifact, text in (line.split(" ", 1) for line in lines)}


def planned(name: str) -> dict[str, Spec]:
    """The specs that today's code plans, by the artifact's name."""
    config = CONFIGS[name]
    study = Study(read_config(config), config.parent, resolve=lambda *_: None)  # The released checkpoints at `main`.
    return {spec.name: spec for spec in study.specs.values()}


def as_text(specs: Mapping[str, Spec]) -> str:
    """A line for each artifact, sorted."""
    return "".join(sorted(f"{name} {spec.text}\n" for name, spec in specs.items()))


def keys_digest() -> str:
    """What CHANGELOG.md quotes: it changes whenever a promised key does."""
    return digest("".join((FOLDER / f"{name}.txt").read_text(encoding="utf-8") for name in CONFIGS))[:12]


def moved(before: Mapping[str, Spec], after: Mapping[str, Spec]) -> list[str]:
    """Why specs differ: a line for each leaf that moved by itself, and for each artifact that came or went.

    An artifact that moved only because an input did is not named: its cause is.
    """
    new_names = {name: name for name in before.keys() & after.keys()}
    left = {name: spec for name, spec in before.items() if name not in after}
    findings = []
    for spec in _inputs_first(after):
        if spec.name in before:
            continue
        matches = [old for old in left.values() if (old.kind, old.label) == (spec.kind, spec.label)]
        if not matches:
            findings.append(f"{spec.name} is new")
            continue
        differences = {old.name: sorted(_differences(old, spec, new_names)) for old in matches}
        nearest = min(differences, key=lambda name: (len(differences[name]), name))
        del left[nearest]
        new_names[nearest] = spec.name
        findings += [f"{nearest}: {difference}" for difference in differences[nearest]]
    return findings + [f"{name} is no longer planned" for name in sorted(left)]


def _inputs_first(specs: Mapping[str, Spec]) -> Iterator[Spec]:
    seen: set[str] = set()

    def visit(name: str) -> Iterator[Spec]:
        if name not in seen:
            seen.add(name)
            for inputs in specs[name].inputs.values():
                for inner in inputs:
                    yield from visit(inner)
            yield specs[name]

    for name in sorted(specs):
        yield from visit(name)


def _differences(before: Spec, after: Spec, new_names: Mapping[str, str]) -> Iterator[str]:
    """The leaves of two specs that differ, with inputs that are known to have moved taken for the same."""
    old, new = _leaves(json.loads(before.text), new_names), _leaves(json.loads(after.text), {})
    for leaf in sorted(old.keys() | new.keys()):
        if old.get(leaf) != new.get(leaf):
            yield f"{leaf} was {json.dumps(old.get(leaf))}, is {json.dumps(new.get(leaf))}"


def _leaves(value: object, new_names: Mapping[str, str], path: str = "") -> dict[str, object]:
    items: Iterable[tuple[object, object]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: new_names.get(value, value) if isinstance(value, str) else value}
    found = {}
    for name, inner in items:
        found |= _leaves(inner, new_names, f"{path}.{name}" if path else str(name))
    return found


def main() -> None:
    """Write the keys of today, and say what moved."""
    for name in CONFIGS:
        before, after = recorded(name), planned(name)
        for finding in moved(before, after):
            sys.stdout.write(f"{name}: {finding}\n")
        models = sorted(set(after) - set(before))
        for model in (model for model in models if model.startswith("models/")):
            sys.stdout.write(f"{name}: {model} must be trained\n")
        (FOLDER / f"{name}.txt").write_text(as_text(after), encoding="utf-8")
    sys.stdout.write(f"CHANGELOG.md needs a line: Keys {keys_digest()}: why they moved, and what must be made again.\n")


if __name__ == "__main__":
    main()
