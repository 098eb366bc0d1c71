"""The user's own rows: every field arrives, and a bad one is named by file, line and field."""

import json

import pytest

from rlvr import errors
from rlvr.data import config, sources, tasks

ROW = {"prompt": "2+2?", "answer": "4"}
EVAL_ROW = {"prompt": "Capital of Peru?", "answer": "Lima"}


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")


def make(path, split="train", **kwargs):
    task_set = config.TaskSetConfig(source="jsonl", name="mine", path=str(path), **kwargs)
    return sources.make_source(task_set, split, "data.tasks[0]")


def test_every_field_arrives(tmp_path):
    full = {
        "prompt": "Sag\u2028 hallo ✓",  # a line separator that is not the end of a row
        "answer": "hallo",
        "verifier": "my.module:check",
        "task": "greeting",
        "system": "Deutsch.",
        "demonstration": "hallo!",
        "payload": {"answer_format": "tag", "tests": [1]},
        "id": 7,
    }
    (tmp_path / "train.jsonl").write_text(
        json.dumps(full, ensure_ascii=False) + "\n\n" + json.dumps(ROW), encoding="utf-8"
    )
    first, second = make(tmp_path, system="Short.", instruction="Now.")
    assert (first.prompt, first.task, first.system) == ("Sag\u2028 hallo ✓\nNow.", "greeting", "Deutsch.")
    assert (first.verifier, first.demonstration) == ("my.module:check", "hallo!")
    assert first.payload == {"answer_format": "tag", "tests": [1], "id": 7}
    assert first.prompt_id == tasks.compute_prompt_id("greeting", first.prompt)
    assert (second.task, second.system, second.verifier) == ("mine", "Short.", "numeric")
    assert second.payload == {"answer_format": "bare"}


@pytest.mark.parametrize(
    "answer, verifier",
    [
        *[(number, "numeric") for number in ("4", "-1,000.5", "1,234,567", "12345")],
        *[(text, "exact") for text in ("Lima", "4 apples", "3,4", "1,2,3", "12,5", "12345,678", "1,0000")],
    ],
)
def test_the_verifier_follows_the_answer(tmp_path, answer, verifier):
    write(tmp_path / "train.jsonl", ROW | {"answer": answer})
    assert make(tmp_path)[0].verifier == verifier


def test_splits_and_single_files(tmp_path):
    write(tmp_path / "train.jsonl", ROW)
    write(tmp_path / "eval.jsonl", EVAL_ROW)
    assert make(tmp_path, "eval", eval_size=1)[0].prompt == EVAL_ROW["prompt"]
    assert make(tmp_path / "train.jsonl")[0].prompt == ROW["prompt"]
    assert make(tmp_path / "eval.jsonl", "eval", eval_size=1, weight=0)[0].prompt == EVAL_ROW["prompt"]
    with pytest.raises(errors.ConfigError, match="is one file, but the set is both trained on and evaluated"):
        make(tmp_path / "train.jsonl", "eval", eval_size=1)
    with pytest.raises(errors.ConfigError, match="eval_size=2 is more than there are: 1"):
        make(tmp_path, "eval", eval_size=2)


def test_evaluation_prompts_must_not_be_trained_on(tmp_path):
    write(tmp_path / "train.jsonl", ROW, EVAL_ROW)
    write(tmp_path / "eval.jsonl", EVAL_ROW)
    with pytest.raises(errors.DataError, match=r"1 evaluation prompts are trained on as well.*Capital of Peru"):
        make(tmp_path, "eval", eval_size=1)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "x"}, r"train.jsonl, line 3: the field 'answer' is missing"),
        (ROW | {"answer": 4}, "line 3: the field 'answer' must be a text, not 4"),
        (ROW | {"demonstration": "so \ud83d"}, "line 3: the field 'demonstration' holds half of a surrogate pair"),
        (ROW | {"prompt": ""}, "line 3: the field 'prompt' is blank"),
        (
            ROW | {"demonstraton": "4"},
            "line 3: the field 'demonstraton' is not known; did you mean 'demonstration'",
        ),
        (ROW | {"payload": []}, r"line 3: the field 'payload' must be an object, not \[\]"),
        (ROW | {"payload": {"answer_format": "xml"}}, "line 3: the field 'payload' has answer_format='xml'"),
        (ROW | {"payload": {"answer_format": ["x"]}}, r"line 3: the field 'payload' has answer_format=\['x'\]"),
        ('{"prompt": ', "line 3: not valid JSON"),
        ("null", "line 3: a JSON object is wanted, not None"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, message):
    write(tmp_path / "train.jsonl", ROW, "", row)
    with pytest.raises(errors.DataError, match=message):
        make(tmp_path)


def test_not_utf8(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"prompt": "\xff", "answer": "1"}\n')
    with pytest.raises(errors.DataError, match="line 1: not valid JSON in UTF-8"):
        make(tmp_path)


def test_options_are_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"options\['verifier'\] is not known \(accepted: none\)"):
        make(tmp_path, options={"verifier": "exact"})


def test_verifiers_that_compare_with_nothing_need_no_answer(tmp_path):
    row = {"prompt": "Say it as JSON.", "verifier": "json_schema", "payload": {"schema": {"type": "object"}}}
    write(tmp_path / "train.jsonl", row)
    (task,) = make(tmp_path)
    assert (task.answer, task.verifier, task.payload["schema"]) == ("", "json_schema", {"type": "object"})
    write(tmp_path / "train.jsonl", row | {"verifier": "math"})
    with pytest.raises(errors.DataError, match="the field 'answer' is missing"):
        make(tmp_path)
