"""The run, read top to bottom: tasks -> rollout -> verdicts -> advantages -> update -> params -> next rollout."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rlvr import adaptation, errors, evaluation, fingerprint, policy_folder, report, rollback, warm_start, workdir
from rlvr.algo.kl import adapt_kl_coef
from rlvr.algo.selection import EntropyBonus, adapt_entropy_bonus
from rlvr.checkpoint import Checkpoints
from rlvr.checks import resolve
from rlvr.config import ExperimentConfig, config_hash
from rlvr.credit import assign_credit, make_rows
from rlvr.data.pipeline import make_eval_sets, make_train_stream
from rlvr.distillation import Distillation
from rlvr.journal import Journal
from rlvr.mesh import make_mesh
from rlvr.metrics import mean_kl, rollout_metrics, sample_rows, warm_start_metrics
from rlvr.parts import Parts, check_tasks, make_parts, read_tokenizer
from rlvr.reference import Reference
from rlvr.rollout.engine import Interrupted
from rlvr.rollouts import Rollouts
from rlvr.signals import stop_signal
from rlvr.verifiers.pool import VerifierPool
from rlvr.writers import MetricsWriter

log = logging.getLogger("rlvr")


def train(config: ExperimentConfig, folder: Path) -> dict[str, Any] | None:
    """Runs an experiment, from wherever its workdir has got to.

    Args:
        config: the experiment, as parsed.
        folder: the workdir.

    Returns:
        What `result.json` holds, or None if the run was asked to stop (SIGTERM) and saved itself.

    Raises:
        ConfigError, DataError, WeightsError, WorkdirError: see `rlvr.errors`; raised before anything is computed.
        Setback: the run went wrong and has no rollback left.
    """
    config = resolve(config)
    mesh = make_mesh(config.mesh)
    claim = workdir.claim(folder) if jax.process_index() == 0 else contextlib.nullcontext()
    with claim, stop_signal() as should_stop, jax.set_mesh(mesh):
        if jax.process_index() == 0:
            workdir.adopt(folder, config)
        stream, eval_sets = make_train_stream(config.data), make_eval_sets(config.data)
        tokenizer = read_tokenizer(config)
        verifiers = check_tasks(config, tokenizer, stream, eval_sets)
        with VerifierPool(config.verifiers, sorted(verifiers)) as pool:

            def attempt(slowed: ExperimentConfig) -> dict[str, Any] | None:
                parts = make_parts(slowed, mesh, pool, tokenizer, stream, eval_sets)
                run = Run(config, folder, mesh, parts, should_stop)
                try:
                    return run.finish()
                except FloatingPointError as error:
                    raise errors.Setback(str(error), run.step - config.optimizer.max_skips) from None

            return rollback.keep_on(config, folder, attempt)


class Run:
    """One process's hold on a run: the state, where it is, and what it has seen.

    Steps count from 0 over the whole run: first the warm start's, then the RL's.
    """

    def __init__(
        self, config: ExperimentConfig, folder: Path, mesh: Mesh, parts: Parts, should_stop: Callable[[], bool]
    ):
        self.config, self.folder, self.mesh, self.parts = config, folder, mesh, parts
        self.should_stop = should_stop
        self.warm_steps, self.total = config.warm_start.steps, config.warm_start.steps + config.steps
        self.rollouts = Rollouts(config, parts.collector, parts.curriculum)
        self.reference = Reference(config.objective.reference, parts.learner, folder / "start")
        self.distillation = Distillation(config, parts, self.reference)

    def finish(self) -> dict[str, Any] | None:
        """Runs all steps that are left, then writes the result and the report."""
        lead = jax.process_index() == 0
        if lead:
            policy_folder.describe_policy(self.folder, self.config.policy, self.parts.tokenizer)
            if self.parts.adaptation:
                adaptation.write(self.folder, self.parts.adaptation)
        with contextlib.closing(Checkpoints(self.folder, self.config.checkpoints)) as self.checkpoints:
            self.step, self.state, self.record = self._restore_or_start()
            # A stop during an evaluation: the step is done, its line and its accuracy are not.
            self.saved_unfinished = self.step if "unfinished" in self.record else None
            at, line = self.step, self.step - ("unfinished" in self.record)
            writing = MetricsWriter(self.folder, at, line, total_steps=self.total) if lead else None
            with writing or contextlib.nullcontext() as writer:
                self.journal = Journal(writer, self.record["wall_s"])
                try:
                    self._run_steps()
                    self.should_stop_now()
                except Interrupted:
                    self.journal.settle()
                    self._save()
                    self.checkpoints.wait()
                    saved = f"saved at step {self.checkpoints.latest()} of {self.total}"
                    log.warning("stopped by a signal: %s; the same command resumes", saved)
                    return None
            result = self._result()
        if lead:
            workdir.write_json(self.folder / "result.json", result)
            report.write_report(self.folder)
        return result

    def _run_steps(self) -> None:
        while self.step < self.total or "unfinished" in self.record:
            self.should_stop_now()
            if "unfinished" not in self.record:
                if self.step < self.warm_steps:
                    self._warm_step()
                else:
                    if self.step == self.warm_steps:
                        self._enter_rl()
                    self._rl_step()
                self.step += 1
                if not (self._is_evaluation_due() or self._is_save_due()):
                    continue  # the line is written while the next step is under way
                self.record["unfinished"] = self.journal.read()  # what a stop during the evaluation leaves to resume
            metrics = self.record["unfinished"]
            accuracy = self._evaluate_if_due(metrics)
            del self.record["unfinished"]
            self.journal.write(self.step - 1, metrics)
            if self._is_save_due() or (accuracy is not None and self.config.checkpoints.keep_best > 0):
                self._save(accuracy)  # after the line: a kill between the two must not lose it
                self.journal.end("checkpoint")
        if self.step == self.warm_steps:  # no RL steps at all: the warm start is the whole run
            self._enter_rl()

    def _warm_step(self) -> None:
        """One supervised step on demonstrations: the same update, with advantages of one."""
        learner, step = self.parts.warm_learner, self.step
        rows_a_step = self.config.warm_start.rows
        tasks = self.parts.stream.batch(step * rows_a_step, rows_a_step)
        self.state, read = learner.update(self.state, self.parts.demonstrate(tasks))
        rate = functools.partial(learner.learning_rate, step)
        self.journal.open(step, {"phase": "warm_start"}, lambda: {**warm_start_metrics(read()), "optimizer/lr": rate()})

    def _enter_rl(self) -> None:
        """Fixes the start policy, drops the warm start's optimizer state, and measures where the RL begins."""
        self.journal.settle()
        self.state = self.parts.learner.fresh(self.state.params)
        warm_start.keep_start(self.config, self.folder / "start", self.state.params)
        self.record["eval_start"] = self._evaluate()
        self.journal.end("evaluate")

    def _rl_step(self) -> None:
        """One step of the loop: sample, judge, compare within groups, update."""
        c, learner, group = self.config, self.parts.learner, self.config.rollout.group_size
        rl_step = self.step - self.warm_steps
        hooks = {"on_dispatch": self.journal.settle, "should_stop": self.should_stop}
        # Nothing here holds on to the sampling's parameters: merged with adapters, they are a second policy.
        policy = self.parts.trainable.sampling
        collected, sampling = self.rollouts.take(rl_step, policy(self.state.params), self.journal.end, **hooks)
        episodes = collected.episodes
        rows = make_rows(episodes, group)
        measure_kl = c.objective.needs_reference() or rl_step % c.evaluation.interval == 0
        reference = self.reference.score(rows) if measure_kl else None
        kl_coef = self.record.get("kl_coef", c.objective.kl_coef)
        taught = self.distillation.grade(self.state.params, episodes, rows)
        credit = assign_credit(c, episodes, rows, reference, kl_coef, learner.values(self.state, rows), taught)
        lesson = self.distillation.prepare(self.state.params, episodes, rows, credit, reference, taught)
        bonus = EntropyBonus(*self.record.get("entropy_bonus", (c.objective.entropy_coef, True)))
        critic_only = rl_step < c.critic.pretrain_steps  # the policy does not move: there is nothing to adapt to
        more = (bonus.coef * bonus.active, kl_coef, critic_only, lesson.teacher)
        self.state, read = learner.update(self.state, lesson.rows, lesson.reference, *more)
        self.distillation.follow(self.state.params, rl_step)
        if c.objective.entropy_target and not critic_only:  # waits for the update
            self.record["entropy_bonus"] = adapt_entropy_bonus(bonus, read()["rollout/entropy"], c.objective)
        completions = [e.completion for e in episodes]
        self.record["rollout_sha256"] = fingerprint.chain_completions(self.record["rollout_sha256"], completions)
        if rl_step % c.sample_interval == 0:
            self.journal.write_samples(self.step, lambda: sample_rows(episodes, credit.advantages))
        metrics = rollout_metrics(collected, credit.rewards, credit.valid, group) | sampling | lesson.metrics
        if reference is not None:
            kl = metrics[self.reference.metric] = mean_kl(rows, reference)
            if not critic_only:
                self.record["kl_coef"] = adapt_kl_coef(kl_coef, kl, len(rows), c.objective)
        if credit.valid.any():
            rollback.watch_reward(self.record, metrics["reward/mean"], self.step, c)
        rate = functools.partial(learner.learning_rate, rl_step * c.update.optimizer_steps)
        self.journal.open(self.step, {"phase": "rl", **metrics}, lambda: {**read(), "optimizer/lr": rate()})

    def _evaluate(self) -> dict[str, Any]:
        c, policy = self.config, self.parts.trainable.sampling(self.state.params)
        evaluate = functools.partial(evaluation.evaluate, seed=c.seed, should_stop=self.should_stop)
        return evaluate(self.parts.collector, policy, self.parts.eval_sets, temperature=c.evaluation.temperature)

    def _is_evaluation_due(self) -> bool:
        rl_steps = self.step - self.warm_steps
        due = rl_steps > 0 and (rl_steps % self.config.evaluation.interval == 0 or self.step == self.total)
        return due and bool(self.parts.eval_sets)

    def _is_save_due(self) -> bool:
        return self.step % self.config.checkpoints.interval == 0 or self.step == self.total

    def _evaluate_if_due(self, metrics: dict[str, Any]) -> float | None:
        if not self._is_evaluation_due():
            return None
        self.record["eval"] = self._evaluate()
        self.journal.end("evaluate")
        metrics |= evaluation.flatten(self.record["eval"])
        return evaluation.mean_accuracy(self.record["eval"])

    def _save(self, accuracy: float | None = None) -> None:
        self.journal.commit()
        again = self.step == self.saved_unfinished and "unfinished" not in self.record
        if again:
            self.saved_unfinished = None  # once: a stop right after it knows no accuracy
        rollout, facts = self.rollouts.pending()
        record = {**self.record, "rollout": facts, "wall_s": self.journal.wall_s}
        self.checkpoints.save(self.step, self.state, record, accuracy, rollout, self.distillation.moved(), again=again)

    def _restore_or_start(self) -> tuple[int, Any, dict[str, Any]]:
        """Returns (step, state, record): the newest whole checkpoint's, or the beginning's."""

        def target(step: int) -> Any:
            # The RL begins afresh, whichever stage left what it begins with: before its first step it has no critic.
            return (self.parts.warm_learner if step <= self.warm_steps else self.parts.learner).abstract()

        restored = self.checkpoints.restore(target)
        if restored is None:
            begun = {"rollout_sha256": "", "eval_start": {}, "eval": {}, "wall_s": 0.0}
            step, params = warm_start.begin(self.config, self.parts.warm_learner, self.parts.initial_params)
            return step, self.parts.warm_learner.fresh(params), begun
        step, state, record, rollout, copies = restored
        self.distillation.resume(copies)
        log.warning("resuming at step %d of %d from %s", step, self.total, self.folder)
        self.rollouts.resume(rollout, record.pop("rollout"))
        return step, state, record

    def should_stop_now(self) -> None:
        """Raises Interrupted if the run was asked to stop."""
        if self.should_stop():
            raise Interrupted

    def _result(self) -> dict[str, Any]:
        self.checkpoints.wait()  # the last save counts too
        return {
            "config_hash": config_hash(self.config),
            "steps": self.total,
            "params_sha256": fingerprint.hash_params(self.state.params),
            **{name: self.record[name] for name in ("rollout_sha256", "eval", "eval_start")},
            "wall_s": round(self.journal.wall_s, 1),
            "failed_saves": self.checkpoints.failed_saves,
        }
