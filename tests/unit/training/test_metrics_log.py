"""The files that show a running training: complete after each step, and continued by the next attempt."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2

from colbert_zero.training.metrics_log import MetricsLog, losses_digest

RECORD = {"step": 3, "source": "first", "loss": 0.5}


def events(folder: Path) -> Iterator[Any]:
    """What the TensorBoard files of a folder say."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            yield event_pb2.Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_the_line_of_a_step_is_there_at_once_and_lines_beyond_the_history_are_not(tmp_path: Path) -> None:
    file = tmp_path / "losses.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "killed": true}\n')
    log = MetricsLog(file, ['{"step": 1}', '{"step": 2}'], None)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
    log.log_step(RECORD)
    log.log_evaluation(3, {"small": 0.5})
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "source": "first", "loss": 0.5}\n'
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["losses.jsonl"]


def test_tensorboard_drops_what_a_killed_attempt_wrote_of_the_steps_from_the_next_one_on(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "losses.jsonl", ["{}", "{}"], tmp_path / "tensorboard")
    log.log_step(RECORD)
    log.log_evaluation(3, {"small": 0.25})
    log.close()
    found = list(events(tmp_path / "tensorboard"))
    starts = [event.step for event in found if event.session_log.status == event_pb2.SessionLog.START]
    assert starts == [3]
    values = [(value.tag, value.simple_value, event.step) for event in found for value in event.summary.value]
    assert values == [("training/loss", 0.5, 3), ("evaluation/small", 0.25, 3)]


def test_the_digest_is_of_the_published_file() -> None:
    # printf '{"step": 1}\n{"step": 2}\n' | sha256sum
    expected = "44e3c179fe43fea2dfc048e00fc73c34dee08416454c30c6a7f3294adb26557b"
    assert losses_digest(['{"step": 1}', '{"step": 2}']) == expected
