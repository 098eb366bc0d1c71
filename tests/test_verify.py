"""The command that verifies rows of a file: every row, in order, whatever is in it and however often it is killed."""

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import verdict_files
from rlvr import errors
from rlvr.verifiers import rows

ROOT = Path(__file__).resolve().parent.parent
MISBEHAVING = "misbehaving:run"
BASIC = ("line", "score", "status", "detail", "seconds", "strict", "lenient", "parts")


def start(source, output, *flags, verifier=MISBEHAVING):
    command = [sys.executable, "-m", "launch.verify", f"--verifier={verifier}", f"--input={source}"]
    return subprocess.Popen(
        [*command, f"--output={output}", *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests" / "verifiers")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def verify(source, output, *flags, verifier=MISBEHAVING):
    """Returns (the summary, the verdicts) of a run that must succeed."""
    process = start(source, output, *flags, verifier=verifier)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and err == "", err
    return json.loads(out.splitlines()[-1].removeprefix("RESULT ")), read(output)


def refused(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.startswith("error: ") and "Traceback" not in err + out
    return err


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, *lines):
    texts = (line if isinstance(line, (bytes, str)) else json.dumps(line) for line in lines)
    path.write_bytes(b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in texts))
    return path


def test_every_row_gets_a_verdict_that_says_what_is_wrong_with_it(tmp_path):
    lines = {
        '{"completion": "4", "gold": "4", "id": "first"}': ("correct", ""),
        '{"completion": "it is 5", "gold": ["4", "5"], "id": 2, "answer_format": "tag"}': ("unparsed", ""),
        '{"completion": "4", "gold": "5"': ("error", "not valid JSON"),
        b'{"completion": "\xff", "gold": "5"}': ("error", "UTF-8"),
        "[" * 100_000: ("error", "not valid JSON"),
        "": ("error", "a blank line"),
        "[1]": ("error", "a JSON object is wanted, not [1]"),
        '{"gold": "4"}': ("error", "the field 'completion' is missing"),
        '{"completion": null, "gold": "4"}': ("error", "completion=None must be a text"),
        '{"completion": "4", "golden": "4"}': ("error", "did you mean 'golden'"),
        '{"completion": "4", "gold": 4}': ("error", "gold=4 must be a text"),
        '{"completion": "4", "gold": [4]}': ("error", "gold=[4] must be a list of at least one text"),
        '{"completion": "4", "gold": "four"}': ("error", "'four' is not a number"),
        '{"completion": "\\ud800 4", "gold": "4", "id": [1], "answer_format": "tag"}': ("unparsed", ""),
    }
    source = write(tmp_path / "rows.jsonl", *lines, "", " ")  # blank lines at the end are not rows
    summary, verdicts = verify(source, tmp_path / "out" / "v.jsonl", verifier="numeric")
    assert [v["line"] for v in verdicts] == list(range(1, len(lines) + 1))
    for verdict, (status, said) in zip(verdicts, lines.values(), strict=True):
        assert verdict["status"] == status and said in verdict["detail"], verdict
        assert status != "error" or verdict["detail"].startswith(f"line {verdict['line']}: ")
        assert {name for name in verdict if name != "id"} == set(BASIC)
        assert (verdict["score"] is None) == (verdict["strict"] is None) == (status == "error")
    assert [v.get("id") for v in verdicts] == ["first", 2] + [None] * 12
    assert verdicts[1]["lenient"] == 1 and verdicts[1]["strict"] == 0
    assert summary["statuses"] == {"correct": 1, "unparsed": 2, "error": 11}
    assert (summary["rows"], summary["mean_score"], summary["mean_lenient"]) == (14, 1 / 3, 1.0)


def test_hangs_and_deaths_cost_their_own_row_only(tmp_path):
    actions = [f"say:{n}" for n in range(200)]
    actions[0], actions[50], actions[51], actions[120] = "sleep:60", "exit:3", "regex:", "allocate:9"
    source = tmp_path / "rows.jsonl.gz"
    with gzip.open(source, "wt") as file:
        file.writelines(json.dumps({"completion": action}) + "\n" for action in actions)
    began = time.monotonic()
    summary, verdicts = verify(source, tmp_path / "v.jsonl", "--timeout_s=0.5", "--workers=2")
    assert time.monotonic() - began < 30
    special = {0: "timeout", 50: "error", 51: "timeout", 120: "error"}
    for n, verdict in enumerate(verdicts):
        assert verdict["status"] == special.get(n, "correct") and verdict["seconds"] < 1.5
        assert n in special or verdict["detail"] == str(n)
    assert verdicts[0]["score"] == 0 and verdicts[50]["score"] is None
    assert summary["statuses"] == {"correct": 196, "timeout": 2, "error": 2}


def test_a_killed_command_goes_on(tmp_path):
    source = write(tmp_path / "rows.jsonl", *({"completion": f"sleep:{0.02 + n / 1e5}"} for n in range(150)))
    output = tmp_path / "v.jsonl"
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = len(read(output)) if output.exists() else 0
        process = start(source, output)
        while not output.exists() or output.read_bytes().count(b"\n") < before + 10:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        if number == signal.SIGTERM:
            assert "is being written by another process" in refused(source, output)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        if number == signal.SIGTERM:
            assert process.returncode == 130 and "of 150 rows have verdicts" in out and err == ""
    done = read(output)
    assert 20 <= len(done) < 150
    with output.open("ab") as file:
        file.write(b'{"line": 999, "scor')  # as a kill in the middle of a write leaves it
    summary, verdicts = verify(source, output)
    assert verdicts[: len(done)] == done and [v["line"] for v in verdicts] == list(range(1, 151))
    assert summary["rows"] == 150 and summary["statuses"] == {"correct": 150}
    again, unchanged = verify(source, output)
    assert again["statuses"] == summary["statuses"] and unchanged == verdicts


def test_programs_run_in_a_sandbox_that_is_named(tmp_path):
    source = write(tmp_path / "rows.jsonl", {"completion": "def f(x):\n    return x", "tests": "assert f(1) == 1"})
    process = start(source, tmp_path / "v.jsonl", verifier="code")
    out, err = process.communicate(timeout=120)
    if "cannot be run safely here" in err:
        pytest.skip(err)
    assert process.returncode == 0 and out.startswith(("sandbox: bubblewrap", "sandbox: landlock")), out + err
    assert [verdict["status"] for verdict in read(tmp_path / "v.jsonl")] == ["correct"]
    assert "unsafe was False, is True" in refused(source, tmp_path / "v.jsonl", "--unsafe", verifier="code")


def test_what_belongs_to_something_else_is_refused(tmp_path):
    source = write(tmp_path / "rows.jsonl", {"completion": "4", "gold": "4"})
    output = tmp_path / "v.jsonl"
    output.touch()  # an empty file is nobody's
    verify(source, output, verifier="numeric")
    kept = output.read_bytes()
    assert "verifier was 'numeric', is 'exact'" in refused(source, output, verifier="exact")
    assert "timeout_s was 5.0, is 2.0" in refused(source, output, "--timeout_s=2", verifier="numeric")
    other = write(tmp_path / "other.jsonl", {"completion": "4", "gold": "5"})
    assert "input_sha256 was" in refused(other, output, verifier="numeric")
    assert output.read_bytes() == kept
    assert "content of unknown origin" in refused(source, other, verifier="numeric")
    assert "is the input" in refused(source, source, verifier="numeric")
    assert "did you mean 'numeric'" in refused(source, output, verifier="numerik")
    assert "verifiers.workers=0" in refused(source, output, "--workers=0")
    assert "No module named 'nowhere'" in refused(source, tmp_path / "w.jsonl", verifier="nowhere:run")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "has no rows"), (b"\n \n", "has no rows"), (b"\x1f\x8bgarbage", "cannot be read"), (None, "no such file")],
)
def test_inputs_that_hold_nothing(tmp_path, content, said):
    path = tmp_path / "rows.jsonl.gz"
    if content is not None:
        path.write_bytes(gzip.compress(content) if b"garbage" not in content else content)
    with pytest.raises(errors.DataError, match=said):
        verdict_files.Input(path)


def test_a_line_too_long_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict_files, "LONGEST", 100)
    source = verdict_files.Input(write(tmp_path / "r.jsonl", "a" * 99, "b" * 100, "c" * 10_000, "d"))
    assert [(line.number, line.size, line.text is None) for line in source.lines(skip=1)] == [
        (2, 101, True),
        (3, 10_001, True),
        (4, 2, False),
    ]
    assert source.rows == 4 and source.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "line", [b"not a verdict\n", b"{}\n", b'{"line": 2, "status": "wrong", "score": 0, "lenient": 0, "seconds": 0}\n']
)
def test_a_damaged_output_is_named(tmp_path, line):
    source = verdict_files.Input(write(tmp_path / "rows.jsonl", {"completion": "4"}))
    with verdict_files.Output(tmp_path / "v.jsonl", {"verifier": "x"}, source):
        (tmp_path / "v.jsonl").write_bytes(line)
    with pytest.raises(errors.DataError, match=r"v\.jsonl, line 1: .*repair or remove"):
        verdict_files.Output(tmp_path / "v.jsonl", {"verifier": "x"}, source)


def test_the_payload_is_every_other_field():
    row = {"completion": "c", "gold": "g", "id": 5, "tests": ["assert True"], "answer_format": "tag"}
    item = rows.parse_item(json.dumps(row).encode(), "code")
    assert (item.completion, item.task.answer, item.id) == ("c", "g", 5)
    assert item.task.payload == {"id": 5, "tests": ["assert True"], "answer_format": "tag"}
    assert rows.parse_item(b'\xef\xbb\xbf{"completion": ""}', "format").task.answer == ""
