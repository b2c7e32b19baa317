"""Loader threads, low memory and evaluations do not change a training; divergence and broken rows stop it."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboardX.proto import event_pb2

from colbert_zero.evaluation import index, measure, search
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.graph.console import UserError
from colbert_zero.machine.devices import add_device_option
from colbert_zero.machine.gpus import Gpu
from colbert_zero.training import evaluator, gradcache, train, trainer
from publishing import publish_collection
from tiny_stages import BATCH_SIZE, STAGES, contents, job, model_spec, never

pytestmark = pytest.mark.usefixtures("study")


def trained(spec: Spec, *flags: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Train from the beginning; return the facts and the files."""
    shutil.rmtree(spec.state, ignore_errors=True)
    shutil.rmtree("out", ignore_errors=True)
    facts = dict(train.train(job(spec, Path("out"), *flags), never))
    return facts, contents(Path("out"))


def lines(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in files["losses.jsonl"].decode().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_loader_threads_do_not_change_the_model(modernbert: Path, stage: str) -> None:
    spec = model_spec(modernbert, stage)
    _, expected = trained(spec, "--loader-workers", "0")
    for workers in ("1", "8"):
        assert trained(spec, "--loader-workers", workers)[1] == expected


def test_an_error_in_a_loader_thread_reaches_the_user(modernbert: Path) -> None:
    spec = model_spec(modernbert, "supervised", negatives=2)
    rows = Artifact.open(spec.inputs["rows"][0])
    next(rows.folder.glob("*.parquet")).write_bytes(b"")
    with pytest.raises(UserError, match="its manifest says"):
        train.train(job(spec, Path("out"), "--loader-workers", "2"), never)


# Memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    embed = gradcache.embed

    def limited(model: Any, features: dict[str, torch.Tensor], *precision: bool) -> torch.Tensor:
        if features["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError
        return embed(model, features, *precision)

    monkeypatch.setattr(gradcache, "embed", limited)


@pytest.mark.parametrize("stage", STAGES)
def test_out_of_memory_computes_less_at_once_and_the_same(
    modernbert: Path, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    spec = model_spec(modernbert, stage)
    _, expected = trained(spec)
    monkeypatch.setattr(gradcache, "MINIMUM_TOKENS_PER_CHUNK", 8)
    short_of_memory(monkeypatch, 70)
    facts, found = trained(spec)
    assert facts["tokens_per_chunk"] <= 70
    assert f"from now on {facts['tokens_per_chunk']} padded tokens at once" in caplog.text
    losses = [line["loss"] for line in lines(found)]
    assert losses == pytest.approx([line["loss"] for line in lines(expected)], abs=1e-4)


def test_too_little_memory_for_the_smallest_chunk_is_one_line(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="out of memory with 64 tokens at once: take a GPU with more"):
        trained(model_spec(modernbert, "unsupervised"))


# The scale of the gradient


@pytest.mark.parametrize(
    ("stage", "changes", "factor"),
    [
        ("unsupervised", {}, 1),
        ("unsupervised", {"gradient": "reference"}, BATCH_SIZE),
        ("supervised", {"gradient_scale": 3}, 3),
        ("supervised", {"gradient_scale": 0.5}, 0.5),
    ],
)
def test_the_gradient_alone_is_scaled_and_what_is_usual_with_it(
    modernbert: Path, stage: str, changes: dict[str, Any], factor: float
) -> None:
    plain, scaled = (
        train._build_trainer(job(model_spec(modernbert, stage, gradient_clip=None, **settings), Path("out")), "cpu")
        for settings in ({}, changes)
    )
    expected, found = plain.train_step(), scaled.train_step()
    assert found["loss"] == expected["loss"]
    assert found["gradient_norm"] == pytest.approx(factor * expected["gradient_norm"], rel=1e-5)
    # A gradient is far too large if it is a thousand times the usual one, which is at least this factor.
    scaled.step, scaled.history = trainer.NORM_WARMUP_STEPS, [json.dumps({"gradient_norm": 0.0})]
    assert scaled._typical_gradient_norm() == factor


# The temperature


def test_a_learned_temperature_does_not_decay(modernbert: Path) -> None:
    spec = model_spec(modernbert, "supervised", learnable_temperature=True, weight_decay=0.5)
    built = train._build_trainer(job(spec, Path("out")), "cpu")
    assert built.temperature is not None
    decay = {
        id(parameter): group["weight_decay"] for group in built.optimiser.param_groups for parameter in group["params"]
    }
    assert decay[id(built.temperature)] == 0
    assert {decay[id(parameter)] for parameter in built.model.parameters() if parameter.ndim == 2} == {0.5}


def test_a_learned_temperature_begins_as_given_learns_and_survives_a_resume(modernbert: Path) -> None:
    fixed = lines(trained(model_spec(modernbert, "unsupervised"))[1])
    spec = model_spec(modernbert, "unsupervised", learnable_temperature=True, learning_rate=1e-2)
    facts, expected = trained(spec)
    found = lines(expected)
    assert found[0]["loss"] == fixed[0]["loss"]
    assert found[0]["temperature"] == pytest.approx(0.2)
    assert facts["temperature"] != pytest.approx(0.2, abs=1e-3)
    shutil.rmtree(spec.state)
    shutil.rmtree("out")
    with pytest.raises(UserError, match="stopped at step 5"):
        train.train(job(spec, Path("out")), lambda step: step == 5)
    assert train.train(job(spec, Path("out")), never)["temperature"] == facts["temperature"]
    assert contents(Path("out")) == expected


def test_the_temperatures_gradient_is_that_of_the_loss(modernbert: Path) -> None:
    def loss_at(temperature: float) -> tuple[float, trainer.Trainer]:
        spec = model_spec(modernbert, "unsupervised", learnable_temperature=True, temperature=temperature)
        made = train._build_trainer(job(spec, Path("out")), "cpu")
        return made.train_step()["loss"], made

    (low, _), (_, made), (high, _) = map(loss_at, (0.19, 0.2, 0.21))
    assert made.temperature is not None and made.temperature.grad is not None
    assert made.temperature.grad.item() == pytest.approx((high - low) / 0.02, rel=1e-2)


def test_a_temperature_that_has_fallen_below_zero_stops_the_run(modernbert: Path) -> None:
    made = train._build_trainer(
        job(model_spec(modernbert, "unsupervised", learnable_temperature=True), Path("out")), "cpu"
    )
    assert made.temperature is not None
    made.temperature.data.fill_(-0.01)
    with pytest.raises(UserError, match=r", temperature -0.01 at step 1 of 8 .*: lower the learning rate"):
        made.train_step()


def test_a_temperature_without_a_finite_gradient_or_of_zero_stops_the_run(modernbert: Path) -> None:
    made = train._build_trainer(
        job(model_spec(modernbert, "unsupervised", learnable_temperature=True), Path("out")), "cpu"
    )
    assert made.temperature is not None
    record = {"step": 1, "loss": 0.5, "learning_rate": 0.1, "gradient_norm": 1.0, "temperature": 0.2}
    for gradient in (None, torch.tensor(3.0)):
        made.temperature.grad = gradient
        made._raise_if_diverged(record)
    with pytest.raises(UserError, match=r"gradient norm 1.0, temperature 0 at step 1 of 8"):
        made._raise_if_diverged(record | {"temperature": 0.0})
    made.temperature.grad = torch.tensor(torch.nan)
    with pytest.raises(UserError, match=r"gradient norm 1.0 at step 1 of 8"):
        made._raise_if_diverged(record)


# Totals


def test_tokens_and_seconds_are_those_of_the_steps(modernbert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = train._build_trainer(job(model_spec(modernbert, "supervised"), Path("out")), "cpu")
    # Each step takes two seconds, and another thousand are between two of them.
    moments = iter([1000.0, 1002.0, 2000.0, 2002.0])
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    batches = [made.loader.load(step) for step in (0, 1)]
    for _ in batches:
        made.train_step()
    assert made.totals == trainer.Totals(
        query_tokens=sum(len(batch.queries.ids) for batch in batches),
        document_tokens=sum(len(batch.documents.ids) for batch in batches),
        seconds=4.0,
        joules=0.0,
    )


# Divergence


def test_an_exploding_gradient_stops_the_run_and_names_its_rows(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "EXPLODING_FACTOR", 1e-6)
    monkeypatch.setattr(trainer, "NORM_WARMUP_STEPS", 3)
    spec = model_spec(modernbert, "unsupervised")
    with pytest.raises(UserError) as caught:
        trained(spec)
    assert re.search(r"gradient norm \S+ \(usually \S+\) at step 4 of 8 \(shards/", str(caught.value))
    assert "the checkpoint of step 0 is kept in" in str(caught.value)
    assert list((spec.state / "checkpoints").iterdir())


def test_the_typical_gradient_norm_is_of_the_last_steps_and_scaled_as_the_gradient_is(modernbert: Path) -> None:
    for gradient, last, expected in (("exact", 7.0, 7.0), ("exact", 0.1, 1.0), ("reference", 0.1, BATCH_SIZE)):
        made = train._build_trainer(job(model_spec(modernbert, "unsupervised", gradient=gradient), Path("out")), "cpu")
        made.history = [json.dumps({"gradient_norm": norm}) for norm in [1e9] * 50 + [last] * 100]
        assert made._typical_gradient_norm() is None
        made.step = 150
        assert made._typical_gradient_norm() == expected


def test_the_usual_norm_is_the_median_of_a_hundred_steps_and_there_is_one_from_the_eleventh_step_on(
    modernbert: Path,
) -> None:
    made = train._build_trainer(job(model_spec(modernbert, "unsupervised"), Path("out")), "cpu")
    made.history = [json.dumps({"gradient_norm": norm}) for norm in [1.0] * 100 + [7.0] * 50]
    made.step = 150
    assert made._typical_gradient_norm() == 4.0
    made.step = 9
    assert made._typical_gradient_norm() is None
    made.step = 10
    assert made._typical_gradient_norm() == 4.0


def test_a_thousand_times_the_usual_norm_is_still_no_explosion(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train._build_trainer(job(model_spec(modernbert, "unsupervised"), Path("out")), "cpu")
    monkeypatch.setattr(made, "_typical_gradient_norm", lambda: 4.0)
    record = {"step": 1, "loss": 0.5, "learning_rate": 0.1, "gradient_norm": 4000.0}
    made._raise_if_diverged(record)
    with pytest.raises(UserError, match=r"gradient norm 4001.0 \(usually 4\) at step 1 of 8"):
        made._raise_if_diverged(record | {"gradient_norm": 4001.0})


def test_the_reference_gradient_is_the_exact_one_times_the_batch(modernbert: Path) -> None:
    norms = [
        lines(trained(model_spec(modernbert, "unsupervised", gradient=gradient))[1])[0]["gradient_norm"]
        for gradient in ("exact", "reference")
    ]
    assert norms[1] / norms[0] == pytest.approx(BATCH_SIZE, rel=1e-4)


# Logs and evaluations


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars in the TensorBoard files of a folder: for each name, values by step."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            content = content[16 + size :]
    return found


def collection() -> str:
    """Twelve documents; one is a query itself, and so many are relevant to it that the last of ten counts."""
    words = ("quick", "lazy", "brown", "every", "best", "model", "query", "scores", "sums", "the", "it", "dog")
    documents = {f"d{number}": f"{word} fox" for number, word in enumerate(words)}
    queries = {"q1": "the quick one", "d1": "lazy fox"}
    # Each document has a grade of its own, so that the measure tells any two rankings apart.
    grades = {document: grade for grade, document in enumerate(documents)}
    return publish_collection("small", documents, queries, {"q1": grades, "d1": grades}).name


def test_lines_grow_as_it_trains_and_tensorboard_gets_the_same(modernbert: Path) -> None:
    spec = model_spec(modernbert, "unsupervised")
    evaluate = json.dumps({"steps": [2, 8], "collections": {collection(): {"drop_self": False}}})
    flags = ("--tensorboard", "--evaluate", evaluate)
    with pytest.raises(UserError, match="stopped at step 5"):
        train.train(job(spec, Path("out"), *flags), lambda step: step == 5)
    written = spec.state / "losses.jsonl"
    assert [json.loads(line)["step"] for line in written.read_text().splitlines()] == [1, 2, 3, 4, 5]
    with written.open("a") as file:
        file.write('{"step": 6}\n')
    facts = train.train(job(spec, Path("out"), *flags), never)
    assert written.read_text() == Path("out/losses.jsonl").read_text()
    found = scalars(Path("logs/tensorboard") / spec.folder.name)
    for line in lines(contents(Path("out"))):
        for name in ("loss", "learning_rate", "gradient_norm"):
            assert found[f"training/{name}"][line["step"]] == pytest.approx(line[name], rel=1e-6)
    measured = {found["step"]: found["nDCG@10"] for found in facts["evaluations"]}
    assert measured.keys() == {2, 8}
    assert found["evaluation/folder.small"] == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize("drop_self", [False, True])
def test_an_evaluation_during_training_equals_the_studys_and_changes_nothing(modernbert: Path, drop_self: bool) -> None:
    spec, name = model_spec(modernbert, "unsupervised"), collection()
    _, expected = trained(spec)
    # Other lengths than the training's, as a collection may have.
    lengths = {name: spec.settings[name] - 4 for name in ("query_length", "document_length")}
    evaluate = json.dumps({"steps": [3, 8], "collections": {name: {"drop_self": drop_self, **lengths}}})
    facts, found = trained(spec, "--evaluate", evaluate)
    assert found == expected
    assert [found["step"] for found in facts["evaluations"]] == [3, 8]
    # Evaluate the same model with the steps of a study.
    assert run_step(train.make, None, ["--spec", spec.text, "--device", "cpu"], train.add_options) == 0
    names = ("query_prompt", "document_prompt", "query_length", "document_length", "query_expansion")
    encoding = {name: spec.settings[name] for name in names} | lengths
    settings = {"encoding": encoding, "index": {"kind": "exact", "seed": 1}, "changed": list(lengths)}
    index_spec = Spec("indexes", "small", settings, {"model": [spec.name], "collection": [name]})
    run_spec = Spec(
        "runs", "small", {"depth": 10, "drop_self": drop_self}, {"index": [index_spec.name], "collection": [name]}
    )
    measures_spec = Spec("measures", "small", {"measures": ["nDCG@10"]}, {"run": [run_spec.name], "collection": [name]})
    for step_spec, make in ((index_spec, index.make), (run_spec, search.make)):
        assert run_step(make, None, ["--spec", step_spec.text, "--device", "cpu"], add_device_option) == 0
    assert run_step(measure.make, None, ["--spec", measures_spec.text]) == 0
    mean = Artifact.open(measures_spec.name).facts["means"]["nDCG@10"]
    assert facts["evaluations"][-1]["nDCG@10"] == pytest.approx(mean, abs=1e-9)


def test_a_large_collection_is_refused_before_training(modernbert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "PLAID_MIN_DOCUMENTS", 12)
    evaluate = json.dumps({"steps": [1], "collections": {collection(): {"drop_self": False}}})
    with pytest.raises(UserError, match="has 12 documents, too many to evaluate on while training"):
        train.train(job(model_spec(modernbert, "unsupervised"), Path("out"), "--evaluate", evaluate), never)


class FakeNvml:
    """NVIDIA's library (NVML) on a machine with a GPU."""

    class NVMLError(Exception):
        pass

    supported = True

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-0000-1111":
            raise self.NVMLError
        return uuid

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> Any:
        return SimpleNamespace(used=3 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, _handle: str) -> Any:
        if not self.supported:
            raise self.NVMLError
        return SimpleNamespace(gpu=87)

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> int:
        if not self.supported:
            raise self.NVMLError
        return 123_456


def test_a_gpu_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=["0000-1111"][device]))
    gpu = Gpu.open(0)
    assert gpu is not None
    assert gpu.readings() == {"gpu_memory_mb": 3072, "gpu_utilisation": 87}
    assert gpu.energy_joules() == pytest.approx(123.456)
    library.supported = False
    assert gpu.readings() == {"gpu_memory_mb": 3072}
    assert gpu.energy_joules() == 0
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="other"))
    assert Gpu.open(0) is None
