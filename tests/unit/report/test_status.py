"""What `colbert-zero status` says of what runs, of what was interrupted, and of what waits."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from colbert_zero.cli import main
from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import CONFIG_FILE
from colbert_zero.graph.console import UserError
from colbert_zero.graph.locks import acquire_lock, look_at_lock
from colbert_zero.graph.study import Study
from colbert_zero.machine.pieces import Part
from colbert_zero.report.activity import describe_begun
from colbert_zero.training import train
from own_study import CONFIG, write_data
from recorded import record, record_attempts
from tiny_stages import job, model_spec

NOW = {"started": "2026-01-01T10:00:00+00:00", "host": "n2", "end": "killed"}


def describe(spec: Spec) -> str:
    return describe_begun(spec)


def lock_of(spec: Spec) -> Path:
    return spec.state.with_name(f"{spec.state.name}.lock")


def make_old(folder: Path) -> None:
    for path in [*folder.glob("*"), folder]:
        os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(CONFIG))
    return Study(CONFIG, Path())


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["status"]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_training_says_where_it_is_while_it_runs_and_where_it_goes_on_once_it_was_stopped(
    modernbert: Path, study: Path
) -> None:
    spec = model_spec(modernbert, "unsupervised")
    seen: list[str] = []

    def stop_at_five(step: int) -> bool:
        seen.append(describe(spec))
        return step == 5

    with acquire_lock(lock_of(spec), "training"), pytest.raises(UserError, match="stopped at step 5"):
        train.train(job(spec, Path("out")), stop_at_five)
    host = re.escape(socket.gethostname())
    assert re.fullmatch(rf"running on {host}: step 1 of 8, loss \d+\.\d{{4}}, [\d.]+ rows/s, .* left", seen[0])
    record_attempts(spec, NOW | {"ended": "2026-01-01T11:30:00+00:00", "end": "stopped at step 5 of 8"})
    assert re.fullmatch(
        r"interrupted after step 5 of 8 at 2026-01-01 \d\d:\d\d, resumes from step 5: stopped at step 5 of 8",
        describe(spec),
    )


def test_a_lock_is_looked_at_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert look_at_lock(path) == (False, "")
    with acquire_lock(path, "x"):
        text = path.read_text()
        assert look_at_lock(path) == (True, text)
    assert look_at_lock(path) == (False, text), "who held it last"
    acquire_lock(path, "x").close()
    path.unlink()
    path.symlink_to("elsewhere")
    assert look_at_lock(path) == (False, "")


def test_a_step_on_another_node_is_not_taken_for_dead(own: Study) -> None:
    """Where locks do not reach other nodes, a lock that is held there seems free."""
    spec = next(spec for spec in own.specs.values() if spec.kind == "models")
    record_attempts(spec, NOW)
    lock_of(spec).write_text("process 12 on n2, SLURM job 17")
    assert describe(spec).startswith("seems to be running on n2, job 17, for ")
    make_old(spec.state)
    assert re.fullmatch(r"interrupted at 2023-11-1\d \d\d:\d\d", describe(spec)), "it has written nothing for long"
    record_attempts(spec, NOW | {"ended": "2026-01-01T10:30:00+00:00", "end": "OSError: full"})
    assert re.fullmatch(r"interrupted at 2026-01-01 \d\d:\d\d: OSError: full", describe(spec)), "it said how it ended"


def test_work_in_pieces_says_how_much_of_them_is_done(own: Study) -> None:
    shards = next(spec for spec in own.specs.values() if spec.kind == "shards")
    for name, unit in (("files", "files of x read"), ("shards", "shards of x written")):
        Part(shards.state / name, 3, unit, lambda number, _: {}).make(slice(0, 3, 2) if name == "files" else slice(1))
    (shards.state / "files" / ".000001-x").mkdir()
    last = r"last written to at .*: 2 of 3 files of x read, 1 of 3 shards of x written"
    assert re.fullmatch(last, describe(shards))
    run = Spec("runs", "colbert.mine", {}, {})
    record_attempts(run, NOW)
    Part(run.state / "queries", 5, "batches of 64 queries searched", lambda number, _: {}).make(slice(3))
    with acquire_lock(lock_of(run), "searching"):
        assert describe(run).endswith(": 3 of 5 batches of 64 queries searched")


def test_what_waits_says_for_what_the_nearest_first(own: Study, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = (row for row in own.rows if row.name == "all")
    unsupervised = row.stages[0]
    first, second, *_ = lines(capsys)
    assert re.split(r"  +", first)[:3] == ["all", "unsupervised", unsupervised.key]
    assert re.search(
        r"  missing  results/models/\S+ +waits for bases/random.small-\w+, shards/\w+-\w+ and \d+ more$", first
    )
    assert f"waits for {unsupervised.name}, negatives/" in second
    for name in unsupervised.input_names:
        record(own.spec_of(name[-12:]))
    first, second, *_ = lines(capsys)
    assert first.endswith("waits for nothing: run snakemake")
    record(unsupervised)
    first, *_, last = lines(capsys)
    assert re.search(r"  done     results/models/\S+$", first)
    assert last == f"{1 + len(unsupervised.input_names)} of {len(own.specs)} artifacts of study own are there"


def test_other_steps_that_have_begun_have_lines_of_their_own(own: Study, capsys: pytest.CaptureFixture[str]) -> None:
    negatives = next(spec for spec in own.specs.values() if spec.kind == "negatives")
    record_attempts(negatives, NOW | {"host": socket.gethostname()})
    with acquire_lock(lock_of(negatives), "filtering"):
        before_last = lines(capsys)[-2]
    assert before_last.startswith(f"{negatives.name}  begun  running on {socket.gethostname()}, for ")
    assert before_last.endswith("  for all")


def test_looking_imports_nothing_heavy(own: Study) -> None:
    code = "import sys; from colbert_zero.cli import main; assert main(sys.argv[1:]) == 0; print(*sys.modules)"
    for command in ("status", "plan", "ledger"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.splitlines()[-1].split())
        assert not loaded & {"torch", "numpy", "pyarrow", "matplotlib", "transformers", "snakemake"}, command
