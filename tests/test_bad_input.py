"""What a user sees of a mistake: exit status 1, one clear line, no traceback, and nothing computed before."""

import functools
import json
import os
import shutil

import pytest

from launch import cli
from rlvr import errors, workdir
from rlvr.config import config_hash, to_dict
from rlvr.data.config import TaskSetConfig
from rlvr.trainer import train
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes

ROW = {"prompt": "1+2=", "answer": "3", "demonstration": "3"}


def write_rows(folder, *rows, name="train"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_damaged_policy(folder):
    """A policy folder (of the reference run) whose parameters are cut short."""
    reference = tiny.reference_run()
    folder.mkdir()
    shutil.copy(reference / "policy.json", folder)
    shutil.copytree(reference / "tokenizer", folder / "tokenizer")
    shutil.copytree(reference / "start", folder / "params")
    for path in (folder / "params").rglob("*"):
        if path.is_file() and "d" in path.parts and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(config, **changes):
    """Returns the config with fields set by their dotted names, dots written as two underscores."""
    for name, value in changes.items():
        *path, last = name.split("__")
        setattr(functools.reduce(getattr, path, config), last, value)
    return config


@pytest.mark.parametrize(
    ("name", "arguments", "devices", "message"),
    [
        (
            "unknown_field",
            "--config.objective.clip_hgh=0.3",
            1,
            "error: the config has no field 'objective.clip_hgh'; did you mean --config.objective.clip_high?",
        ),
        ("bucket", "--workdir=gs://bucket/run", 1, "gs:// is no folder of this machine: mount the bucket (gcsfuse"),
        ("mistyped_value", "--config.objective.clip_high=lots", 1, "--config.objective.clip_high=lots: "),
        ("mistyped_integer", "--config.rollout.group_size=4.5", 1, "--config.rollout.group_size=4.5: "),
        ("no_config", "--config=configs/quickstrat.py", 1, "error: --config: [Errno 2] No such file"),
        ("group_of_one", "--config.rollout.group_size=1", 1, "error: rollout.group_size=1 must be at least 2"),
        ("slots", "--config.engine.slots=6", 8, "error: engine.slots=6 does not divide over mesh axes"),
    ],
)
def test_one_clear_line(tmp_path, name, arguments, devices, message):
    done = tiny.launch(tmp_path / "run", arguments, devices=devices)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and message in said[0], done.stderr
    assert done.stdout == "" and tiny.lines(tmp_path / "run") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine__slots": 12}, r"engine\.slots=12 .*data x fsdp x expert = 8: it must be a multiple of 8"),
        ({"engine__prefill_rows": 4}, r"engine\.prefill_rows=4 does not divide over mesh axes"),
        ({"mesh__tensor": 3}, r"mesh \(data=2, fsdp=1, expert=1, tensor=3\) wants 6 devices; this run has 8"),
        ({"mesh__tensor": 4}, r"policy\.kv_heads=2 does not divide over mesh axes tensor = 4"),
        ({"mesh__expert": 8}, r"policy\.experts=4 does not divide over mesh axes expert = 8"),
        ({"mesh__fsdp": 8, "policy__dim": 20}, r"policy\.dim=20 does not divide over mesh axes fsdp = 8"),
        ({"policy__vocab_size": 100}, r"policy\.vocab_size=100 is smaller than the tokenizer's"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        train(change(tiny.make_config(), **changes), tmp_path / "run")
    assert tiny.lines(tmp_path / "run") == 0


LONG = {"prompt": "12345678+1=", "answer": "x", "demonstration": "1"}
GSM_BAD = {"question": "?", "answer": "no mark"}
GSM = {"question": "?", "answer": "#### 1"}


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        ("jsonl", {"train": [ROW, LONG]}, r"begins '12345678\+1=' has 11 tokens; accepted: 1 to max_prompt_tokens=6"),
        (
            "jsonl",
            {"train": [ROW | {"demonstration": ""}]},
            r"begins '1\+2=' has no demonstration, which warm_start",
        ),
        (
            "jsonl",
            {"train": [ROW | {"demonstration": "9" * 9}]},
            r"demonstration of .* has 10 tokens; accepted: at m",
        ),
        (
            "jsonl",
            {"train": [ROW, ROW | {"prompt": "1,2", "answer": "3,4", "verifier": "numeric"}]},
            r"begins '1,2' has the answer '3,4', which verifier='numeric' does not read as a number",
        ),
        ("jsonl", {"train": [ROW], "eval": [LONG]}, r"the evaluation task of .* has 11 tokens"),
        ("jsonl", {"train": []}, r"train\.jsonl: has no rows"),
        ("jsonl", {}, r"data: has neither train\.jsonl nor train\.jsonl\.gz"),
        ("jsonl", None, r"data: no such folder"),
        (
            "gsm8k",
            {"train": [GSM_BAD], "test": [GSM]},
            r"train\.jsonl, line 1: the field 'answer' does not end in",
        ),
        ("gsm8k", {"train": [GSM], "test": []}, r"test\.jsonl: has no rows"),
        ("gsm8k", None, r"data: no such folder"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, source, files, message):
    for name, rows in ({} if files is None else files).items():
        write_rows(tmp_path / "data", *rows, name=name)
    if files is not None:
        (tmp_path / "data").mkdir(exist_ok=True)
    config = tiny.make_config()
    evaluated = 1 if files and "eval" in files else 0
    options = {"cache": str(tmp_path / "cache")} if source == "gsm8k" else {}
    tasks = TaskSetConfig(source=source, path=str(tmp_path / "data"), eval_size=evaluated, options=options)
    with pytest.raises(errors.DataError, match=message):
        train(change(config, data__tasks=(tasks,)), tmp_path / "run")
    assert tiny.lines(tmp_path / "run") == 0


def test_a_verifier_that_is_nowhere(tmp_path):
    path = write_rows(tmp_path, ROW | {"verifier": "nowhere.at:all"})
    config = change(tiny.make_config(), data__tasks=(TaskSetConfig(source="jsonl", path=str(path)),))
    with pytest.raises(cli.USER_ERRORS, match=r"verifier 'nowhere\.at:all': ModuleNotFoundError: No module named"):
        train(config, tmp_path / "run")
    assert tiny.lines(tmp_path / "run") == 0


def test_a_checkpoint_that_cannot_be_used(tmp_path):
    with pytest.raises(errors.WeightsError, match=r"nowhere holds no policy: .*policy\.json is missing"):
        train(change(tiny.make_config(), checkpoint=str(tmp_path / "nowhere")), tmp_path / "run")
    make_damaged_policy(tmp_path / "damaged")
    with pytest.raises(errors.WeightsError, match=r"the parameters at .*damaged/params cannot be read"):
        train(change(tiny.make_config(), checkpoint=str(tmp_path / "damaged")), tmp_path / "run")
    assert tiny.lines(tmp_path / "run") == 0


def test_a_refused_config_does_not_own_the_workdir(tmp_path):
    """Nothing was computed under it: mended, it may use the same folder. Once a step was begun, it may not."""
    workdir.adopt(tmp_path, tiny.make_config())
    mended = change(tiny.make_config(), engine__max_prompt_tokens=9)
    workdir.adopt(tmp_path, mended)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {"config_hash": config_hash(mended), "config": to_dict(mended)}
    (tmp_path / "metrics.jsonl").touch()
    workdir.adopt(tmp_path, change(mended, mesh__data=4))  # where it runs is no part of what it is
    with pytest.raises(errors.WorkdirError, match=r"engine\.max_prompt_tokens: 9 there, 6 here"):
        workdir.adopt(tmp_path, tiny.make_config())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.WorkdirError, match=r"config\.json is damaged"):
        workdir.adopt(tmp_path, mended)


def test_a_workdir_of_another_config_is_refused(tmp_path):
    shutil.copytree(tiny.reference_run(), tmp_path / "run")
    done = tiny.launch(tmp_path / "run", "--config.objective.clip_high=0.28", "--config.seed=3")
    assert done.returncode == 1
    assert "belongs to a run with another config" in done.stderr and "Traceback" not in done.stderr
    assert "objective.clip_high: 0.2 there, 0.28 here" in done.stderr
    assert "seed: 0 there, 3 here" in done.stderr
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(tiny.reference_run())


def test_two_runs_on_one_workdir(tmp_path):
    with workdir.claim(tmp_path):
        second = tiny.launch(tmp_path)
    assert second.returncode == 1
    assert f"error: {tmp_path} is in use by another run (process {os.getpid()}): stop that run, or" in second.stderr
    assert "Traceback" not in second.stderr
    assert not (tmp_path / "config.json").exists()
    with workdir.claim(tmp_path):  # it let go; that a kill lets go too is seen wherever a killed run is resumed
        pass
