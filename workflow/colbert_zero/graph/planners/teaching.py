"""Plan teacher scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.mining import MiningPlanner
from colbert_zero.graph.planners.relations import check_documents, check_members


class TeacherPlanner:
    """Plans the entries of the section `teachers`, each when something needs it."""

    def __init__(self, draft: Draft, bases: BasePlanner, mining: MiningPlanner) -> None:
        """Plan for `draft`; teachers score the candidates of `mining`, some of them with models of `bases`."""
        self._draft, self._bases, self._mining = draft, bases, mining

    def scores(self, name: str, shards: Spec, where: str) -> Spec:
        """A teacher's scores for the queries of a source's shards.

        Raises:
            UserError: There is no such teacher, its miners cannot give so many documents, or it is an ensemble of what
                cannot be averaged; `where` is the place in the config that names it.
        """
        teacher = self._draft.entry("teachers", name, where)
        kind = only_key(teacher, (*KINDS, ENSEMBLE), f"teachers.{name}", OPTIONS)
        if kind == ENSEMBLE:
            return self._ensemble(name, teacher[ENSEMBLE], shards)
        check_documents(teacher, self._mining.entries(teacher["miners"], f"teachers.{name}"), f"teachers.{name}")
        candidates = self._mining.candidates(teacher["miners"], shards, f"teachers.{name}")
        corpus = self._mining.corpus(teacher["miners"], f"teachers.{name}")
        texts: Texts = {"shards": [shards], "candidates": candidates, **{role: [spec] for role, spec in corpus.items()}}
        return KINDS[kind](self._draft, self._bases, name, teacher, texts)

    def _ensemble(self, name: str, ensemble: Config, shards: Spec) -> Spec:
        """The mean of other teachers' scores. Members are sorted by name, so that their order decides nothing."""
        where = f"teachers.{name}"
        members = {member: self._draft.entry("teachers", member, where) for member in ensemble["members"]}
        check_members(name, members, ensemble["weights"])
        planned: dict[str, tuple[str, Spec]] = {}
        for member in members:
            scores = self.scores(member, shards, where)
            same, _ = planned.setdefault(scores.name, (member, scores))
            if same != member:
                raise UserError(f"{where}: members {same} and {member} are the same; name one of them")
        sorted_members = [planned[artifact] for artifact in sorted(planned)]
        specs = [scores for _, scores in sorted_members]
        settings = {"documents": specs[0].settings["documents"]}
        weights = [ensemble["weights"].get(member, 1) for member, _ in sorted_members]
        if len({*weights}) > 1:  # Equal weights decide nothing, whatever they are.
            settings["weights"] = weights
        return self._draft.add("scores", f"{ENSEMBLE}.{shards.label}", settings, {"shards": shards, "members": specs})


Texts = Mapping[str, list[Spec]]
"""What is scored: `shards`, `candidates`, and perhaps the corpus that they were found in."""


def _bm25(draft: Draft, _bases: BasePlanner, _name: str, teacher: Config, texts: Texts) -> Spec:
    """BM25."""
    settings = {"documents": teacher["documents"], **teacher["bm25"]}
    return draft.add("scores", f"bm25.{texts['shards'][0].label}", settings, texts)


def _neural(draft: Draft, bases: BasePlanner, name: str, teacher: Config, texts: Texts, *, kind: str) -> Spec:
    """A re-ranker, or a late-interaction model, whose folder says its lengths."""
    neural = dict(teacher[kind])
    model = bases.base(neural.pop("model"), f"teachers.{name}")
    bases.check(
        model, f"teachers.{name}", {length: neural[length] for length in ("maximum_length",) if length in neural}
    )
    if kind == "late-interaction":
        bases.check_late_interaction(model, f"teachers.{name}")
    settings = {"documents": teacher["documents"], "teacher": {"kind": kind, **neural}}
    return draft.add("scores", f"neural.{texts['shards'][0].label}", settings, {**texts, "model": [model]})


KINDS: Mapping[str, Callable[[Draft, BasePlanner, str, Config, Texts], Spec]] = {
    "bm25": _bm25,
    "cross-encoder": partial(_neural, kind="cross-encoder"),
    "causal-lm": partial(_neural, kind="causal-lm"),
    "late-interaction": partial(_neural, kind="late-interaction"),
}
"""Kinds of teachers that score documents: the config's key, and the function that plans the scores."""
ENSEMBLE = "ensemble"
"""The key of a teacher that is the mean of others."""
OPTIONS: Mapping[str, tuple[str, ...]] = dict.fromkeys(("miners", "documents"), tuple(KINDS))
"""Settings that an ensemble does not have: its members say what they score."""
