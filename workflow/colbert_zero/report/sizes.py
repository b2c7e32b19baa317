"""How large an artifact is or will be: rows, documents, tokens, parameters. What nobody knows yet is None.

Of an artifact that is there, its manifest says it. Of one that is not, its spec does, or `registry/sizes.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from colbert_zero.graph.artifact import SPEC_FILE, Spec, artifact_folder, read_manifest
from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import read_json
from colbert_zero.graph.limits import DEFAULT_DIMENSIONS, PLAID_MIN_DOCUMENTS
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.text_files import read_file
from colbert_zero.graph.yaml_files import read_yaml

Manifest = Mapping[str, Any]

BYTES_PER_PARAMETER = 4
"""Models are trained and kept in single precision."""
LARGEST = 2.0**63
"""What no record counts up to."""
SIZES_FILE = WORKFLOW / "registry" / "sizes.yaml"


def known_size(section: str, spec: Spec, name: str) -> Any:
    """What `registry/sizes.yaml` says of the repository that an artifact is fetched from; None if nothing."""
    return read_yaml(SIZES_FILE)[section].get(spec.settings.get("hub"), {}).get(name)


class Sizes:
    """Sizes of artifacts that are there or planned."""

    def __init__(self, planned: Mapping[str, Spec], manifest: Callable[[str], Manifest | None]) -> None:
        """Know the sizes of artifacts.

        Args:
            planned: The specs that are known, by name; another artifact's must be there.
            manifest: Of an artifact's name, its manifest; None if it is not published.
        """
        self._planned, self._manifest = planned, manifest

    def spec(self, name: str) -> Spec | None:
        """The spec of the artifact called `name`; None of one that is neither planned nor there."""
        if name in self._planned:
            return self._planned[name]
        try:
            return Spec.parse(read_file(artifact_folder(name) / SPEC_FILE).decode())
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def fact(self, spec: Spec, name: str) -> Any:
        """A fact of an artifact that is there; None of another."""
        manifest = self._manifest(spec.name)
        return None if manifest is None else manifest["facts"].get(name)

    def published_bytes(self, spec: Spec) -> int | None:
        """The bytes of the files of an artifact that is there; None of another."""
        manifest = self._manifest(spec.name)
        return None if manifest is None else sum(entry["bytes"] for entry in manifest["outputs"].values())

    def rows(self, spec: Spec) -> float | None:
        """Rows of a source, of its shards, or of what is made of them, before any is dropped."""
        if spec.kind == "sources":
            return number(spec.settings.get("rows", self.fact(spec, "rows")))
        (made_from,) = spec.inputs.get("source") or spec.inputs["shards"]
        source = self.spec(made_from)
        rows = None if source is None else self.rows(source)
        return number(self.fact(spec, "rows")) if rows is None else rows * float(spec.settings.get("share", 1))

    def base(self, model: Spec) -> Spec | None:
        """The model that a chain of stages began with; a base is its own."""
        if model.kind == "bases":
            return model
        (name, *_) = model.inputs["start"] if model.kind == "models" else model.inputs["models"]
        start = self.spec(name)
        return None if start is None else self.base(start)

    def training_texts(self, model: Spec) -> float | None:
        """How many documents a training encodes: rows x epochs x documents of a row."""
        if (samples := number(self.fact(model, "samples"))) is not None:
            return samples * _per_row(model)
        sources = [self.spec(name) for name in model.inputs.get("rows", ())]
        rows = [None if source is None else self.rows(source) for source in sources]
        batches = self.spec(model.inputs["batches"][0])
        if batches is None or None in rows:
            return None
        epochs: int = batches.settings.get("epochs", 1)
        return sum(count for count in rows if count is not None) * epochs * _per_row(model)

    def documents(self, spec: Spec) -> float | None:
        """The number of documents of a collection, or of that of an index or a run."""
        return self._count(spec, "documents")

    def queries(self, spec: Spec) -> float | None:
        """The number of judged queries of a collection, or of that of an index or a run."""
        return self._count(spec, "queries")

    def _count(self, spec: Spec, what: str) -> float | None:
        collection = self._collection(spec)
        return None if collection is None else number(collection.settings.get(what, self.fact(collection, what)))

    def _collection(self, spec: Spec) -> Spec | None:
        return spec if spec.kind == "collections" else self.spec(spec.inputs["collection"][0])

    def index_kind(self, index: Spec) -> str | None:
        """`exact`, `plaid` or `faiss`; None where the number of documents decides, and is not known."""
        kind: str = index.settings["index"]["kind"]
        if kind != "auto":
            return kind
        documents = self.documents(index)
        return None if documents is None else "exact" if documents < PLAID_MIN_DOCUMENTS else "plaid"

    def characters(self, collection: Spec) -> float | None:
        """The mean characters of a document."""
        known = known_size("documents", collection, "characters")
        documents, manifest = self.documents(collection), self._manifest(collection.name)
        if manifest is not None and documents:
            corpus = sum(entry["bytes"] for name, entry in manifest["outputs"].items() if name.startswith("corpus"))
            return float(corpus / documents)
        return None if known is None else float(known)

    def tokens(self, index: Spec) -> float | None:
        """The tokens of all documents of a late-interaction index."""
        if (counted := number(self.fact(index, "document_tokens"))) is not None:
            return counted
        collection, documents = self._collection(index), self.documents(index)
        characters = None if collection is None else self.characters(collection)
        if documents is None or characters is None:
            return None
        tokens = characters / characters_per_token()
        longest: float = index.settings["encoding"].get("document_length", tokens)
        return documents * min(tokens, longest)

    def parameters(self, model: Spec) -> int | None:
        """The parameters of a model."""
        if (counted := number(self.fact(model, "parameters"))) is not None:
            return int(counted)
        if model.kind != "bases":
            base = self.base(model)
            return None if base is None else self.parameters(base)
        manifest = self._manifest(model.name)
        if manifest is None:
            size: int | None = known_size("models", model, "parameters")
            return size
        weights = [entry["bytes"] for name, entry in manifest["outputs"].items() if name.endswith(".safetensors")]
        return sum(weights) // BYTES_PER_PARAMETER if weights else None

    def hidden(self, model: Spec) -> int | None:
        """The size of a base's hidden states."""
        config = model.folder / "config.json"
        if config.is_file():
            try:
                found = read_json(config).get("hidden_size")
            except (ValueError, AttributeError):
                found = None
            return found if isinstance(found, int) else None
        size: int | None = model.settings.get("hidden") or known_size("models", model, "hidden")
        return size

    def dimensions(self, index: Spec) -> int | None:
        """The size of a vector of an index."""
        model = self.spec(index.inputs["model"][0])
        if model is None:
            return None
        if index.label.startswith("dense."):
            return self.hidden(model)
        given = index.settings.get("projection") or model.settings
        dimensions: int = given.get("dimensions", DEFAULT_DIMENSIONS)
        return dimensions


def characters_per_token() -> float:
    """How many characters of a text a token has, about."""
    return float(read_yaml(SIZES_FILE)["characters_per_token"])


def number(value: Any) -> float | None:
    """A count or an amount of a record; None where there is none, or the record is damaged."""
    return float(value) if type(value) in (int, float) and 0 <= value < LARGEST else None


def _per_row(model: Spec) -> int:
    """Documents of a training row, its own included."""
    settings = model.settings
    match settings["stage"]:
        case "supervised":
            return 1 + int(settings["negatives"])
        case "distillation":
            return int(settings["documents"])
        case _:
            return 1


class Manifests:
    """The manifests of the artifacts that are there, in the study of the current folder; each is read once."""

    def __init__(self) -> None:
        """Read nothing yet."""
        self._read: dict[str, Manifest | None] = {}

    def __call__(self, name: str) -> Manifest | None:
        """The manifest of the artifact called `name`; None if it is not published, or damaged."""
        if name not in self._read:
            self._read[name] = None
            with suppress(OSError, UserError):
                manifest = read_manifest(artifact_folder(name))
                self._read[name] = manifest if manifest.get("attempts") and "seconds" in manifest else None
        return self._read[name]
