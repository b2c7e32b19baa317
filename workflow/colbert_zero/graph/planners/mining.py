"""Plan candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import refuse_other_prompts
from colbert_zero.graph.limits import CORPUS_ROLE, DEFAULT_RECALL
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.collections import CollectionPlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.relations import check_pools, check_search

OWN_DOCUMENTS = "the source's own documents"


class MiningPlanner:
    """Plans the entries of the section `miners`, each when something needs it."""

    def __init__(self, draft: Draft, bases: BasePlanner, collections: CollectionPlanner) -> None:
        """Plan for `draft`; dense miners encode with models of `bases`, and `collections` may be mined in."""
        self._draft, self._bases, self._collections = draft, bases, collections

    def candidates(self, miners: Sequence[str], shards: Spec, where: str) -> list[Spec]:
        """Each miner's candidates for the queries of a source's shards.

        Raises:
            UserError: A miner is unknown, two are the same, or they mine in different corpora or pools; `where` is the
                place in the config that names them.
        """
        planned: dict[str, Spec] = {}
        texts = {"shards": shards, **self.corpus(miners, where)}
        entries = dict(zip(miners, self.entries(miners, where), strict=True))
        kinds = {name: only_key(miner, tuple(KINDS), f"miners.{name}") for name, miner in entries.items()}
        check_pools({name: miner[kinds[name]].get("pool") for name, miner in entries.items()}, where)
        for name, miner in entries.items():
            kind = kinds[name]
            check_search(miner[kind], miner["depth"], f"miners.{name}.{kind}")
            candidates = KINDS[kind](self._draft, self._bases, name, miner, texts)
            if same := [other for other, spec in planned.items() if spec == candidates]:
                raise UserError(f"{where}: miners {same[0]} and {name} are the same; name one of them")
            planned[name] = candidates
        return list(planned.values())

    def corpus(self, miners: Sequence[str], where: str) -> dict[str, Spec]:
        """The collection that miners search, in the role that it has for what is made of their candidates.

        None if they search the documents of the source.

        Raises:
            UserError: A miner is unknown, its corpus is no collection, or another miner has another one.
        """
        corpora = {name: entry.get("corpus") for name, entry in zip(miners, self.entries(miners, where), strict=True)}
        (first, corpus), *others = corpora.items()
        for name, other in others:
            if other != corpus:
                raise UserError(
                    f"{where}: miner {first} searches {corpus or OWN_DOCUMENTS}, and {name} {other or OWN_DOCUMENTS}; "
                    "give both the same corpus"
                )
        if corpus is None:
            return {}
        collections = self._collections.named(corpus, f"miners.{first}.corpus")
        if len(collections) > 1:
            names = ", ".join(collection.name for collection in collections)
            raise UserError(f"miners.{first}.corpus: {corpus} has several corpora: name one of {names}")
        return {CORPUS_ROLE: collections[0].spec}

    def entries(self, miners: Sequence[str], where: str) -> list[Config]:
        """The entries called `miners`.

        Raises:
            UserError: One is unknown; `where` is the place in the config that names it.
        """
        return [self._draft.entry("miners", name, where) for name in miners]


Texts = Mapping[str, Spec]
"""What is searched for and in: `shards`, and perhaps a corpus."""


def _bm25(draft: Draft, _bases: BasePlanner, _name: str, miner: Config, texts: Texts) -> Spec:
    """BM25."""
    settings = {**miner["bm25"], "depth": miner["depth"]}
    return draft.add("candidates", f"bm25.{texts['shards'].label}", settings, texts)


def _lsa(draft: Draft, _bases: BasePlanner, _name: str, miner: Config, texts: Texts) -> Spec:
    """Latent semantic analysis fitted on the documents."""
    encoder = {"kind": "lsa", **miner["lsa"], "seed": draft.seed}
    search = _search(draft, encoder)
    settings = {"encoder": encoder, "depth": miner["depth"], **search}
    return draft.add("candidates", f"dense.{texts['shards'].label}", settings, texts)


def _encoder(draft: Draft, bases: BasePlanner, name: str, miner: Config, texts: Texts) -> Spec:
    """A sentence-transformers model, with prompts that it was saved with, unless others are meant."""
    where = f"miners.{name}"
    encoder = {"kind": "sentence-transformers", **miner["encoder"]}
    search = _search(draft, encoder)
    model = bases.base(encoder.pop("model"), where)
    bases.check(model, where, {"maximum_length": encoder["maximum_length"]})
    bases.check_dense(model, where)
    if not encoder["override"]:
        del encoder["override"]
        refuse_other_prompts(encoder, bases.saved_encoding(model), where)
    settings = {"encoder": encoder, "depth": miner["depth"], **search}
    return draft.add("candidates", f"dense.{texts['shards'].label}", settings, {**texts, "model": model})


def _late_interaction(draft: Draft, bases: BasePlanner, name: str, miner: Config, texts: Texts) -> Spec:
    """A late-interaction model, with the prompts and lengths that it was saved with."""
    encoder = {"kind": "late-interaction", **miner["late-interaction"]}
    search = _search(draft, encoder)
    model = bases.base(encoder.pop("model"), f"miners.{name}")
    bases.check_late_interaction(model, f"miners.{name}")
    settings = {"encoder": encoder, "depth": miner["depth"], **search}
    return draft.add("candidates", f"dense.{texts['shards'].label}", settings, {**texts, "model": model})


def _search(draft: Draft, encoder: dict[str, Any]) -> dict[str, Any]:
    """Take what an encoder's entry says of the search out of it: the pool, and the settings of an approximate one."""
    recall, pool = encoder.pop("recall", DEFAULT_RECALL), encoder.pop("pool", None)
    search = {} if pool is None else {"pool": {"documents": pool, "seed": draft.seed}}
    if encoder.pop("search") == "approximate":
        search["approximate"] = {"recall": recall, "seed": draft.seed}
    return search


KINDS: Mapping[str, Callable[[Draft, BasePlanner, str, Config, Texts], Spec]] = {
    "bm25": _bm25,
    "lsa": _lsa,
    "encoder": _encoder,
    "late-interaction": _late_interaction,
}
"""Kinds of miners: the config's key, and the function that plans the candidates."""
