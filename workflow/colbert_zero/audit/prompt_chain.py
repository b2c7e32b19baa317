"""Where a row's prompts stand, from its config or its model to its indexes, and whether they are the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from colbert_zero.graph.artifact import KEY_DIGITS, MANIFEST_FILE, Artifact, Spec
from colbert_zero.graph.console import UserError
from colbert_zero.graph.saved_encoding import CONFIG_FILE as SAVED_FILE
from colbert_zero.graph.saved_encoding import read_saved_encoding, read_trained_encoding


class Prompts(NamedTuple):
    """The texts that are put before every query and every document."""

    query: str
    document: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Prompts:
        """The prompts among a stage's, an encoder's or an index's settings."""
        return cls(settings["query_prompt"], settings["document_prompt"])


class Verdict(StrEnum):
    """How the prompts at one place relate to those at the place that they come from."""

    FIRST = "begins"
    EQUAL = "equal"
    MEANT = "differs, as the config says"
    DIFFERS = "differs"
    UNKNOWN = "not made yet"


@dataclass(frozen=True)
class Place:
    """A place where prompts stand.

    Attributes:
        where: What it is, in words.
        prompts: What stands there; None where it is not made yet.
        verdict: How they relate to those at the place that they come from.
        note: What else there is to say, such as what makes a difference meant.
        artifact: The artifact that holds them, if one does.
    """

    where: str
    prompts: Prompts | None
    verdict: Verdict
    note: str = ""
    artifact: str | None = None


NO_PROMPTS = {"query_prompt": "", "document_prompt": ""}
EVALUATED_WITH = "evaluate_with gives it other prompts than the last stage's"
OVERRIDDEN = "override gives it other prompts than the model was saved with"


class Configured(NamedTuple):
    """What a config says of the prompts of one stage.

    Attributes:
        where: The place in the config.
        prompts: The prompts.
        miners: The prompts of its miners, None for a miner without any, in the order in which they are named.
    """

    where: str
    prompts: Prompts
    miners: Sequence[Prompts | None]


def trained_model(stage: Spec, spec_of: Mapping[str, Spec]) -> Spec:
    """The model of a stage; of a selection the first candidate, which has the prompts and lengths of all."""
    return spec_of[stage.inputs["models"][0][-KEY_DIGITS:]] if stage.kind == "selections" else stage


def recipe_places(
    stages: Sequence[Spec],
    indexes: Iterable[Spec],
    spec_of: Mapping[str, Spec],
    configured: Sequence[Configured] | None = None,
) -> Iterator[Place]:
    """Follow the prompts of a recipe through its stages to its indexes.

    Args:
        stages: The specs of its models.
        indexes: The specs of the indexes of its last model.
        spec_of: The specs of what they are made from, by key.
        configured: What the config says of each stage; by default the specs alone are looked at.
    """
    before: Prompts | None = None
    for number, stage in enumerate(stages):
        spec = trained_model(stage, spec_of)
        own = Prompts.of(spec.settings)
        name = f"stage {spec.label}"
        if configured is not None:
            where, meant, miners = configured[number]
            yield Place(where, meant, *_after_stage(before, meant))
            yield Place(f"{name}: spec", own, _compare(own, meant), artifact=spec.name)
        else:
            miners = []
            yield Place(f"{name}: spec", own, *_after_stage(before, own), artifact=spec.name)
        yield from _mined(name, spec, spec_of, miners if configured is not None else None)
        yield _saved(f"{name}: saved model", spec, own)
        before = own
    for index in indexes:
        yield from _index(index, before)


def baseline_places(model: Spec, indexes: Iterable[Spec]) -> Iterator[Place]:
    """Follow the prompts of a model that is not trained here, from its folder to its indexes.

    Args:
        model: The spec of the model.
        indexes: The specs of its indexes.
    """
    where, made = "saved model", (model.folder / MANIFEST_FILE).is_file()
    saved: Mapping[str, Any] = read_trained_encoding(Artifact.open(model.name).verified_folder()) if made else {}
    said = [side for side in Prompts._fields if f"{side}_prompt" in saved]
    if not made:
        yield Place(where, None, Verdict.UNKNOWN, artifact=model.name)
    elif not said:
        yield Place(where, None, Verdict.FIRST, "it does not say its prompts", model.name)
    else:
        note = "" if len(said) == len(Prompts._fields) else f"it says that of its {said[0]} alone"
        yield Place(where, Prompts.of({**NO_PROMPTS, **saved}), Verdict.FIRST, note, model.name)
    for index in indexes:
        # On a side of which the model says nothing, nothing that is given is other.
        own = {name: text for name, text in index.settings["encoding"].items() if name in NO_PROMPTS}
        yield from _index(index, Prompts.of({**NO_PROMPTS, **own, **saved}) if said else None, OVERRIDDEN)


def _after_stage(before: Prompts | None, own: Prompts) -> tuple[Verdict, str]:
    """How a stage's prompts relate to those of the stage before it; each stage has what the config gives it."""
    if before is None:
        return Verdict.FIRST, ""
    return (Verdict.EQUAL, "") if own == before else (Verdict.MEANT, "other prompts than the stage before it")


def _compare(own: Prompts | None, origin: Prompts) -> Verdict:
    if own is None:
        return Verdict.UNKNOWN
    return Verdict.EQUAL if own == origin else Verdict.DIFFERS


def _mined(
    stage: str, model: Spec, spec_of: Mapping[str, Spec], configured: Sequence[Prompts | None] | None
) -> Iterator[Place]:
    """Yield the prompts of the encoders that mined a stage's candidates; they are other models with prompts of theirs.

    A miner is the same for all sources of a stage, which are many: the first one stands for it.
    """
    seen: set[tuple[int, Prompts]] = set()
    for name in model.inputs["rows"]:
        rows = spec_of[name[-KEY_DIGITS:]]
        for member in rows.inputs.get("members", ())[:1]:  # Those of an ensemble score the same candidates.
            rows = spec_of[member[-KEY_DIGITS:]]
        candidates = rows.inputs.get("candidates", ())
        for number, candidate in enumerate(candidates):
            encoder = spec_of[candidate[-KEY_DIGITS:]].settings.get("encoder", {})
            if "query_prompt" not in encoder:
                continue
            own = Prompts.of(encoder)
            if (number, own) in seen:
                continue
            seen.add((number, own))
            origin = own if configured is None else configured[number]
            verdict = Verdict.FIRST if configured is None else _compare(own, origin) if origin else Verdict.DIFFERS
            yield Place(f"{stage}: miner", own, verdict, "another model, with prompts of its own", candidate)


def _saved(where: str, spec: Spec, origin: Prompts) -> Place:
    """What a model was saved with."""
    if not (spec.folder / MANIFEST_FILE).is_file():
        return Place(where, None, Verdict.UNKNOWN, artifact=spec.name)
    model = Artifact.open(spec.name)
    if SAVED_FILE not in model.files():
        return Place(where, None, Verdict.DIFFERS, f"it has no {SAVED_FILE}", spec.name)
    saved = read_saved_encoding(model.file(SAVED_FILE).parent)
    if saved is None:
        return Place(where, None, Verdict.DIFFERS, f"its {SAVED_FILE} is of no late-interaction model", spec.name)
    own = Prompts.of(saved)
    return Place(where, own, _compare(own, origin), artifact=spec.name)


def _index(spec: Spec, trained: Prompts | None, meant: str = EVALUATED_WITH) -> Iterator[Place]:
    """Yield the prompts of an index: those of its spec, and those that its texts were encoded with.

    Where other prompts than those that the model was trained with are meant, `meant` says what says so.
    """
    encoding = spec.settings["encoding"]
    planned = Prompts.of(encoding) if {"query_prompt", "document_prompt"} <= encoding.keys() else None
    name = f"index of {spec.label}"
    if planned is not None:
        verdict, note = Verdict.FIRST, ""
        if trained is not None:
            verdict = _compare(planned, trained)
            sides = [side for side in Prompts._fields if getattr(planned, side) != getattr(trained, side)]
            if sides and {f"{side}_prompt" for side in sides} <= set(spec.settings.get("changed", ())):
                verdict, note = Verdict.MEANT, meant
        yield Place(f"{name}: spec", planned, verdict, note, spec.name)
    if not (spec.folder / MANIFEST_FILE).is_file():
        yield Place(f"{name}: as encoded", None, Verdict.UNKNOWN, artifact=spec.name)
        return
    facts = Artifact.open(spec.name).facts
    try:
        own = Prompts.of(facts["encoding"])
    except (KeyError, TypeError):
        raise UserError(f"the manifest of {spec.name} does not say what it was encoded with") from None
    origin = planned or trained
    yield Place(f"{name}: as encoded", own, _compare(own, origin) if origin else Verdict.FIRST, artifact=spec.name)


def status(verdicts: Iterable[Verdict]) -> int:
    """1 if any differs where nothing says that it is meant, 2 if any cannot be told, 0 else."""
    known = set(verdicts)
    return 1 if Verdict.DIFFERS in known else 2 if Verdict.UNKNOWN in known else 0
