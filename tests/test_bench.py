"""Every bench runs at a tiny size, and its last line is JSON with figures that can be right."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.bench import main
from launch.benches import flops, workload
from launch.benches.verify import read_answers
from rlvr import errors
from rlvr.policy.config import PolicyConfig
from tests.tiny import ROOT, environment

STEP = (
    "--step_prompts=2", "--step_samples=4", "--step_prompt_tokens=6", "--step_new_tokens=8", "--step_row_tokens=40"
)  # fmt: skip
ROLLOUT = ("--rollout_requests=5", "--rollout_prompt_tokens=9", "--rollout_page_tokens=4")

# What is run: bench, its flags, and figures of its result that must be positive.
RUNS = {
    "moe": (
        ("moe", "--moe_tokens=64", "--moe_dim=32", "--moe_hidden=16", "--moe_backends=auto"),
        ("gemm_gflops",),
    ),
    "rollout": (
        ("rollout", *ROLLOUT, "--rollout_new_tokens=5"),
        ("tokens_per_s", "gemm_gflops", "fraction_of_gemm", "fraction_of_bandwidth", "peak_gb"),
    ),
    "long tail": (
        ("rollout", "--rollout_mode=tail", *ROLLOUT, "--rollout_slots=3", "--rollout_longest=20"),
        ("tokens_per_s", "occupancy", "cache_bytes_per_token", "fraction_of_gemm"),
    ),
    "groups": (
        ("rollout", "--rollout_mode=groups", *ROLLOUT, "--rollout_samples=3"),
        ("call_s", "repeated_call_s", "gemm_gflops"),
    ),
    "step": (
        ("step", *STEP),
        ("step_s", "first_step_s", "rollout_s", "update_s", "gemm_gflops", "fraction_of_gemm", "peak_gb"),
    ),
    "rows": (
        ("rows", "--rows_lengths=64,128", "--rows_vocab=3000", "--rows_logprob_chunk=16"),
        ("growth", "vocab_size", "logprob_chunk"),
    ),
    "checkpoint": (("checkpoint",), ("blocked_s", "durable_s", "restore_s", "save_gb_per_s", "plain_gb_per_s")),
    "compile": (("compile", *STEP), ("programs", "trace_s", "lower_s", "compile_s")),
    "grid": (
        ("grid", "--grid_points=2", "--grid_steps=2", "--grid_warm_steps=2", "--grid_prompts=4", "--grid_processes=0"),
        ("together_s", "one_by_one_s", "one_by_one_times"),
    ),
    "verify": (("verify", "--verify_items=8"), ("verdicts_per_s_per_core", "bare_verdicts_per_s", "times_bare")),
}


def bench(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a bench as a user does, on one CPU device."""
    command = [sys.executable, "-m", "launch.bench", name, "--rounds=1", "--shape=tiny", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "grid" else ()) for n in RUNS])
def test_the_last_line_of_a_bench_is_its_result(name: str) -> None:
    arguments, positive = RUNS[name]
    done = bench(*arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    result = json.loads(lines[-1])
    assert len(lines) > 2 and result["bench"] == arguments[0]
    assert all(result[figure] > 0 for figure in positive), result
    if name == "long tail":
        assert result["wanted_tokens"] == sum(workload.tail_lengths(5, 64, 20)) and result["occupancy"] <= 1
        assert result["cache_bytes_per_token"] >= result["token_bytes"] == 2 * 2 * 8 * 4  # key and value, K, h, bytes


def test_an_unknown_bench_is_refused_by_name() -> None:
    with pytest.raises(errors.ConfigError, match=r"'rolout'.*did you mean 'rollout'"):
        main(["bench", "rolout"])


def test_operations_of_a_forward_pass_by_hand() -> None:
    config = PolicyConfig(vocab_size=11, dim=4, layers=2, query_heads=4, kv_heads=2, head_size=6, hidden=5)
    attention = 4 * 24 + 2 * 4 * 12 + 24 * 4  # query, key and value, output
    blocks = 2 * (attention + 3 * 4 * 5)
    assert flops.matmul_parameters(config) == (blocks, 44)
    # Two sampled tokens after a prompt of three see 4 and 5 keys; scores and values: 2 * 2 * H * h for each, and layer.
    assert flops.sequence_flops(config, 3, 2) == 2 * 2 * (blocks + 44) + 2 * 4 * 24 * (4 + 5)
    assert flops.prompt_flops(config, 3) == 2 * 3 * blocks + 2 * 4 * 24 * (1 + 2 + 3)


def test_a_mixture_layer_counts_the_experts_a_token_goes_to() -> None:
    sizes = {"dim": 4, "layers": 2, "hidden": 5, "moe_layers": (1,), "experts": 8, "expert_hidden": 7}
    one, two = (flops.matmul_parameters(PolicyConfig(**sizes, experts_per_token=k))[0] for k in (1, 2))
    assert two - one == 3 * 4 * 7


def test_the_long_tail_is_the_same_everywhere_and_what_it_says() -> None:
    lengths = workload.tail_lengths(4096, 64, 512)
    assert lengths[:8] == workload.tail_lengths(8, 64, 512)
    assert min(lengths) >= 1 and max(lengths) == 512
    assert sum(lengths) / len(lengths) == pytest.approx(63, abs=2)  # the cut at 512 takes one token off the mean
    assert [len(batch) for batch in workload.in_batches(lengths[:70], 32)] == [32, 32, 6]


def test_answers_are_paired_with_their_own_and_the_next_solution(tmp_path: Path) -> None:
    for name, fields in {"gsm8k/test": ("final_answer", "answer"), "math/math500": ("answer", "solution")}.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.parent.mkdir()
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(dict(zip(fields, (str(n), f"so {n}"), strict=True))) + "\n" for n in range(5))
    items = read_answers(tmp_path, 4)
    assert items == 2 * [("so 0", "0"), ("so 1", "0"), ("so 1", "1"), ("so 0", "1")]
    with pytest.raises(errors.DataError, match="verify_rows="):
        read_answers(tmp_path / "elsewhere", 4)
