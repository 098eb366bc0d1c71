"""What a user sees of a mistake: exit status 1, one clear line, no traceback, and nothing computed before."""

import concurrent.futures
import json
import shutil

import pytest

from tests import tiny

ROWS = {"prompt": "1+2=", "answer": "3"}


def write_rows(folder, *rows, name="train"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def from_file(path):
    """The flags that make the tiny run train on one file and evaluate nothing."""
    return f"--config.data.tasks[0].path={path}", "--config.data.tasks[0].eval_size=0"


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


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """Runs every mistake below, two at a time, and returns what came of each by its name."""
    folder = tmp_path_factory.mktemp("bad")
    tiny.reference_run()
    long = write_rows(folder / "long", ROWS, {"prompt": "12345678+1=", "answer": "x", "demonstration": "1"})
    bare = write_rows(folder / "bare", ROWS)
    (folder / "empty").mkdir()
    (folder / "empty" / "train.jsonl").touch()
    write_rows(folder / "gsm", {"question": "?", "answer": "no mark"})
    write_rows(folder / "gsm", {"question": "?", "answer": "#### 1"}, name="test")
    unknown = write_rows(folder / "unknown", ROWS | {"demonstration": "3", "verifier": "nowhere.at:all"})
    make_damaged_policy(folder / "damaged")
    gsm8k = "--config.data.tasks[0].source=gsm8k"
    no_start = "--config.warm_start.steps=0"
    cases = {
        "unknown_field": (("--config.objective.clip_hgh=0.3",), 1),
        "mistyped_value": (("--config.objective.clip_high=lots",), 1),
        "mistyped_integer": (("--config.rollout.group_size=4.5",), 1),
        "group_of_one": (("--config.rollout.group_size=1",), 1),
        "micro_rows": (("--config.update.micro_rows=6",), 8),
        "slots": (("--config.engine.slots=12",), 8),
        "mesh_too_large": (("--config.mesh.tensor=3",), 8),
        "heads": (("--config.mesh.tensor=4",), 8),
        "long_prompt": (from_file(long), 1),
        "no_demonstration": (from_file(bare), 1),
        "empty_file": (from_file(folder / "empty"), 1),
        "no_file": (from_file(folder / "nowhere"), 1),
        "gsm8k_nowhere": ((gsm8k, *from_file(folder / "nowhere")), 1),
        "gsm8k_malformed": ((gsm8k, *from_file(folder / "gsm")), 1),
        "verifier_nowhere": ((*from_file(unknown), no_start), 1),
        "checkpoint_nowhere": ((f"--config.checkpoint={folder / 'nowhere'}",), 1),
        "checkpoint_damaged": ((f"--config.checkpoint={folder / 'damaged'}",), 1),
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        begun = {
            name: pool.submit(tiny.launch, folder / name / "run", *arguments, devices=devices)
            for name, (arguments, devices) in cases.items()
        }
        begun["no_config"] = pool.submit(tiny.launch, folder / "no_config" / "run", config="configs/quickstrat.py")
        done = {name: future.result() for name, future in begun.items()}
    return folder, done


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown_field", "the config has no field 'objective.clip_hgh'; did you mean --config.objective.clip_high?"),
        ("mistyped_value", "config.objective.clip_high|lots"),
        ("mistyped_integer", "config.rollout.group_size|4.5"),
        ("no_config", "configs/quickstrat.py"),
        ("group_of_one", "rollout.group_size=1 must be at least 2"),
        ("micro_rows", "update.micro_rows=6 does not divide over mesh axes data x fsdp x expert = 8"),
        ("slots", "engine.slots=12 does not divide over mesh axes data x fsdp x expert = 8"),
        ("mesh_too_large", "mesh (data=2, fsdp=1, expert=1, tensor=3) wants 6 devices; this run has 8"),
        ("heads", "policy.kv_heads=2 does not divide over mesh axes tensor = 4"),
        ("long_prompt", "begins '12345678+1=' has 11 tokens; accepted: 1 to max_prompt_tokens=6"),
        ("no_demonstration", "begins '1+2=' has no demonstration, which warm_start.steps=4 needs"),
        ("empty_file", "train.jsonl: has no rows"),
        ("no_file", "nowhere: no such folder"),
        ("gsm8k_nowhere", "nowhere: no such folder"),
        ("gsm8k_malformed", "train.jsonl, line 1: the field 'answer' does not end in '#### N'"),
        ("verifier_nowhere", "verifier 'nowhere.at:all'|No module named 'nowhere'"),
        ("checkpoint_nowhere", "nowhere holds no policy|policy.json is missing"),
        ("checkpoint_damaged", "params|cannot be read"),
    ],
)
def test_one_clear_line(launches, name, message):
    folder, done = launches
    result = done[name]
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, result.stderr
    for part in message.split("|"):
        assert part in said[0]
    assert "RESULT" not in result.stdout and "step 1/" not in result.stdout
    assert tiny.lines(folder / name / "run") == 0


def test_a_refused_config_can_be_mended_in_the_same_workdir(launches, tmp_path):
    """Nothing was computed under the refused one, so it does not own the folder."""
    folder, done = launches
    assert done["micro_rows"].returncode == 1
    again = tiny.launch(folder / "micro_rows" / "run")
    assert again.returncode == 0, again.stderr


def test_a_workdir_of_another_config_is_refused(tmp_path):
    shutil.copytree(tiny.reference_run(), tmp_path / "run")
    done = tiny.launch(tmp_path / "run", "--config.objective.clip_high=0.28", "--config.seed=3")
    assert done.returncode == 1
    assert "belongs to a run with another config" in done.stderr and "Traceback" not in done.stderr
    assert "objective.clip_high: 0.2 there, 0.28 here" in done.stderr
    assert "seed: 0 there, 3 here" in done.stderr
    assert tiny.outcome(tmp_path / "run") == tiny.outcome(tiny.reference_run())


def test_two_runs_on_one_workdir(tmp_path):
    workdir = tmp_path / "run"
    first = tiny.start(workdir, "--config.steps=2000")
    try:
        assert tiny.wait_until(lambda: tiny.lines(workdir) >= 5, [first])
        second = tiny.launch(workdir, "--config.steps=2000")
        assert second.returncode == 1
        assert f"is in use by another run (process {first.pid})" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        tiny.finish(first)
    # The kill freed the folder; now the config decides.
    third = tiny.launch(workdir)
    assert third.returncode == 1
    assert "steps: 2000 there, 6 here" in third.stderr
