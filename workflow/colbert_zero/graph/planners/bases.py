"""Plan the models that are not trained here: bases, encoders and teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import SPEC_FILE, Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.model_folder import check_lengths, check_model_folder, check_projection
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.relations import check_random, check_texts
from colbert_zero.graph.planners.sources import SourcePlanner


class BasePlanner:
    """Plans the entries of the section `models`, each when something needs it."""

    def __init__(self, draft: Draft, sources: SourcePlanner) -> None:
        """Plan for `draft`; models with random weights take their vocabulary from `sources`."""
        self._draft, self._sources = draft, sources

    def base(self, name: str, where: str) -> Spec:
        """The model called `name`.

        Raises:
            UserError: The config has no such model; `where` is the place in the config that names it.
        """
        model = self._draft.entry("models", name, where)
        kind = only_key(model, tuple(KINDS), f"models.{name}")
        return KINDS[kind](self._draft, self._sources, name, model)

    def check(self, model: Spec, where: str, lengths: Config, dimensions: int | None = None) -> None:
        """Check settings against a model that is there: a local folder, or a base that was fetched or made.

        The Snakemake of a job plans, too: so a length that a base of the Hub cannot take ends the run as soon as the
        base is there, before it is trained.

        Args:
            model: A base, or what was trained from it.
            where: The place in the config.
            lengths: The lengths of its input, by setting.
            dimensions: The size of its embeddings, as the config says.

        Raises:
            UserError: The model cannot take such long texts, or has a projection of another size.
        """
        made = self._draft.folder / model.folder
        folder = self._draft.paths.get(model.key, made if (made / SPEC_FILE).is_file() else None)
        if folder is not None:
            name = f"{where}: {folder}"
            check_lengths(folder, lengths, name)
            check_projection(folder, dimensions, name)


def _from_registry(draft: Draft, _sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A model of the Hub at a pinned revision."""
    return draft.add("bases", f"hub.{name}", registry.model(model["registry"], f"models.{name}"))


def _from_folder(draft: Draft, _sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A local folder that transformers, sentence-transformers or PyLate can load."""
    path = draft.local_path(model["folder"])
    settings = {"sha256": draft.local_folder(path, f"models.{name}.folder")}
    check_model_folder(path, f"models.{name}: {path}")
    return draft.add("bases", f"folder.{name}", settings, path=path)


def _random(draft: Draft, sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A small ModernBERT with random weights and a tokenizer trained on sources."""
    random = dict(model["random"])
    check_random(random, f"models.{name}.random")
    named = sources.named(random.pop("sources"), f"models.{name}")
    check_texts(named, f"models.{name}.random")
    texts = [spec for _, spec in named]
    settings = {**random, "architecture": "modernbert", "seed": draft.seed}
    return draft.add("bases", f"random.{name}", settings, {"sources": texts})


KINDS: Mapping[str, Callable[[Draft, SourcePlanner, str, Config], Spec]] = {
    "registry": _from_registry,
    "folder": _from_folder,
    "random": _random,
}
"""Where a model can come from: the config's key, and the function that plans it."""
