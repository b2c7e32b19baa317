"""Plan the models that are not trained here: bases, encoders and teachers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from colbert_zero.graph import registry
from colbert_zero.graph.artifact import SPEC_FILE, Spec
from colbert_zero.graph.config import Config, only_key
from colbert_zero.graph.console import UserError
from colbert_zero.graph.dense_folder import check_dense_folder, read_similarity
from colbert_zero.graph.model_folder import check_lengths, check_model_folder, check_projection, transformer_folder
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.relations import check_random, check_texts
from colbert_zero.graph.planners.sources import SourcePlanner
from colbert_zero.graph.saved_encoding import read_trained_encoding, require_saved_encoding

PRETRAINED = REPOSITORY / ".venv" / "pretrained"
"""Where `envs/install.py pretrained` installs a model."""
RANDOM_PREFIX = "random."
"""Begins the labels of models with random weights."""
WEIGHTS_FILE = "model.safetensors"
"""The file with the weights of a transformer that is not split."""


class BasePlanner:
    """Plans the entries of the section `models`, each when something needs it."""

    def __init__(self, draft: Draft, sources: SourcePlanner) -> None:
        """Plan for `draft`; models with random weights take their vocabulary from `sources`.

        Raises:
            UserError: An entry is of no kind, or of several, or has a setting that its kind does not have.
        """
        self._draft, self._sources = draft, sources
        # Also of a model that nothing needs, as the schema cannot.
        self._kinds = {
            name: only_key(model, tuple(KINDS), f"models.{name}", OPTIONS)
            for name, model in draft.config["models"].items()
        }

    def base(self, name: str, where: str) -> Spec:
        """The model called `name`.

        Raises:
            UserError: The config has no such model; `where` is the place in the config that names it.
        """
        model = self._draft.entry("models", name, where)
        return KINDS[self._kinds[name]](self._draft, self._sources, name, model)

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
        folder = self._folder(model)
        if folder is not None:
            name = f"{where}: {folder}"
            check_lengths(folder, lengths, name)
            check_projection(folder, dimensions, name)

    def check_dense(self, model: Spec, where: str) -> None:
        """Check that a model, if it is there, makes one vector of a text.

        Raises:
            UserError: It does not, or its vectors are not compared by inner products; `where` is the place in the
                config.
        """
        if model.label.startswith(RANDOM_PREFIX):
            raise UserError(
                f"{where}: a model with random weights has no pooling, so it makes no vector of a text; name another "
                "model, or train it and use it as a late-interaction model"
            )
        folder = self._folder(model)
        if folder is not None:
            check_dense_folder(folder, f"{where}: {folder}")
            read_similarity(folder, f"{where}: {folder}")

    def check_late_interaction(self, model: Spec, where: str) -> None:
        """Check that a model, if it is there, says with which prompts and lengths it makes vectors of tokens.

        Raises:
            UserError: It does not; `where` is the place in the config.
        """
        if model.label.startswith(RANDOM_PREFIX):
            raise UserError(
                f"{where}: a model with random weights says no prompts and lengths to encode with; name one that "
                "PyLate saved"
            )
        folder = self._folder(model)
        if folder is not None:
            require_saved_encoding(folder, f"{where}: {folder}")

    def saved_encoding(self, model: Spec) -> Config:
        """The prompts and lengths that a model which is there was saved with; nothing of any other."""
        folder = self._folder(model)
        return read_trained_encoding(folder) if folder else {}

    def _folder(self, model: Spec) -> Path | None:
        """The folder of a model that is there: the user's own, or one that was fetched or made."""
        made = self._draft.folder / model.folder
        return self._draft.paths.get(model.key, made if (made / SPEC_FILE).is_file() else None)


def _from_registry(draft: Draft, _sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A model of the Hub that the registry names."""
    where = f"models.{name}"
    return draft.add("bases", f"hub.{name}", draft.pinned("model", registry.model(model["registry"], where), where))


def _from_hub(draft: Draft, _sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A model of the Hub that the config names."""
    return draft.add("bases", f"hub.{name}", draft.pinned("model", model, f"models.{name}"))


def _from_folder(draft: Draft, _sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A local folder that transformers, sentence-transformers or PyLate can load."""
    where, path = f"models.{name}", draft.local_path(model["folder"])
    named = Path(os.path.abspath(path))  # The words alone: whatever is wrong with the path is said below.
    if named.is_relative_to(PRETRAINED) and not os.path.exists(named):
        raise UserError(f"{where}.folder: {named} is not installed: make demo-pretrained installs it")
    settings = {"sha256": draft.local_folder(path, f"{where}.folder")}
    check_model_folder(path, f"{where}: {path}")
    if "sha256" in model:
        _check_weights(draft, path, model["sha256"], where)
    return draft.add("bases", f"folder.{name}", settings, path=path)


def _check_weights(draft: Draft, folder: Path, sha256: str, where: str) -> None:
    """Refuse a folder whose weights are not those that the config means.

    Args:
        draft: The study.
        folder: The model's folder.
        sha256: The SHA-256 of its weights' file.
        where: The place of the model in the config.

    Raises:
        UserError: The weights are others, or in several files.
    """
    weights = transformer_folder(folder) / WEIGHTS_FILE
    found = draft.local_file(weights, f"{where}.sha256")
    if found != sha256:
        raise UserError(
            f"{where}.sha256: {weights} has the digest {found}, so it holds other weights than the config means: get "
            "the model anew, or correct the digest"
        )


def _random(draft: Draft, sources: SourcePlanner, name: str, model: Config) -> Spec:
    """A small ModernBERT with random weights and a tokenizer trained on sources."""
    random = dict(model["random"])
    check_random(random, f"models.{name}.random")
    named = sources.named(random.pop("sources"), f"models.{name}")
    check_texts(named, f"models.{name}.random")
    texts = [spec for _, spec in named]
    settings = {**random, "architecture": "modernbert", "seed": draft.seed}
    return draft.add("bases", f"{RANDOM_PREFIX}{name}", settings, {"sources": texts})


KINDS: Mapping[str, Callable[[Draft, SourcePlanner, str, Config], Spec]] = {
    "registry": _from_registry,
    "hub": _from_hub,
    "folder": _from_folder,
    "random": _random,
}
"""Where a model can come from: the config's key, and the function that plans it."""
OPTIONS: Mapping[str, tuple[str, ...]] = {"revision": ("hub",), "sha256": ("folder",)}
"""Settings that only models from some places have."""
