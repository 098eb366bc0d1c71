"""Whole runs of the tiny experiment: what they leave, that they learn, repeat, and train on what they sampled."""

import contextlib
import dataclasses
import json
import math

import pytest
from tensorboardX.proto.event_pb2 import Event

from rlvr import report, trainer
from rlvr.algo.lengths import LengthConfig
from rlvr.algo.presets import preset
from rlvr.algo.selection import EntropyBonus, SelectionConfig, adapt_entropy_bonus
from rlvr.config import config_hash
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.optimizer import OptimizerConfig
from rlvr.trainer import train
from rlvr.verifiers.pool import VerifierConfig
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


@pytest.fixture(autouse=True, scope="module")
def runs_in_process():
    with tiny.runs_in_process():
        yield


def test_result():
    workdir = tiny.reference_run()
    result = tiny.read_result(workdir)
    printed = (tiny.session_folder() / "reference.out").read_text().splitlines()[-1]
    assert printed.startswith("RESULT ")
    assert json.loads(printed.removeprefix("RESULT ")) == result
    config = json.loads((workdir / "config.json").read_text())
    assert result["config_hash"] == config["config_hash"] == config_hash(tiny.make_config())
    sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "stop_strings": [], "staleness": 0}
    sampling |= {"dynamic_rounds": 0, "oversample": 1.0}
    assert config["config"]["rollout"] == {"prompts": 4, "group_size": 4, **sampling}
    assert result["steps"] == tiny.WARM_STEPS + tiny.STEPS
    for name in ("params_sha256", "rollout_sha256"):
        assert len(bytes.fromhex(result[name])) == 32
    for name in ("eval", "eval_start"):
        sums = result[name]["sums"]
        low, high = sums["interval"]
        assert sums["n"] == 8 and 0 <= low <= sums["accuracy"] <= high <= 1
        assert 0 <= sums["accuracy"] <= sums["accuracy_lenient"] <= 1
        assert 1 <= sums["mean_tokens"] <= 5
        assert sum(sums["statuses"].values()) == 8
    assert result["wall_s"] > 0 and result["failed_saves"] == 0


def test_every_step_leaves_its_line():
    workdir = tiny.reference_run()
    rows = tiny.read_metrics(workdir)
    assert [row["step"] for row in rows] == list(range(tiny.WARM_STEPS + tiny.STEPS))
    assert [row["phase"] for row in rows] == ["warm_start"] * tiny.WARM_STEPS + ["rl"] * tiny.STEPS
    warm, rl = rows[: tiny.WARM_STEPS], rows[tiny.WARM_STEPS :]
    assert warm[-1]["loss/supervised"] < warm[0]["loss/supervised"] - 1.0
    assert all({"optimizer/lr", "optimizer/grad_norm", "time/update"} <= row.keys() for row in warm)
    for row in rl:
        assert sum(row[f"verdict/{status}"] for status in ("correct", "wrong", "unparsed", "error")) == 16
        assert {"reward/mean", "rollout/entropy", "gap/max", "clip/high", "kl/update"} <= row.keys()
        assert row["optimizer/grad_norm"] > 0 and row["optimizer/skipped"] == 0
    evaluated = [row["step"] for row in rows if "eval/sums/accuracy" in row]
    assert evaluated == [6, 9]
    assert all("kl/start" in rl[i] for i in (0, 3)) and rl[0]["kl/start"] == pytest.approx(0, abs=1e-9)
    assert rl[3]["kl/start"] > 1e-4
    assert all(math.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
    # The time of a save is told by the next step; all but the first steps of a stage add up.
    assert all(row["time/other"] >= 0 for row in rows)


def test_samples_report_and_events():
    workdir = tiny.reference_run()
    samples = [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples} == {4, 6, 8}
    for step in (4, 6, 8):
        best, worst = sorted((row for row in samples if row["step"] == step), key=lambda r: -r["advantage"])
        assert best["advantage"] > 0 > worst["advantage"] and best["score"] > worst["score"]
        assert best["prompt"].endswith("=") and best["tokens"] <= 5
    html = (workdir / "report.html").read_text()
    assert "tiny" in html and html.rstrip().endswith("</html>")
    report.write_report(workdir)  # and again from the outside
    (events,) = (workdir / "tensorboard").iterdir()
    data, offset, steps = events.read_bytes(), 0, set()
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + 8], "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + size])
        offset += 12 + size + 4
        steps |= {event.step for value in event.summary.value if value.tag.startswith("optimizer/")}
    assert steps == set(range(10))


@pytest.mark.parametrize("kind", ["moe", "dense"])
def test_the_trained_logprobs_are_those_of_the_sampling(kind):
    """One function samples and trains: in float32 they differ by rounding only, at every step."""
    workdir = tiny.reference_run() if kind == "moe" else tiny.dense_run()
    rows = tiny.read_metrics(workdir)[tiny.WARM_STEPS :]
    assert len(rows) == tiny.STEPS
    lengths = {row["rollout/tokens_mean"] for row in rows}
    assert all(1 < length < 5 for length in lengths) and len(lengths) > 1  # completions of different lengths
    assert max(row["gap/max"] for row in rows) <= 5e-5
    assert max(row["gap/mean"] for row in rows) <= 5e-6
    assert min(row["gap/max"] for row in rows) > 0  # it is measured
    assert ("moe/load_max" in rows[0]) == (kind == "moe")


@pytest.mark.slow
def test_two_processes_in_time_do_the_same(tmp_path):
    """Nothing is shared with the first run, not even what was compiled."""
    done = tiny.launch(tmp_path / "again", compiled=False)
    assert done.returncode == 0, done.stderr
    assert tiny.outcome(tmp_path / "again") == tiny.outcome(tiny.reference_run())


@pytest.mark.slow
def test_another_seed_is_another_run(tmp_path):
    done = tiny.launch(tmp_path / "run", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    mine, other = tiny.outcome(tmp_path / "run"), tiny.outcome(tiny.reference_run())
    for name in ("config_hash", "params_sha256", "rollout_sha256"):
        assert mine[name] != other[name]


def test_it_learns_from_scratch(tmp_path):
    """A random policy writes a digit one time in 26; told that digits are good, it writes little else."""
    config = dataclasses.replace(tiny.make_config(moe=False), steps=40)
    config.warm_start.steps = 0
    config.optimizer = OptimizerConfig(learning_rate=2e-2)
    config.rollout.prompts, config.rollout.group_size, config.engine.slots = 8, 8, 64
    config.update.micro_tokens = 512
    config.evaluation.interval = config.checkpoints.interval = 40
    result = train(config, tmp_path / "run")
    rewards = [row["reward/mean"] for row in tiny.read_metrics(tmp_path / "run")]
    assert sum(rewards[:3]) / 3 < 0.1
    assert sum(rewards[-3:]) / 3 > 0.6
    assert result["eval"]["sums"]["accuracy"] > 0.9


def test_an_objective_of_many_parts_is_logged_and_resumes_exactly(tmp_path, monkeypatch):
    """Decoupled PPO with weights, a KL to go, chosen tokens, length rewards, and an entropy bonus that has a state."""
    config = dataclasses.replace(tiny.make_config(moe=False), steps=4)
    config.warm_start.steps = 0
    config.update.minibatches, config.evaluation.interval = 2, 4
    config.reward.length = LengthConfig(overlong_buffer=2)
    config.objective = preset(
        "tis",
        advantage="reward",
        whiten="tokens",
        kl="k1_to_go",
        kl_coef=0.05,
        entropy_target=6.0,
        selection=SelectionConfig(top_entropy=0.5),
    )
    saves, save = [], trainer.Checkpoints.save

    def save_what_is_closed(self, step, *arguments, **options):
        saves.append((step, tiny.lines(tmp_path / "whole"), tiny.open_files(tmp_path / "whole", "*.jsonl")))
        save(self, step, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Checkpoints, "save", save_what_is_closed)
        result = train(config, tmp_path / "whole")
    assert saves == [(2, 2, []), (4, 4, [])]  # a mounted bucket has a file when it is closed
    rows = tiny.read_metrics(tmp_path / "whole")
    bonus = EntropyBonus(0.0, True)
    for row in rows:
        assert row["optimizer/entropy_coef"] == pytest.approx(bonus.coef * bonus.active, abs=1e-7)
        assert 0.99 < row["correction/weight"] < 1.01  # the policy that sampled, with the same numerics
        bonus = adapt_entropy_bonus(bonus, row["rollout/entropy"], config.objective)
    assert max(row["optimizer/entropy_coef"] for row in rows) > 0

    @contextlib.contextmanager
    def stop_after_two_lines():
        yield lambda: tiny.lines(tmp_path / "parts") >= 2

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_signal", stop_after_two_lines)
        assert train(config, tmp_path / "parts") is None
    resumed = train(config, tmp_path / "parts")
    assert resumed["params_sha256"] == result["params_sha256"]
    assert tiny.timeless(tiny.read_metrics(tmp_path / "parts")) == tiny.timeless(rows)


def test_verifiers_that_fail_do_not_end_the_run(tmp_path):
    """One prompt of each kind of failure in every step: a timeout counts as zero, an error is left out."""
    kinds = ("raise", "hang", "nan", "fine")
    rows = [{"prompt": f"{kind}:", "answer": kind, "verifier": "tests.scoring:misbehave"} for kind in kinds]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(tiny.make_config(moe=False), steps=2)
    config.warm_start.steps = 0
    config.data = DataConfig(tasks=(TaskSetConfig(source="jsonl", path=str(tmp_path / "train.jsonl")),))
    config.rollout.group_size = 2
    config.verifiers = VerifierConfig(workers=2, timeout_s=0.3)
    config.evaluation.interval = 1
    result = train(config, tmp_path / "run")
    assert result["eval"] == {}
    for row in tiny.read_metrics(tmp_path / "run"):
        counted = {name: row[name] for name in ("verdict/error", "verdict/timeout", "verify/masked")}
        assert counted == {"verdict/error": 4, "verdict/timeout": 2, "verify/masked": 4}
        assert row["verdict/correct"] + row["verdict/wrong"] == 2
        assert 0 <= row["reward/mean"] <= 0.5  # of the 4 that are not masked, the 2 timeouts count as zero
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["advantage"]) for row in samples)
