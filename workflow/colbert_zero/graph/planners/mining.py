"""Plan candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import DEFAULT_RECALL
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.relations import check_search


class MiningPlanner:
    """Plans the entries of the section `miners`, each when something needs it."""

    def __init__(self, draft: Draft, bases: BasePlanner) -> None:
        """Plan for `draft`; dense miners encode with models of `bases`."""
        self._draft, self._bases = draft, bases

    def candidates(self, miners: Sequence[str], shards: Spec, where: str) -> list[Spec]:
        """Each miner's candidates for the queries of a source's shards.

        Raises:
            UserError: A miner is unknown, or two are the same; `where` is the place in the config that names them.
        """
        planned: dict[str, Spec] = {}
        for name in miners:
            miner = self._draft.entry("miners", name, where)
            kind = only_key(miner, tuple(KINDS), f"miners.{name}")
            check_search(miner[kind], f"miners.{name}.{kind}")
            candidates = KINDS[kind](self._draft, self._bases, name, miner, shards)
            if same := [other for other, spec in planned.items() if spec == candidates]:
                raise UserError(f"{where}: miners {same[0]} and {name} are the same; name one of them")
            planned[name] = candidates
        return list(planned.values())

    def entries(self, miners: Sequence[str], where: str) -> list[Config]:
        """The entries called `miners`.

        Raises:
            UserError: One is unknown; `where` is the place in the config that names it.
        """
        return [self._draft.entry("miners", name, where) for name in miners]


def _bm25(draft: Draft, _bases: BasePlanner, _name: str, miner: Config, shards: Spec) -> Spec:
    """BM25."""
    settings = {**miner["bm25"], "depth": miner["depth"]}
    return draft.add("candidates", f"bm25.{shards.label}", settings, {"shards": shards})


def _lsa(draft: Draft, _bases: BasePlanner, _name: str, miner: Config, shards: Spec) -> Spec:
    """Latent semantic analysis fitted on the source's documents."""
    encoder = {"kind": "lsa", **miner["lsa"], "seed": draft.seed}
    search = _search(draft, encoder)
    settings = {"encoder": encoder, "depth": miner["depth"], **search}
    return draft.add("candidates", f"dense.{shards.label}", settings, {"shards": shards})


def _encoder(draft: Draft, bases: BasePlanner, name: str, miner: Config, shards: Spec) -> Spec:
    """A sentence-transformers model."""
    encoder = {"kind": "sentence-transformers", **miner["encoder"]}
    search = _search(draft, encoder)
    model = bases.base(encoder.pop("model"), f"miners.{name}")
    bases.check(model, f"miners.{name}", {"maximum_length": encoder["maximum_length"]})
    settings = {"encoder": encoder, "depth": miner["depth"], **search}
    return draft.add("candidates", f"dense.{shards.label}", settings, {"shards": shards, "model": model})


def _search(draft: Draft, encoder: dict[str, Any]) -> dict[str, Any]:
    """Take what an encoder's entry says of the search out of it: the settings of an approximate one, if it is that."""
    recall = encoder.pop("recall", DEFAULT_RECALL)
    return {"approximate": {"recall": recall, "seed": draft.seed}} if encoder.pop("search") == "approximate" else {}


KINDS: Mapping[str, Callable[[Draft, BasePlanner, str, Config, Spec], Spec]] = {
    "bm25": _bm25,
    "lsa": _lsa,
    "encoder": _encoder,
}
"""Kinds of miners: the config's key, and the function that plans the candidates."""
