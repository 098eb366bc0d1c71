"""The sinks: resume, torn lines, a full disk, non-finite numbers, TensorBoard records, the two displays."""

import errno
import io
import json
import logging
import math
import os
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from rlvr import errors, writers
from tests import tiny


def open_writer(workdir, resume_step=0, total_steps=10, stream=None):
    return writers.MetricsWriter(
        workdir, resume_step=resume_step, total_steps=total_steps, stream=stream or io.StringIO()
    )


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def read_events(workdir):
    """Reads every event file as TensorBoard does, checking both checksums of each record."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
            body, data = data[12 : 12 + length], data[12 + length :]
            assert struct.unpack("<I", data[:4])[0] == masked_crc32c(body)
            events.append(Event.FromString(body))
            data = data[4:]
    return events


def test_metrics_are_lines_and_events(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(0, {"phase": "rl", "reward/mean": np.float32(0.5), "optimizer/skipped": jnp.int32(1)})
        writer.write(1, {"phase": "rl", "my/own": 2})
        # Flushed: readable while the writer is open.
        assert steps(tmp_path / "metrics.jsonl") == [0, 1]
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first == {"step": 0, "phase": "rl", "reward/mean": 0.5, "optimizer/skipped": 1}
    scalars = {
        (e.step, v.tag): v.simple_value for e in read_events(tmp_path) if e.HasField("summary") for v in e.summary.value
    }
    assert scalars == {(0, "reward/mean"): 0.5, (0, "optimizer/skipped"): 1.0, (1, "my/own"): 2.0}


def test_what_is_committed_is_closed_and_goes_on(tmp_path):
    with open_writer(tmp_path) as writer:
        for step in range(3):
            writer.write(step, {"phase": "rl", "reward/mean": 0.5})
            writer.write_samples(step, [{}])
            writer.commit()
            assert not tiny.open_files(tmp_path)
    assert steps(tmp_path / "metrics.jsonl") == steps(tmp_path / "samples.jsonl") == [0, 1, 2]
    assert len([event for event in read_events(tmp_path) if event.HasField("summary")]) == 3


def test_killed_run_has_one_line_a_step(tmp_path):
    metrics, samples = tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl"
    with open_writer(tmp_path) as writer:
        for step in range(6):
            writer.write(step, {"reward/mean": 0.1 * step})
            writer.write_samples(step, [{"prompt": "a"}, {"prompt": "b"}])
    for path in (metrics, samples):  # the kill came in the middle of a line
        path.write_bytes(path.read_bytes() + b'{"step": 6, "rew')
    with open_writer(tmp_path, resume_step=4) as writer:
        for step in range(4, 10):
            writer.write(step, {"reward/mean": -1.0 * step})
            writer.write_samples(step, [{"prompt": "c"}])
    assert steps(metrics) == list(range(10))
    rewards = [json.loads(line)["reward/mean"] for line in metrics.read_text().splitlines()]
    assert rewards == [0.1 * step for step in range(4)] + [-1.0 * step for step in range(4, 10)]
    assert steps(samples) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert not list(tmp_path.glob("*.tmp"))
    starts = [e.step for e in read_events(tmp_path) if e.HasField("session_log")]
    assert starts == [0, 4]  # TensorBoard hides the first process's events from step 4 on


def test_last_line_without_newline_is_kept_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}')
    with open_writer(tmp_path, resume_step=2) as writer:
        writer.write(2, {})
    assert steps(path) == [0, 1, 2]


@pytest.mark.parametrize("line", [b'{"step": 1, "a\n', b"\x00\xff\n", b"[1]\n"])
def test_damage_inside_a_file_is_refused(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 0}\n' + line + b'{"step": 2}\n'
    path.write_bytes(content)
    with pytest.raises(errors.WorkdirError, match=r"metrics\.jsonl: line 2"):
        open_writer(tmp_path, resume_step=3)
    assert path.read_bytes() == content


def test_kill_while_rewriting_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}\n')

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        writers.drop_steps_from(path, 1)
    monkeypatch.undo()
    assert steps(path) == [0, 1]
    writers.drop_steps_from(path, 1)
    assert steps(path) == [0]


def test_nonfinite_numbers_stay_readable(tmp_path):
    with open_writer(tmp_path) as writer:
        writer.write(0, {"a": math.nan, "b": np.float32(-np.inf), "c": 1.5})
        writer.write_samples(0, [{"parts": {"strict": math.inf}, "tokens": [1, 2]}])

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 0, "a": None, "b": None, "c": 1.5, "nonfinite": {"a": "nan", "b": "-inf"}}
    sample = json.loads((tmp_path / "samples.jsonl").read_text(), parse_constant=refuse)
    assert sample["parts"] == {"strict": None} and sample["nonfinite"] == {"parts/strict": "inf"}
    values = {v.tag: v.simple_value for e in read_events(tmp_path) for v in e.summary.value}
    assert math.isnan(values["a"]) and values["b"] == -math.inf


def test_any_text_is_one_line(tmp_path):
    text = "a\nb\r\u2028\x00\ud800</script>é"
    with open_writer(tmp_path) as writer:
        writer.write_samples(3, [{"completion": text}])
    (row,) = writers.read_rows(tmp_path / "samples.jsonl")
    assert row == {"step": 3, "completion": text}
    assert (tmp_path / "samples.jsonl").read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("name", ["step", "nonfinite"])
def test_reserved_names(tmp_path, name):
    with open_writer(tmp_path) as writer, pytest.raises(ValueError, match=f"'{name}' is reserved"):
        writer.write(0, {name: 1})


def test_full_disk_loses_lines_not_the_run(tmp_path, monkeypatch, caplog):
    real_write, full = os.write, [False]

    def write(descriptor, data):
        if full[0]:
            real_write(descriptor, data[:5])  # a full disk takes what still fits
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    monkeypatch.setattr(writers.os, "write", write)
    with caplog.at_level(logging.WARNING), open_writer(tmp_path) as writer:
        for step in range(6):
            full[0] = step in (2, 3)
            writer.write(step, {"reward/mean": 1.0})
            writer.write_samples(step, [{"prompt": "a"}])
    assert steps(tmp_path / "metrics.jsonl") == [0, 1, 4, 5]
    assert steps(tmp_path / "samples.jsonl") == [0, 1, 4, 5]
    assert [e.step for e in read_events(tmp_path) if e.HasField("summary")] == [0, 1, 4, 5]
    first, last = [record.getMessage() for record in caplog.records]
    assert "disk full while writing metrics.jsonl" in first and "the run goes on" in first
    assert "6 records" in last  # 2 steps x (metrics, TensorBoard, samples)


def test_other_write_errors_are_not_swallowed(tmp_path, monkeypatch):
    def write(*_):
        raise OSError(errno.EIO, "Input/output error")

    with open_writer(tmp_path) as writer:
        monkeypatch.setattr(writers.os, "write", write)
        with pytest.raises(OSError, match="Input/output"):
            writer.write(0, {})


def test_plain_display(tmp_path, monkeypatch):
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(writers.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    rl = {
        "phase": "rl",
        "reward/mean": 0.534,
        "accuracy/strict": 0.61,
        "rollout/tokens_mean": 4.21,
        "rollout/tokens_per_s": 812.4,
    }
    with open_writer(tmp_path, total_steps=42, stream=stream) as writer:
        writer.write(0, {"phase": "warm_start", "loss/supervised": 1.23456})
        writer.write(1, rl | {"eval/add/accuracy": 0.5, "eval/mul/accuracy": 0.66, "eval/add/accuracy_lenient": 1.0})
        writer.write(2, rl)
        writer.write(3, {"phase": "rl", "unknown": "text"})
    tail = "reward 0.53 accuracy 0.61 (held-out 0.58) length 4.2 tok/s 812"
    assert stream.getvalue().splitlines() == [
        "step 1/42 warm start loss 1.235",
        f"step 2/42 {tail}",  # a new phase: its pace is not known yet
        f"step 3/42 {tail} left 3m15s",  # 39 steps of 5 s
        "step 4/42 held-out 0.58 left 3m10s",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_live_display(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with open_writer(tmp_path, stream=stream) as writer:
        for step in range(10):
            writer.write(step, {"reward/mean": 0.25, "eval/add/accuracy": 0.5})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    first, second = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-2:]
    assert first.startswith("step 10/10 ━━━") and "reward" not in first
    assert second.startswith("reward 0.25 held-out 0.50 left 0s")
    assert "\x1b[1A" in stream.getvalue()  # redrawn in place
    assert stream.getvalue().count("\x1b[?25h") == 1  # the cursor is given back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (190, "3m10s"), (3600, "1h00m"), (7500, "2h05m")],
)
def test_format_duration(seconds, text):
    assert writers.format_duration(seconds) == text
