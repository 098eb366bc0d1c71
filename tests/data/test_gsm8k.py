"""GSM8K through TFDS: rows as in the file, nothing stale, nothing malformed, no TensorFlow."""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest

from rlvr import errors
from rlvr.data import config, gsm8k, sources

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "gsm8k"
TRAIN = [
    {
        "id": "a",
        "question": "Tom has 4 boxes of 250 nails — how many?",
        "answer": "4*250 = <<4*250=1000>>1000\n#### 1,000",
    },
    {"question": "What is 1 - 3?", "answer": "It is <<1-3=-2>>-2.\nSo -2.\n#### -2"},
]
TEST = [{"question": "Half of 5?", "answer": "5/2=<<5/2=2.5>>2.5\n#### 2.5"}]


def write(folder, train=TRAIN, test=TEST, suffix=".jsonl"):
    folder.mkdir(exist_ok=True)
    for name, data in (("train", train), ("test", test)):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in data)
        opened = gzip.open if suffix.endswith(".gz") else open
        with opened(folder / (name + suffix), "wt", encoding="utf-8") as file:
            file.write(text)
    return folder


def make(folder, cache, split="train", **kwargs):
    kwargs = {"options": {"cache": str(cache)}} | kwargs
    task_set = config.TaskSetConfig(source="gsm8k", path=str(folder), **kwargs)
    return sources.make_source(task_set, split, "data.tasks[0]")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_rows_come_out_as_in_the_file(tmp_path, suffix):
    folder = write(tmp_path / "rows", suffix=suffix)
    before = sorted(folder.iterdir())
    train = make(folder, tmp_path / "cache", answer_format="boxed")
    assert [t.prompt for t in train] == [row["question"] for row in TRAIN]
    assert [t.answer for t in train] == ["1000", "-2"]
    assert train[0].demonstration == "4*250 = 1000\n\\boxed{1000}"
    assert train[1].demonstration == "It is -2.\nSo -2.\n\\boxed{-2}"
    assert {t.verifier for t in train} == {"numeric"} and {t.task for t in train} == {"gsm8k"}
    assert [t.answer for t in make(folder, tmp_path / "cache", "eval")] == ["2.5"]
    assert len(make(folder, tmp_path / "cache", train_size=1)) == 1
    assert sorted(folder.iterdir()) == before
    assert "tensorflow" not in sys.modules


def test_the_order_is_that_of_the_file(tmp_path):
    rows = [{"question": f"Is it {i}?", "answer": f"#### {i}"} for i in range(50)]
    made = make(write(tmp_path / "rows", train=rows), tmp_path / "cache")
    assert [int(t.answer) for t in made] == list(range(50))


def test_changed_files_are_never_served_stale(tmp_path):
    folder = write(tmp_path / "rows")
    first = make(folder, tmp_path / "cache")
    changed = [dict(TRAIN[0], question="Changed?"), TRAIN[1]]
    write(folder, train=changed)
    assert make(folder, tmp_path / "cache")[0].prompt == "Changed?"
    assert first[0].prompt == TRAIN[0]["question"]
    write(folder)
    assert make(folder, tmp_path / "cache")[0].prompt == TRAIN[0]["question"]
    assert len(list((tmp_path / "cache").iterdir())) == 2  # one for each content, and no leftovers


def test_concurrent_preparation_leaves_one_whole_copy(tmp_path):
    folder, cache = write(tmp_path / "rows"), tmp_path / "cache"
    code = (
        "import pathlib, sys; from tests.data import test_gsm8k as t;"
        "print(ascii([s.prompt for s in t.make(*map(pathlib.Path, sys.argv[1:]))]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(cache)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        assert run.communicate()[0].splitlines()[-1] == ascii([row["question"] for row in TRAIN])
    assert len(list(cache.iterdir())) == 1


def test_who_loses_the_race_uses_the_winners_copy(tmp_path, monkeypatch):
    folder, cache = write(tmp_path / "rows"), tmp_path / "cache"
    make(folder, cache)
    (prepared,) = cache.iterdir()
    gsm8k._prepare({"train": TRAIN[1:], "test": TEST}, prepared)
    assert [p.name for p in cache.iterdir()] == [prepared.name]
    assert len(make(folder, cache)) == 2


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "q"}, r"train.jsonl, line 3: the field 'answer' is missing \(the row has: question\)"),
        ({"question": "q", "anwser": "1"}, "the field 'answer' is missing; did you mean 'anwser'"),
        ({"question": 3, "answer": "#### 1"}, "line 3: the field 'question' must be a text, not 3"),
        ({"question": " ", "answer": "#### 1"}, "line 3: the field 'question' is blank"),
        ({"question": "q", "answer": "so 5"}, r"line 3: the field 'answer' does not end in '#### N'"),
        ({"question": "q", "answer": "#### five"}, "line 3: the field 'answer' does not end"),
        ('{"question": "q",', "line 3: not valid JSON"),
        ("[1]", r"line 3: a JSON object is wanted, not \[1\]"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, message):
    with pytest.raises(errors.DataError, match=message):
        make(write(tmp_path / "rows", train=[*TRAIN, row]), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(errors.DataError, match="nowhere: no such folder"):
        make(tmp_path / "nowhere", tmp_path / "cache")
    folder = write(tmp_path / "rows")
    with pytest.raises(errors.ConfigError, match="train_size=3 is more than there are: 2"):
        make(folder, tmp_path / "cache", train_size=3)
    (tmp_path / "file").touch()
    with pytest.raises(errors.ConfigError, match=r"cache of prepared data .*file.* cannot be written"):
        make(folder, tmp_path / "file" / "cache")
    (folder / "test.jsonl").rename(folder / "test.jsonl.gz")
    with pytest.raises(errors.DataError, match=r"test.jsonl.gz: cannot be read: Not a gzipped file"):
        make(folder, tmp_path / "cache")
    (folder / "test.jsonl.gz").unlink()
    with pytest.raises(errors.DataError, match=r"has neither test.jsonl nor test.jsonl.gz"):
        make(folder, tmp_path / "cache")
    write(folder, test=[])
    with pytest.raises(errors.DataError, match=r"test.jsonl: has no rows"):
        make(folder, tmp_path / "cache")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the GSM8K rows are not here")
def test_the_real_rows(tmp_path):
    for split, name in (("train", "train"), ("eval", "test")):
        with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            wanted = [json.loads(line) for line in file]
        tasks = make(SHARED, tmp_path / "cache", split)
        assert len(tasks) == len(wanted) == {"train": 7473, "eval": 1119}[split]
        assert [t.prompt for t in tasks] == [row["question"] for row in wanted]
        assert [t.answer for t in tasks] == [row["final_answer"] for row in wanted]
        assert not any("<<" in t.demonstration for t in tasks)
