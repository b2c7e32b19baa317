"""A selection: the model with the best mean over the collections, as it is, and a table of all."""

from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch

from colbert_zero.evaluation.values import write_values
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.training.selection import make
from publishing import publish

MEASURE = "nDCG@10"


@pytest.fixture(autouse=True)
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def candidate(rate: float) -> str:
    def write(folder: Path) -> None:
        (folder / "1_Dense" / "deeper").mkdir(parents=True)
        (folder / "1_Dense" / "deeper" / "notes.txt").write_text(f"notes {rate}")
        (folder / "1_Dense" / "model.safetensors").write_text(f"weights {rate}")
        (folder / "losses.jsonl").write_text("{}")

    return publish(Spec("models", "supervised", {"learning_rate": rate}), write, {"seconds": 10 * rate}).name


def measured(model: str, collection: str, values: list[float]) -> str:
    rows = [(f"q{number}", MEASURE, value) for number, value in enumerate(values)]
    spec = Spec("measures", collection, {}, {"model": [model]})
    return publish(spec, lambda folder: write_values(folder, rows), {"queries": len(values)}).name


def select(values: dict[float, tuple[list[float], list[float]]]) -> Artifact:
    models = [candidate(rate) for rate in values]
    measures = [
        measured(model, collection, of)
        for model, both in zip(models, values.values(), strict=True)
        for collection, of in zip(("small", "large"), both, strict=True)
    ]
    settings: dict[str, Any] = {
        "stage": "supervised",
        "values": [{"learning_rate": rate} for rate in values],
        "measure": MEASURE,
    }
    spec = Spec("selections", "supervised", settings, {"models": models, "measures": measures})
    assert run_step(make, None, ["--spec", spec.text]) == 0
    return Artifact.open(spec.name)


def test_collections_count_alike_whatever_their_queries() -> None:
    # Over all queries, the second would be best.
    selection = select({1.0: ([0.9], [0.2, 0.2, 0.2]), 2.0: ([0.1], [0.6, 0.6, 0.6])})
    assert selection.facts["selected"] == {"learning_rate": 1.0}
    assert selection.facts["means"] == pytest.approx([0.55, 0.35])
    assert selection.facts["collections"] == ["small", "large"]


def test_the_selected_model_is_published_as_it_is_and_costs_what_all_did() -> None:
    selection = select({1.0: ([0.1], [0.2]), 2.0: ([0.3], [0.3]), 3.0: ([0.2], [0.2])})
    model = Artifact.open(selection.facts["model"])
    assert model.spec.settings["learning_rate"] == 2.0
    assert selection.manifest["outputs"] == model.manifest["outputs"]
    assert selection.file("1_Dense/model.safetensors").read_text() == "weights 2.0"
    assert selection.facts["seconds"] == 60.0


def test_of_equal_models_the_first_is_selected() -> None:
    assert select({3.0: ([0.5], [0.5]), 2.0: ([0.5], [0.5])}).facts["selected"] == {"learning_rate": 3.0}
