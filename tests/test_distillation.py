"""Distillation in runs: who sees the hint, what has a state, and that a stopped run resumes exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rlvr import errors, policy_folder, trainer
from rlvr.algo.distill import DistillConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.checks import validate
from rlvr.config import ExperimentConfig
from rlvr.data.config import DataConfig, TaskSetConfig
from rlvr.learner.learner import Learner
from rlvr.parts import demonstrate
from rlvr.rollout.engine import Engine
from rlvr.text.chat import encode_task
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.types import Task
from tests import tiny

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes

MARK = "#"  # stands in hints only


@pytest.fixture(autouse=True, scope="module")
def runs_in_process() -> Iterator[None]:
    with tiny.runs_in_process():
        yield


def make_config(folder: Path, **distill: Any) -> ExperimentConfig:
    """The tiny experiment with a hint in every task."""
    folder.mkdir(exist_ok=True)
    for split, first in (("train", 0), ("eval", 40)):
        sums = [(i % 7, i % 10) for i in range(first, first + 8)]
        verifier = "tests.scoring:share_of_digits"
        rows = [
            {"prompt": f"{a}+{b}=", "answer": str(a + b), "verifier": verifier, "hint": str(a + b)} for a, b in sums
        ]
        rows = [{**row, "demonstration": row["answer"]} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(tiny.make_config(moe=False), steps=4, distill=DistillConfig(**distill))
    sums = TaskSetConfig(source="jsonl", name="sums", path=str(folder), eval_size=4, hint_template="#{hint}#{prompt}")
    config.data = DataConfig(tasks=(sums,))
    config.engine.max_prompt_tokens = 9
    config.warm_start.steps, config.evaluation.interval = 0, 4
    return config


def resumed(config: ExperimentConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int]) -> None:
    """Runs a config whole, and again with stops after so many lines; both must end the same."""

    @contextlib.contextmanager
    def stop_signal() -> Iterator[Callable[[], bool]]:
        limit = stops.pop(0) if stops else 99
        yield lambda: tiny.lines(folder / "parts") >= limit

    left, stops[:] = list(stops), []
    monkeypatch.setattr(trainer, "stop_signal", stop_signal)
    trainer.train(config, folder / "whole")
    stops[:] = left
    while trainer.train(config, folder / "parts") is None:
        pass
    assert not stops
    assert tiny.outcome(folder / "parts") == tiny.outcome(folder / "whole")


class Seen:
    """What the engine was asked, and what the learner was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.prompts: list[list[tuple[int, ...]]] = []
        self.rows: list[Any] = []
        generate, update = Engine.generate, Learner.update

        def asked(engine: Engine, params: Any, requests: Any, *more: Any, **options: Any) -> Any:
            self.prompts.append([request.prompt for request in requests])
            return generate(engine, params, requests, *more, **options)

        def given(learner: Learner, state: Any, rows: Any, *more: Any) -> Any:
            self.rows.append(list(rows))
            return update(learner, state, rows, *more)

        monkeypatch.setattr(Engine, "generate", asked)
        monkeypatch.setattr(Learner, "update", given)


def hinted(prompt: Any) -> bool:
    return ord(MARK) in prompt


def test_pi_distill_samples_the_teacher_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path / "data", method="pi", alpha=0.25, coef=0.2)
    config.rollout.staleness = 1  # what was sampled ahead is resumed behind the hinted prompts
    seen = Seen(monkeypatch)
    resumed(config, tmp_path, monkeypatch, [1, 3])
    evaluations = [prompts for prompts in seen.prompts if len(prompts) == 4]
    rollouts = [prompts for prompts in seen.prompts if len(prompts) == 16]
    assert len(evaluations) + len(rollouts) == len(seen.prompts) and len(evaluations) >= 4
    assert all(hinted(prompt) for prompts in rollouts for prompt in prompts)
    assert not any(hinted(prompt) for prompts in evaluations for prompt in prompts)
    for rows in seen.rows:
        assert len(rows) == 32
        for start in range(0, 32, 8):  # prompt by prompt, each side of a group together
            teacher, student = rows[start : start + 4], rows[start + 4 : start + 8]
            for own, other in zip(teacher, student, strict=True):
                assert hinted(own.prompt) and not own.borrowed and own.weight == 0.5
                assert not hinted(other.prompt) and other.borrowed and other.weight == 1.5
                assert tuple(own.prompt[-len(other.prompt) :]) == tuple(other.prompt)
                np.testing.assert_array_equal(own.completion, other.completion)
                np.testing.assert_array_equal(own.old_logprobs, other.old_logprobs)
                assert own.advantage == other.advantage
    first = tiny.read_metrics(tmp_path / "whole")[0]
    assert first["gap/max"] < 1e-4  # of the teacher's rows alone: the student's are no samples of the student
    assert first["distill/divergence"] > 1e-3


def test_a_moving_teacher_resumes_exactly_and_never_shows_the_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"method": "on_policy", "form": "full", "teacher": "ema", "beta": 0.5, "reward": 0.0, "ema": 0.5}
    config = make_config(tmp_path / "data", **fields)
    seen = Seen(monkeypatch)
    resumed(config, tmp_path, monkeypatch, [1, 3])
    assert not any(hinted(prompt) for prompts in seen.prompts for prompt in prompts)
    for rows in seen.rows:
        assert len(rows) == 16
        assert all(not hinted(row.prompt) and hinted(row.other_prompt) and row.advantage == 0.0 for row in rows)
    assert (tmp_path / "parts" / "checkpoints" / "4" / "teacher").is_dir()
    rows = tiny.read_metrics(tmp_path / "whole")
    assert all(row["optimizer/grad_norm"] > 0 for row in rows)  # with advantages of zero


@pytest.mark.slow
def test_distilling_from_a_checkpoint_of_another_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advantages are the teacher's lead, token by token; whole distributions come nearer to the teacher's."""
    teacher, seen = str(tiny.dense_run()), Seen(monkeypatch)
    own = {"method": "on_policy", "teacher": "checkpoint", "checkpoint": teacher, "hinted": False}
    for form, steps in (("sampled", 1), ("full", 8)):
        config = make_config(tmp_path / "data", form=form, reward=0.0, **own)
        config.policy = dataclasses.replace(config.policy, dim=24)
        config.steps, config.optimizer.learning_rate = steps, 1e-2
        trainer.train(config, tmp_path / form)
    apart = [row["distill/divergence"] for row in tiny.read_metrics(tmp_path / "full")]
    assert apart[-1] < 0.8 * apart[0], apart
    taught = [np.add(row.advantage, row.old_logprobs) for row in seen.rows[0]]
    loaded = policy_folder.load_policy(Path(teacher))
    for row, got in zip(seen.rows[0], taught, strict=True):
        tokens = np.array([[*row.prompt, *row.completion]])
        output = loaded.policy.forward(loaded.params, tokens, np.arange(tokens.shape[1])[None])
        logits = loaded.policy.logits(loaded.params, output.hidden)[0, len(row.prompt) - 1 : -1]
        want = jax.nn.log_softmax(logits)[np.arange(len(row.completion)), row.completion]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    with pytest.raises(errors.ConfigError, match=r"vocab_size=264, the policy 272: .*id by id"):
        config.policy = dataclasses.replace(config.policy, vocab_size=272)
        trainer.train(config, tmp_path / "wide")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: setattr(c.rollout, "top_k", 5), "rollout.top_k=5 with distill.method='pi'"),
        (lambda c: setattr(c, "objective", ObjectiveConfig(kl="k2", kl_coef=0.1)), "has its own two KLs"),
        (lambda c: setattr(c.objective, "old", "current"), "objective.old='current' with distill.method='pi'"),
        (lambda c: setattr(c.objective, "surrogate", "reinforce"), "objective.surrogate='reinforce'.*a ratio"),
        (lambda c: setattr(c.warm_start, "hinted", 1.5), "warm_start.hinted=1.5"),
        (
            lambda c: setattr(c.data.tasks[0], "hint_template", "{hint}"),
            "hint_template='{hint}' must hold {prompt} once",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, change: Callable[[Any], None], words: str) -> None:
    config = make_config(tmp_path / "data", method="pi")
    validate(config)
    change(config)
    with pytest.raises(errors.ConfigError, match=words):
        validate(config)


def test_tasks_without_hints_are_named(tmp_path: Path) -> None:
    config = make_config(tmp_path / "data", method="pi")
    config.data.tasks[0].path = str(tiny.SUMS)
    with pytest.raises(errors.DataError, match=r"has no hint, which distill.hinted or warm_start.hinted asks for"):
        trainer.train(config, tmp_path / "run")
    config = make_config(tmp_path / "data", method="pi")
    config.engine.max_prompt_tokens = 5
    with pytest.raises(errors.DataError, match=r"with its hint, .*max_prompt_tokens=5"):
        trainer.train(config, tmp_path / "short")


def test_a_share_of_the_warm_start_shows_the_hint() -> None:
    tokenizer = ByteTokenizer()
    task = Task(0, "t", "1+1=", "2", "numeric", demonstration="3", hinted_prompt="#2#1+1=", hinted_demonstration="2")
    rows = demonstrate(tokenizer, 0.25, [task] * 8)
    shown = [hinted(row.prompt) for row in rows]
    assert shown == [False, False, False, True] * 2
    for row, show in zip(rows, shown, strict=True):
        assert list(row.prompt) == encode_task(tokenizer, task, hinted=show)
        assert tokenizer.decode(row.completion) == ("2" if show else "3")
    assert not any(hinted(row.prompt) for row in demonstrate(tokenizer, 0.0, [task] * 8))


def test_the_teacher_of_another_tokenizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path / "data", method="on_policy", teacher="checkpoint", checkpoint=str(tmp_path / "t"))
    policy_folder.describe_policy(tmp_path / "t", config.policy, ByteTokenizer())
    monkeypatch.setattr(ByteTokenizer, "token_text", lambda self, i: str(id(self)))
    with pytest.raises(errors.ConfigError, match="has another tokenizer than the policy"):
        trainer.train(config, tmp_path / "run")
