"""Seconds to trace, lower and compile the programs of one step.

    python -m launch.bench compile [--config=configs/quickstart.py]

Takes one step of the RL (and one of the warm start, and scores the rows under the start policy, where the config does)
and sums what JAX reports of every program on the way. Without --config it is the step that `step` measures. Only the
prompt and row lengths that occur are compiled. A cache of compiled programs is not used.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax

from launch import cli
from launch.benches import step
from launch.benches.reward import VERIFIER
from launch.benches.subject import Digits
from launch.benches.workload import peak_gb
from rlvr import timing
from rlvr.checks import resolve
from rlvr.config import ExperimentConfig
from rlvr.data.pipeline import make_eval_sets, make_train_stream
from rlvr.mesh import make_mesh
from rlvr.parts import check_tasks, make_parts, read_tokenizer
from rlvr.types import Task
from rlvr.verifiers.pool import VerifierPool

CONFIG = cli.define_config()
PHASES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
Seconds = dict[str, list[float]]  # of a phase, one for each program of that name


def bench_compile() -> dict[str, Any]:
    """Records the programs of one step."""
    jax.config.update("jax_enable_compilation_cache", False)
    with timing.timed() as whole, record() as programs:
        rows = compile_config(resolve(CONFIG.value)) if CONFIG.value else compile_default()
    # Functions traced inside another one report too, and their time is in the outer one's already.
    compiled = {name: phases for name, phases in programs.items() if phases["compile"]}
    total = {phase: sum(sum(phases[phase]) for phases in compiled.values()) for phase in PHASES.values()}
    print(f"{'program':40}{'times':>6}{'trace s':>10}{'lower s':>10}{'compile s':>12}")
    slowest = sorted(compiled, key=lambda name: -sum(compiled[name]["compile"]))
    for name in slowest[:12]:
        times, seconds = len(compiled[name]["compile"]), [sum(compiled[name][phase]) for phase in PHASES.values()]
        print(f"{name:40}{times:6}{seconds[0]:10.3f}{seconds[1]:10.3f}{seconds[2]:12.3f}")
    return {
        "bench": "compile",
        "platform": jax.default_backend(),
        "rows": rows,
        "programs": sum(len(phases["compile"]) for phases in compiled.values()),
        **{f"{phase}_s": seconds for phase, seconds in total.items()},
        "first_step_s": whole(),
        "compile_s_by_program": {name: sum(compiled[name]["compile"]) for name in slowest[:12]},
        "peak_gb": peak_gb(),
    }


@contextlib.contextmanager
def record() -> Iterator[dict[str, Seconds]]:
    """Yields a table, filled with the seconds of each phase of each program that is compiled within the block."""
    programs: dict[str, Seconds] = defaultdict(lambda: {phase: [] for phase in PHASES.values()})

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if event in PHASES:  # tracing names a function f, the later phases jit(f)
            name = re.sub(r"^jit\((.*)\)$", r"\1", str(details.get("fun_name", "?")))
            programs[name][PHASES[event]].append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def compile_default() -> int:
    """Takes the step that `step` measures; returns its rows."""
    config = step.step_config()
    tasks = step.make_tasks(config, 0)
    return compile_step(config, Digits(config.policy.vocab_size), tasks, {VERIFIER})


def compile_config(config: ExperimentConfig) -> int:
    """Takes the first step of a config; returns its rows."""
    tokenizer, stream = read_tokenizer(config), make_train_stream(config.data)
    verifiers = check_tasks(config, tokenizer, stream, make_eval_sets(config.data))
    return compile_step(config, tokenizer, stream.batch(0, config.rollout.prompts), verifiers)


def compile_step(config: ExperimentConfig, tokenizer: Any, tasks: list[Task], verifiers: set[str]) -> int:
    """Takes a step and what a run does beside it; returns its rows."""
    mesh = make_mesh(config.mesh)
    stream, eval_sets = make_train_stream(config.data), make_eval_sets(config.data)
    with jax.set_mesh(mesh), VerifierPool(config.verifiers, sorted(verifiers)) as pool:
        parts = make_parts(config, mesh, pool, tokenizer, stream, eval_sets)
        params = parts.initial_params()
        if config.warm_start.steps:
            shown = stream.batch(0, config.warm_start.rows)
            state, _ = parts.warm_learner.update(parts.warm_learner.fresh(params), parts.demonstrate(shown))
            params = state.params
        state, rows, _ = step.take_step(config, parts, parts.learner.fresh(params), tasks, 0)
        parts.learner.score(state.params, rows)
    return len(rows)
