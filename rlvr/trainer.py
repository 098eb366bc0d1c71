"""The run, read top to bottom: tasks -> rollout -> verdicts -> advantages -> update -> params -> next rollout."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rlvr import adaptation, checkpoint, evaluation, fingerprint, keys, report, workdir
from rlvr.checkpoint import Checkpoints
from rlvr.config import ExperimentConfig, config_hash, resolve
from rlvr.credit import assign_credit, make_rows
from rlvr.data.pipeline import make_eval_sets, make_train_stream
from rlvr.learner.batch import Row
from rlvr.mesh import make_mesh
from rlvr.metrics import mean_kl, rollout_metrics, sample_rows
from rlvr.parts import Parts, check_tasks, make_parts, read_tokenizer
from rlvr.rollout.engine import Interrupted
from rlvr.signals import stop_signal
from rlvr.timing import timed, unaccounted
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
            parts = make_parts(config, mesh, pool, tokenizer, stream, eval_sets)
            return Run(config, folder, mesh, parts, should_stop).finish()


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
        self.began = time.monotonic()
        self.save_s = 0.0  # seconds of the save after the previous step, told by the next step's metrics

    def finish(self) -> dict[str, Any] | None:
        """Runs all steps that are left, then writes the result and the report."""
        lead = jax.process_index() == 0
        if lead:
            checkpoint.describe_policy(self.folder, self.config.policy, self.parts.tokenizer)
            if self.parts.adaptation:
                adaptation.write(self.folder, self.parts.adaptation)
        with contextlib.closing(Checkpoints(self.folder, self.config.checkpoints)) as self.checkpoints:
            self.step, self.state, self.record = self._restore_or_start()
            writing = MetricsWriter(self.folder, resume_step=self.step, total_steps=self.total) if lead else None
            with writing or contextlib.nullcontext() as self.writer:
                try:
                    self._run_steps()
                    self.should_stop_now()
                except Interrupted:
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
            began = time.monotonic()
            metrics = self.record.pop("unfinished", None)
            if metrics is None:
                if self.step < self.warm_steps:
                    metrics = self._warm_step()
                else:
                    if self.step == self.warm_steps:
                        self._enter_rl()
                    metrics = self._rl_step()
                self.step += 1
            self.record["unfinished"] = metrics  # what a stop during the evaluation leaves to be resumed
            accuracy = self._evaluate_if_due(metrics)
            del self.record["unfinished"]
            metrics["time/checkpoint"] = self.save_s
            metrics |= {"time/other": unaccounted(metrics, began), "wall_s": self.wall_s()}
            if self.writer:
                self.writer.write(self.step - 1, metrics)
            self._save_if_due(accuracy)  # after the line: a kill between the two must not lose it
        if self.step == self.warm_steps:  # no RL steps at all: the warm start is the whole run
            self._enter_rl()

    def _warm_step(self) -> dict[str, Any]:
        """One supervised step on demonstrations: the same update, with advantages of one."""
        rows_a_step = self.config.warm_start.rows
        tasks = self.parts.stream.batch(self.step * rows_a_step, rows_a_step)
        rows = [Row(*self.parts.demonstration(task), 1.0, i) for i, task in enumerate(tasks)]
        with timed() as took:
            self.state, learned = self.parts.warm_learner.update(self.state, rows)
        learned["loss/supervised"] = learned.pop("loss/policy")
        kept = ("loss/", "optimizer/", "moe/")  # the others compare with a sampling that did not happen
        metrics = {name: value for name, value in learned.items() if name.startswith(kept)}
        rate = self.parts.warm_learner.learning_rate(self.step)
        return {"phase": "warm_start", **metrics, "optimizer/lr": rate, "time/update": took()}

    def _enter_rl(self) -> None:
        """Fixes the start policy, drops the warm start's optimizer state, and measures where the RL begins."""
        self.state = self.parts.learner.fresh(self.state.params)
        if not (self.folder / "start").exists():
            checkpoint.save_params(self.folder / "start", self.state.params)
        self.record["eval_start"] = self._evaluate()

    def _rl_step(self) -> dict[str, Any]:
        """One step of the loop: sample, judge, compare within groups, update."""
        c, rollout = self.config, self.config.rollout
        rl_step = self.step - self.warm_steps
        tasks = self.parts.stream.batch(
            self.warm_steps * c.warm_start.rows + rl_step * rollout.prompts, rollout.prompts
        )
        collected = self.parts.collector.collect(
            self.parts.trainable.sampling(self.state.params),
            tasks,
            keys.make_key(c.seed, "rollout", rl_step),
            samples=rollout.group_size,
            **rollout.sampling(),
            should_stop=self.should_stop,
        )
        episodes = collected.episodes
        rows = make_rows(episodes, rollout.group_size)
        measure_kl = c.objective.needs_reference() or rl_step % c.evaluation.interval == 0
        with timed() as took_update:
            reference = self.parts.learner.score(self._start, rows) if measure_kl else None
            credit = assign_credit(c, episodes, rows, reference)
            rows = [row._replace(advantage=float(a)) for row, a in zip(rows, credit.advantages, strict=True)]
            self.state, learned = self.parts.learner.update(self.state, rows, reference)
        self.record["rollout_sha256"] = fingerprint.chain_completions(
            self.record["rollout_sha256"], [e.completion for e in episodes]
        )
        if self.writer and rl_step % c.sample_interval == 0:
            self.writer.write_samples(self.step, sample_rows(episodes, credit.advantages))
        kl = {} if reference is None else {"kl/start": mean_kl(rows, reference)}
        return {
            "phase": "rl",
            **rollout_metrics(collected, credit.rewards, credit.valid, rollout.group_size),
            **learned,
            **kl,
            "optimizer/lr": self.parts.learner.learning_rate(rl_step * c.update.minibatches),
            "time/rollout": collected.decode_s,
            "time/verify_wait": collected.verify_wait_s,
            "time/update": took_update(),
        }

    @functools.cached_property
    def _start(self) -> Any:
        """Parameters at the start of the RL: the reference of every KL."""
        return checkpoint.load_tree(self.folder / "start", self.parts.learner.abstract().params)

    def _evaluate(self) -> dict[str, Any]:
        return evaluation.evaluate(
            self.parts.collector,
            self.parts.trainable.sampling(self.state.params),
            self.parts.eval_sets,
            seed=self.config.seed,
            temperature=self.config.evaluation.temperature,
            should_stop=self.should_stop,
        )

    def _evaluate_if_due(self, metrics: dict[str, Any]) -> float | None:
        rl_steps = self.step - self.warm_steps
        due = rl_steps > 0 and (rl_steps % self.config.evaluation.interval == 0 or self.step == self.total)
        if not due or not self.parts.eval_sets:
            return None
        with timed() as took:
            self.record["eval"] = self._evaluate()
        metrics |= evaluation.flatten(self.record["eval"])
        metrics["time/evaluate"] = took()
        return evaluation.mean_accuracy(self.record["eval"])

    def _save_if_due(self, accuracy: float | None) -> None:
        with timed() as took:
            # An evaluated step is saved whenever it comes: the best checkpoint must not miss it.
            best = accuracy is not None and self.config.checkpoints.keep_best > 0
            if best or self.step % self.config.checkpoints.interval == 0 or self.step == self.total:
                self._save(accuracy)
        self.save_s = took()

    def _save(self, accuracy: float | None = None) -> None:
        self.checkpoints.save(self.step, self.state, {**self.record, "wall_s": self.wall_s()}, accuracy)

    def _restore_or_start(self) -> tuple[int, Any, dict[str, Any]]:
        """Returns (step, state, record): the newest whole checkpoint's, or the beginning's."""

        def target(step: int) -> Any:
            return (self.parts.warm_learner if step < self.warm_steps else self.parts.learner).abstract()

        restored = self.checkpoints.restore(target)
        if restored is not None:
            log.warning("resuming at step %d of %d from %s", restored.step, self.total, self.folder)
            return restored
        record = {"rollout_sha256": "", "eval_start": {}, "eval": {}, "wall_s": 0.0}
        learner = self.parts.warm_learner if self.warm_steps else self.parts.learner
        return 0, learner.fresh(self.parts.initial_params()), record

    def should_stop_now(self) -> None:
        """Raises Interrupted if the run was asked to stop."""
        if self.should_stop():
            raise Interrupted

    def wall_s(self) -> float:
        """Seconds this run has taken, over all its processes in time (what a kill lost is not counted)."""
        return self.record["wall_s"] + time.monotonic() - self.began

    def _result(self) -> dict[str, Any]:
        self.checkpoints.wait()  # the last save counts too
        return {
            "config_hash": config_hash(self.config),
            "steps": self.total,
            "params_sha256": fingerprint.hash_params(self.state.params),
            **{name: self.record[name] for name in ("rollout_sha256", "eval", "eval_start")},
            "wall_s": round(self.wall_s(), 1),
            "failed_saves": self.checkpoints.failed_saves,
        }
