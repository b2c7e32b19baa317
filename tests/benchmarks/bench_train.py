"""Samples per second of the three stages: ours against two other trainers, on the same batches in the same run.

    make bench-train
    python tests/benchmarks/bench_train.py [--unsupervised ROWS STEPS] [--supervised ROWS STEPS]
        [--distillation ROWS STEPS] [--stages STAGE ...] [--threads N] [--device auto|cpu|cuda] [--folder FOLDER]
    python tests/benchmarks/bench_train.py --large [ROWS]

The settings are those of the first recipe in `config.yaml`, the paper's study; the model and the text are the embedded
study's, but for longer documents. All sides start from the same weights and have the same texts in the same steps, as
many threads, and a process of their own. Ours is the command that a study runs. The peers are sentence-transformers'
trainer with PyLate's losses and collator, as in the paper's released scripts (`train_pylate.py`), and the multi-vector
trainer of the sentence-transformers in `.venv/peers` (`train_sentence_transformers.py`). All are timed from a step's
rows to its new parameters: ours over all steps, a peer without its first one.

The losses of the first step must be PyLate's; those of all steps are, where `config.yaml` has the reference's gradient
in the unsupervised stage. The last column is how close ours comes to one forward and one backward pass of the same
tokens without padding, loss or optimiser, see `plain_passes.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from colbert_zero.data import batches, docstrings
from colbert_zero.data.rows import PAIR_SCHEMA, SCORED_SCHEMA, TRIPLE_SCHEMA, RowWriter, min_max
from colbert_zero.data.sources import read_source
from colbert_zero.graph.artifact import Artifact, Job, Make, Spec, run_step
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study
from colbert_zero.models import random_base as base
from colbert_zero.models.colbert import load_colbert, save_colbert
from colbert_zero.training.stages import Stage
from measured import Measured, measure, table, work_folder

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(sys.prefix) / "peers"
SIZES = {"unsupervised": (128, 30), "supervised": (16, 10), "distillation": (8, 8)}
"""Rows per step and steps, by stage: minutes on two cores."""
GOALS = {"unsupervised": 2, "supervised": 4, "distillation": 4}
"""How many times PyLate's samples per second ours shall have."""
LARGE = 16_384
"""Rows of the paper's unsupervised step, which shall fit in `ROOM` GiB."""
ROOM = 24
MOST_WORDS, MOST_TOKENS = 300, 150
"""Words of a body that are read, tokens of a document: their mean is then about 100, prompt and markers among them."""
SAME = 1e-4
"""By how much the losses of the first step may differ in fp32."""
SEED = 7
OTHER_LOSSES = (
    "sentence-transformers 6 has losses of its own: its MaxSim leaves padding out, where PyLate's counts it as a "
    "similarity of 0, and its distillation does not scale scores to 0 and 1. Losses are compared with PyLate's only."
)

Text = tuple[str, str]
"""A query and its document."""


@dataclass(frozen=True)
class Task:
    """A stage that all sides can start.

    Attributes:
        spec: What ours makes.
        documents: Documents per query.
        asked: What the scripts beside this one are given; JSON values.
    """

    spec: Spec
    documents: int
    asked: Mapping[str, Any]


def publish(spec: Spec, make: Make) -> str:
    """Make an artifact of the study in the current folder; its name."""
    if run_step(make, None, ["--spec", spec.text]):
        sys.exit(f"{spec.name} could not be made")
    return spec.name


def paper_settings() -> dict[str, dict[str, Any]]:
    """By stage, its settings in the paper's study."""
    config = read_config(ROOT / "config.yaml")
    name, first = next(iter(config["recipes"].items()))
    # Alone it needs no commit of the Hub that is still to be looked up.
    study = Study({**config, "recipes": {name: first}, "baselines": {}}, Path(), resolve=lambda *_: None)
    recipe = next(row for row in study.rows if row.kind == "recipe")
    return {spec.label: dict(spec.settings) for spec in recipe.stages}


def make_sources() -> tuple[list[str], str]:
    """Make the sources and the base of the embedded study; their names."""
    config = read_config(ROOT / "local" / "config.yaml")
    for source in config["sources"].values():
        source["maximum_words"] = MOST_WORDS
    specs = Study(config, Path()).specs.values()
    sources = [publish(spec, docstrings.make) for spec in specs if spec.kind == "sources"]
    (start,) = [publish(spec, base.make) for spec in specs if spec.kind == "bases"]
    return sources, start


def make_start(name: str, stage: Stage) -> str:
    """Make a ColBERT model of a base, since each side would draw a projection of its own; its name."""

    def make(job: Job) -> Mapping[str, Any]:
        folder = job.input("base").verified_folder()
        model = load_colbert(folder, stage.encoding, dimensions=stage.dimensions, seed=stage.seed)
        save_colbert(model, job.folder, stage.encoding)
        return {}

    return publish(Spec("bases", "folder.start", {}, {"base": [name]}), make)


def read_texts(sources: Iterable[str], tokenizer: Any) -> list[Text]:
    """The queries and documents of all sources, in a drawn order."""
    found = [
        (query, cut(document, tokenizer))
        for name in sources
        for batch in read_source(Artifact.open(name))
        for query, document in zip(*(batch.column(column).to_pylist() for column in PAIR_SCHEMA.names), strict=True)
    ]
    return [found[place] for place in np.random.default_rng(SEED).permutation(len(found))]


def cut(document: str, tokenizer: Any) -> str:
    """Its first sentences, as many as have `MOST_TOKENS` together; the very first in any case."""
    sentences = docstrings.SENTENCE_BREAK_PATTERN.split(document)
    lengths = [len(ids) for ids in tokenizer(sentences, add_special_tokens=False)["input_ids"]]
    fitting = int(np.searchsorted(np.cumsum(lengths), MOST_TOKENS, side="right"))
    return " ".join(sentences[: max(1, fitting)])


def draw_rows(texts: Sequence[Text], count: int, documents: int) -> list[dict[str, Any]]:
    """Rows with what any stage needs: others' documents are the negatives, a teacher's scores are drawn.

    Where there are fewer texts than rows, they come again, with a number before them.
    """
    generator = np.random.default_rng(SEED)
    rows = []
    for row in range(count):
        again, place = divmod(row, len(texts))
        query, document = (f"{again}: {text}" if again else text for text in texts[place])
        others = [texts[other][1] for other in generator.integers(0, len(texts), documents - 1)]
        scores = min_max(generator.random(documents, np.float32)).tolist()
        rows.append({"row": row, "query": query, "document": document, "negatives": others})
        rows[-1] |= {"documents": [document, *others], "raw": scores, "scores": scores}
    return rows


def peer_row(stage: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in the columns of the released scripts."""
    if stage == "distillation":
        return {name: row[name] for name in ("query", "documents", "scores")}
    negatives = {f"negative_{place}": text for place, text in enumerate(row["negatives"])}
    return {"query": row["query"], "document": row["document"], **negatives}


def prepare(settings: Mapping[str, Any], size: tuple[int, int], start: str, texts: Sequence[Text], device: str) -> Task:
    """Publish the rows and batches of a stage, and write the batches for the peers as well."""
    stage, (rows_per_step, steps) = settings["stage"], size
    kind, schema, documents = {
        "unsupervised": ("shards", PAIR_SCHEMA, 1),
        "supervised": ("negatives", TRIPLE_SCHEMA, 1 + settings.get("negatives", 0)),
        "distillation": ("scores", SCORED_SCHEMA, settings.get("documents", 1)),
    }[stage]
    rows = draw_rows(texts, rows_per_step * steps, documents)

    def write(job: Job) -> Mapping[str, Any]:
        with RowWriter(job.folder, schema, rows_per_shard=len(rows)) as writer:
            writer.write(rows)
        return writer.facts

    rows_spec = Spec(kind, stage, {})
    plan = Spec("batches", stage, {"seed": SEED, "batch_size": rows_per_step, "epochs": 1}, {"rows": [rows_spec.name]})
    publish(rows_spec, write)
    publish(plan, batches.make)
    settings = {**settings, "precision": "bf16" if device == "cuda" else "fp32"}
    spec = Spec("models", stage, settings, {"start": [start], "rows": [rows_spec.name], "batches": [plan.name]})

    firsts = pq.read_table(Artifact.open(plan.name).file("plan.parquet"))["start"].to_pylist()
    in_order = [peer_row(stage, row) for first in firsts for row in rows[first : first + rows_per_step]]
    path = Path(f"{stage}.parquet").absolute()
    pq.write_table(pa.Table.from_pylist(in_order), path)
    folder = Artifact.open(start).verified_folder().absolute()
    asked = {"settings": settings, "start": str(folder), "rows": str(path), "batch": rows_per_step, "device": device}
    return Task(spec, documents, asked)


def train_ours(task: Task, threads: int) -> tuple[Measured, Artifact]:
    """Run the command of a study; the model."""
    flags = ["--threads", str(threads), "--device", task.asked["device"]]
    run = measure([sys.executable, "-m", "colbert_zero.training.train", "--spec", task.spec.text, *flags], Path())
    return run, Artifact.open(task.spec.name)


def run_script(name: str, asked: Mapping[str, Any], **variables: str) -> tuple[Measured, Any]:
    """Run a script of this folder, with `variables` in its environment; what it says in the end."""
    script = str(Path(__file__).with_name(name))
    run = measure([sys.executable, script, json.dumps(asked)], Path(), **variables)
    return run, json.loads(run.output.splitlines()[-1])


def train_sentence_transformers(task: Task) -> tuple[Measured, Any]:
    """Train with sentence-transformers 6; the faster of its losses with and without a gradient cache."""
    choices = (False,) if task.asked["settings"]["stage"] == "distillation" else (False, True)
    runs = [
        run_script("train_sentence_transformers.py", {**task.asked, "cached": cached}, PYTHONPATH=str(PEERS))
        for cached in choices
    ]
    return max(runs, key=lambda run: speed_of(run[1], task))


def speed_of(peer: Mapping[str, Any], task: Task) -> float:
    """A peer's rows per second, without its first step."""
    seconds = peer["seconds"][1:]
    return float(task.asked["batch"] * len(seconds) / sum(seconds))


def compare(task: Task, threads: int) -> tuple[float, tuple[object, ...]]:
    """Train with all; how many times faster than PyLate ours is, and a line of the table."""
    our_run, model = train_ours(task, threads)
    pylate_run, pylate = run_script("train_pylate.py", task.asked)
    other_run, other = train_sentence_transformers(task)
    _, limit = run_script("plain_passes.py", task.asked)
    facts = model.facts
    losses = [json.loads(line)["loss"] for line in model.file("losses.jsonl").read_text().splitlines()]
    apart = [abs(our_loss - their_loss) for our_loss, their_loss in zip(losses, pylate["losses"], strict=True)]
    if task.asked["settings"]["precision"] == "fp32" and apart[0] > SAME:
        sys.exit(f"{facts['stage']}: the losses of step 1 are {losses[0]} and, PyLate's, {pylate['losses'][0]}")
    speed, pylate_speed, other_speed = facts["samples_per_second"], speed_of(pylate, task), speed_of(other, task)
    return speed / pylate_speed, (
        facts["stage"],
        f"{facts['steps']} x {task.asked['batch']} x {task.documents}",
        f"{facts['document_tokens'] / (facts['samples'] * task.documents):.0f}",
        f"{speed:.1f}",
        f"{pylate_speed:.1f}",
        f"{speed / pylate_speed:.1f}",
        f"{other_speed:.1f}",
        f"{speed / other_speed:.1f}",
        our_run.resident,
        pylate_run.resident,
        other_run.resident,
        f"{apart[0]:.0e}",
        f"{max(apart):.0e}",
        f"{limit['seconds'] / facts['seconds']:.2f}",
    )


def main() -> None:
    """Measure, print the table and how it stands to the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for stage, (rows, steps) in SIZES.items():
        usual = f"rows per step, and steps ({rows} {steps})"
        parser.add_argument(
            f"--{stage}", type=int, nargs=2, metavar=("ROWS", "STEPS"), default=(rows, steps), help=usual
        )
    parser.add_argument("--stages", nargs="+", choices=SIZES, default=list(SIZES), help="which stages (all)")
    parser.add_argument(
        "--large", type=int, nargs="?", const=LARGE, metavar="ROWS", help=f"only ours, one unsupervised step ({LARGE})"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (2)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (auto)")
    parser.add_argument("--folder", type=work_folder, help="where to work; by default in TMPDIR")
    options = parser.parse_args()
    if any(getattr(options, stage)[1] < 2 for stage in options.stages):
        parser.error("two steps at least, since a peer's first is not counted")
    if not options.large and not PEERS.is_dir():
        parser.error(f"no {PEERS}: `make bench-train` installs what ours is compared with")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    # The libraries of all processes started from here take as many threads as these say.
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, chdir(folder):
        settings = paper_settings()
        sources, base_name = make_sources()
        stage = Stage(**settings["unsupervised"])
        start = make_start(base_name, stage)
        texts = read_texts(sources, load_colbert(Artifact.open(start).verified_folder(), stage.encoding).tokenizer)
        if options.large:
            task = prepare(settings["unsupervised"], (options.large, 1), start, texts, device)
            run, model = train_ours(task, options.threads)
            took = f"{model.facts['seconds']:.0f} s, {run.resident / 1024:.1f} GiB"
            print(f"one step of {options.large:,} rows: {took} (goal: {ROOM} GiB)")
            return
        lines, ratios = [], {}
        for name in options.stages:
            task = prepare(settings[name], tuple(getattr(options, name)), start, texts, device)
            ratios[name], line = compare(task, options.threads)
            lines.append(line)
    speeds = ("ours, rows/s", "PyLate, rows/s", "ratio", "sentence-transformers 6, rows/s", "ratio")
    memory = ("ours, MiB", "PyLate, MiB", "sentence-transformers 6, MiB")
    rest = ("loss 1 differs", "any loss differs", "of the limit")
    header = ("", "steps x rows x documents", "tokens/document", *speeds, *memory, *rest)
    print(table(header, lines))
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.1f} times PyLate's rows/s (goal: {GOALS[name]})")
    print(OTHER_LOSSES)


if __name__ == "__main__":
    main()
