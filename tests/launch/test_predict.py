"""launch.compile: how it reads HLO, what it makes of it, and (with libtpu) the programs of a mixture policy."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.predict import chips, estimate, hlo, programs
from launch.predict.workload import Workload, row_pairs
from rlvr.config import ExperimentConfig, RolloutConfig
from rlvr.errors import ConfigError
from rlvr.learner.update import UpdateConfig
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy.config import PolicyConfig
from rlvr.rollout.config import EngineConfig

ROOT = Path(__file__).resolve().parent.parent.parent

PROGRAM = """\
HloModule jit_f, is_scheduled=true

%cond.1 (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%cond.2 (p: (s32[], s32[])) -> pred[] {
  %p = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%product (a: bf16[16,32], b: bf16[32,64]) -> bf16[16,64] {
  %a = bf16[16,32]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[32,64]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[16,64]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_io->bf
}

%body.2 (p: (s32[], s32[])) -> (s32[], s32[]) {
  %p = (s32[], s32[]) parameter(0)
  %fusion.9 = bf16[16,64]{1,0} fusion(%x, %y), kind=kOutput, calls=%product, \
metadata={op_name="jit(f)/layer_0/mlp/dot"}, backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %t = (s32[], s32[]) tuple(%p)
}

%body.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %while.2 = (s32[], s32[]) while(%p), condition=%cond.2, body=%body.2, metadata={op_name="jit(f)/layer_0/while"}
  %all-gather.1 = f32[64,4]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=8,'b'=2] {'a'}, dimensions={0}
  ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%p)
}

%all-reduce-scatter (q: f32[64,4]) -> f32[16,4] {
  %q = f32[64,4]{1,0} parameter(0)
  ROOT %all-reduce.3 = f32[64,4]{1,0} all-reduce(%q), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%x), condition=%cond.1, body=%body.1
  %ars = f32[16,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %again = f32[16,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  %sum = f32[8,4]{1,0} all-reduce(%x), channel_id=11, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = f32[8,4]{1,0} add(%x, %x), backend_config={"estimated_cycles":"100"}
}
"""


def test_loops_count_as_often_as_they_run() -> None:
    program = hlo.analyse(PROGRAM, {"jit(f)/layer_0/while": 3.0}.get)
    assert program.cycles == 100 + 5 * 3 * 10
    assert program.flops == 5 * 3 * (2 * 16 * 32 * 64)
    assert program.by_place["mlp"] == 150
    assert program.hbm_bytes == 15 * 2 * (16 * 32 + 16 * 64)  # the second operand is on the chip
    assert not program.unknown
    once = hlo.analyse(PROGRAM, lambda path: None)
    assert once.cycles == 100 + 5 * 10 and once.unknown == {"jit(f)/layer_0/while"}


def test_exchanges_count_once_each_by_what_arrives() -> None:
    program = hlo.analyse(PROGRAM, lambda path: 1.0)
    moved = program.collective_bytes()
    assert moved["all-gather"] == 5 * (64 * 4 * 4) * 7 / 8  # in the loop; a channel seen again is the same exchange
    assert moved["reduce-scatter"] == (64 * 4 * 4) * 3 / 4
    assert moved["all-reduce"] == 2 * (8 * 4 * 4) * 3 / 4


KERNEL = """\
ENTRY %main (x: bf16[64,32], w: bf16[8,32,16]) -> bf16[64,16] {
  %n = s32[1]{0:T(128)} parameter(0)
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  %w = bf16[8,32,16]{2,1,0:T(8,128)(2,1)} parameter(2)
  ROOT %ragged-dot-none = bf16[64,16]{1,0} custom-call(%n, %x, %w), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/layer_0/moe/ragged_dot_general/ragged-dot-none"}
}
"""


def test_kernels_without_an_estimate_count_by_their_operations() -> None:
    program = hlo.analyse(KERNEL, lambda path: None, kernel_share=0.25)
    assert program.cycles == 0
    assert program.flops == program.kernel_flops == 2 * 64 * 32 * 16 / 4


ATTENTION = """\
ENTRY %main (q: bf16[1,2,4,256,128], kv: bf16[40,16,4,128]) -> bf16[8,8,128] {
  %n = s32[3]{0:T(128)} parameter(0)
  %q = bf16[1,2,4,256,128]{4,3,2,1,0} parameter(1)
  %kv = bf16[40,16,4,128]{3,2,1,0} parameter(2)
  %forward_kernel.1 = (bf16[1,2,4,256,128]{4,3,2,1,0}, f32[1,2,4,256]{3,2,1,0}) custom-call(%n, %q), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/layer_0/attention/shard_map/forward_kernel"}
  %key_kernel.2 = (bf16[1,2,256,128]{3,2,1,0}, bf16[1,2,256,128]{3,2,1,0}) custom-call(%n, %q), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/layer_0/attention/shard_map/key_kernel"}
  ROOT %ragged_paged_attention_kernel.3 = bf16[8,8,128]{2,1,0} custom-call(%n, %q, %kv), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/layer_0/attention/shard_map/jit(paged)/kernel"}
}
"""


def test_kernels_of_attention_count_by_what_they_visit() -> None:
    def visits(path: str) -> float | None:
        return 5.0 if "ragged_paged" in path else 3.0

    program = hlo.analyse(ATTENTION, visits)
    pair = 2 * 256 * 256 * 128 * (2 * 4)  # one product of a pair of blocks, in 2 x 4 heads
    assert program.attention_flops == program.flops == 3 * (2 + 4) * pair
    assert program.attention_bytes == 5 * 8 * (16 * 4 * 128 * 2)  # five pages of each of eight rows
    chip = chips.CHIPS["v5p"]
    times = estimate.program_times(example(attention_flops=chip.flops, attention_bytes=chip.hbm_rate), chip)
    assert times["compiler"] == pytest.approx(1 / chip.attention + 1) and times["hbm"] == 1


GATHERS = """\
%rows (x: bf16[64,32], i: s32[16]) -> bf16[16,32] {
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[16]{0:T(128)} parameter(1)
  ROOT %g = bf16[16,32]{1,0:T(8,128)(2,1)} gather(%x, %i), offset_dims={1}
}

ENTRY %main (x: bf16[64,32], i: s32[16]) -> bf16[16,32] {
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[16]{0:T(128)} parameter(1)
  %sent = bf16[16,32]{1,0} ragged-all-to-all(%x, %x, %i, %i, %i, %i), channel_id=1, replica_groups={{0,1}}
  %back = bf16[16,32]{1,0} ragged-all-to-all(%x, %x, %i, %i, %i, %i), channel_id=1, replica_groups={{0,1}}
  ROOT %rows.1 = bf16[16,32]{1,0:T(8,128)(2,1)} fusion(%x, %i), kind=kCustom, calls=%rows
}
"""


def test_gathers_count_by_their_bytes_and_each_ragged_exchange_counts() -> None:
    program = hlo.analyse(GATHERS, lambda path: None)
    assert program.cycles == 0 and program.gather_bytes == 2 * 16 * 32 * 2
    assert program.collective_bytes() == {"ragged-all-to-all": 2 * (16 * 32 * 2) / 2}
    chip = chips.CHIPS["v5p"]
    assert estimate.program_times(example(gather_bytes=3 * chip.hbm_rate), chip)["compiler"] == 3


def test_loops_of_experts_run_as_often_as_an_even_load_fills_them() -> None:
    policy = PolicyConfig(dim=64, experts=32, experts_per_token=4, moe_layers=(0, 1), layers=2)
    config = dataclasses.replace(WORKLOAD.config, policy=policy, update=UpdateConfig(row_tokens=4096, micro_tokens=1))
    trips = dataclasses.replace(WORKLOAD, config=config, experts_axis=2).trips("accumulate")
    at = "jit(f)/layer_0/moe/shard_map/"
    assert trips(at + "rounds/while") == 1
    # 4,096 tokens a shard, of two shards, give each of 32 experts 1,024 rows: two blocks of 512 and half a one.
    assert trips(at + "rounds/while/body/groups/while/body/blocks/while") == 2.5
    # Two rows a token, and half a piece of 1,024 for each of the four numbers that a token can have.
    # The shards' tokens are gathered.
    assert trips(at + "rounds/while/body/pieces/while/body/ranks/while") == 2 + 4 * 0.5 * 1024 / 8192
    assert trips(at + "other/while") is None
    policy = dataclasses.replace(policy, moe_exchange="ragged")
    trips = dataclasses.replace(WORKLOAD, config=dataclasses.replace(config, policy=policy), experts_axis=2).trips(
        "accumulate"
    )
    assert trips(at + "rounds/while/body/pieces/while/body/ranks/while") == 2 + 4 * 0.5 * 1024 / 4096
    assert trips(at + "pieces/while/body/ranks/while") == 2  # a sum from each shard


def test_pairs_of_blocks_are_those_that_sequences_of_a_row_see() -> None:
    prompt_and_two = (1024, 3072, 3072)
    each = 6 * 7 // 2 + 6 * 2  # a completion of six blocks sees itself and the two of the prompt
    assert row_pairs(7168, 1, prompt_and_two, 0, 512) == 3 + 2 * each
    assert row_pairs(2 * 7168, 2, prompt_and_two, 0, 512) == 2 * (3 + 2 * each)
    assert row_pairs(7168, 1, prompt_and_two, 512, 512) == 3 + 2 * 6 * 2  # itself and the block before, of its own text


def test_rows_are_filled_with_whole_parts_of_groups() -> None:
    def at(row: int) -> Workload:
        update = UpdateConfig(row_tokens=row, micro_tokens=4 * row)
        return dataclasses.replace(WORKLOAD, config=dataclasses.replace(WORKLOAD.config, update=update))

    assert (at(512).sharing, at(512).in_row, at(512).micro_batches) == (2, 1, 4)  # 16 rows, four at a time
    assert (at(1024).sharing, at(1024).in_row, at(1024).micro_batches) == (4, 1, 2)
    # Two groups of 64 + 4 x 192 tokens in a row.
    assert (at(1664).sharing, at(1664).in_row, at(1664).micro_batches) == (4, 2, 1)
    assert at(1664).update_tokens == 8 * (64 + 4 * 192)


def test_the_kernels_of_attention_are_known_by_name() -> None:
    at = "jit(f)/layer_0/attention/shard_map/"
    assert WORKLOAD.trips("accumulate")(at + "forward_kernel/forward_kernel.7") == 1  # the row is one block
    # Four blocks of 128; a prompt of 64 tokens, and from 256 on its second completion, which does not see the first.
    assert WORKLOAD.trips("accumulate")("jit(f)/layer_0/attention/while") == 3 + 2 + 3
    assert WORKLOAD.trips("decode")(at + "x/ragged_paged_attention_kernel.1") == (64 + 96) / 64 + 0.5
    assert WORKLOAD.trips("decode")(at + "x/other_kernel.1") is None


@pytest.mark.parametrize(
    ("left", "kernel", "out", "window", "pairs"),
    [
        (8, 8, 1, {"size": "8"}, 8),  # a contraction over 8
        (1, 32, 32, {"size": "32", "pad": "31_31"}, 32),  # an outer product: every place meets one tap
        (5, 3, 3, {"size": "3"}, 9),
        (5, 3, 5, {"size": "3", "pad": "1_1"}, 13),
        (4, 2, 2, {"size": "2", "stride": "2"}, 4),
        (3, 2, 6, {"size": "2", "pad": "1_1", "lhs_dilate": "2"}, 6),
    ],
)
def test_products_written_as_windows_count_what_meets(
    left: int, kernel: int, out: int, window: dict[str, str], pairs: int
) -> None:
    assert hlo.valid_taps(left, kernel, out, window) == pairs


def example(**more: object) -> programs.Compiled:
    fields: dict[str, object] = dict.fromkeys(programs.Compiled._fields, 0.0)
    fields |= {"collectives": {}, "places": {}, "unknown": (), "text": ""} | more
    return programs.Compiled(**fields)  # type: ignore[arg-type]


WORKLOAD = Workload(
    ExperimentConfig(
        policy=PolicyConfig(layers=2, dim=64, hidden=96, vocab_size=512),
        engine=EngineConfig(slots=8, max_prompt_tokens=64, max_new_tokens=192, prefill_rows=4, decode_steps=8),
        rollout=RolloutConfig(prompts=8, group_size=4),
        update=UpdateConfig(row_tokens=512, micro_tokens=2048),
    ),
    shards=4,
    experts_axis=1,
)


def test_a_step_is_its_programs_times_how_often_they_run() -> None:
    w = WORKLOAD
    assert (w.row, w.micro_rows, w.sequences, w.prefills) == (512, 4, 32, 2)
    assert w.dispatches == 4 * 24  # four waves of eight slots, 24 dispatches of eight tokens
    assert w.update_tokens == 8 * 2 * 64 + 32 * 192  # two completions share a prompt in a row of 512
    assert w.micro_batches == 4  # 14 rows, four at a time
    chip = chips.CHIPS["v5e"]
    second = chip.clock
    compiled = {
        "prefill": example(cycles=second),
        "decode": example(cycles=0.1 * second, collectives={"all-gather": 0.5 * chip.link_rate}),
        "accumulate": example(kernel_flops=chip.flops, flops=chip.flops, cycles=second),
        "apply": example(cycles=second, needed=1e9),
    }
    result = estimate.summarise(compiled, w, chip, 4, programs.StateBytes(1e9, 2e9, 0.0))
    assert result["rollout_s"] == pytest.approx(2 * 1 + 96 * 0.5)  # decoding waits for its exchanges
    assert result["update_s"] == pytest.approx(4 * 2 + 1)  # a kernel without an estimate runs at peak
    assert result["update_mfu"] == pytest.approx(w.update_flops() / (4 * chip.flops * 9))


def test_what_stays_in_memory_beside_a_program_counts() -> None:
    chip, gigabyte = chips.CHIPS["v5e"], 1e9
    compiled = {
        name: example(needed=10 * gigabyte, cycles=1.0) for name in ("prefill", "decode", "accumulate", "apply")
    }
    result = estimate.summarise(compiled, WORKLOAD, chip, 4, programs.StateBytes(3e9, 4e9, 0.0))
    peaks = {name: p["peak_gb"] for name, p in result["programs"].items()}
    assert peaks == {"prefill": 17, "decode": 17, "accumulate": 14, "apply": 10}
    assert not result["fits"] and result["peak_gb"] == 17
    assert any("engine.slots" in line for line in estimate.advise(result, WORKLOAD))


def test_moments_on_the_host_leave_hbm_and_cost_the_time_of_moving_them() -> None:
    chip, there = chips.CHIPS["v5e"], programs.StateBytes(params=2e9, optimizer=0.0, host=4e9)
    layer = example(needed=3e8, arguments=1e8, moved=30e9, cycles=chip.clock, text="layer")
    ends = example(needed=5e8, arguments=2e8, moved=15e9, collectives={"all-reduce": 8.0}, text="ends")
    apply = programs.combine_parts([(layer, 4), (ends, 1)], there)
    assert apply.needed == 2 * 2e9 + 3e8  # parameters, gradients, and what the largest part has beside its own
    assert (
        apply.moved == 4 * 30e9 + 15e9 and apply.cycles == 4 * chip.clock and apply.collectives == {"all-reduce": 8.0}
    )
    assert estimate.program_times(apply, chip)["step"] == pytest.approx(4 + 135e9 / chips.HOST_RATE)
    result = estimate.summarise({"apply": apply, "accumulate": example(needed=1e9)}, WORKLOAD, chip, 4, there)
    assert result["fits"] and (result["optimizer_gb"], result["host_gb"]) == (0, 4)
    assert result["programs"]["accumulate"]["peak_gb"] == 1
    crowded = estimate.summarise({"apply": apply}, WORKLOAD, chip, 4, there._replace(host=chip.host_bytes))
    assert not crowded["fits"]
    assert "the host's memory does not hold" in estimate.advise(crowded, WORKLOAD)[0]


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (389.10G) exceeds "
        "available HBM (95.74G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 389.10G of "
        "95.74G hbm. Exceeded hbm capacity by 293.36G.",
    ],
)
def test_what_the_compiler_says_of_too_little_memory(said: str) -> None:
    class Lowered:
        def compile(self) -> None:
            raise RuntimeError(said)

    with pytest.raises(programs.OutOfMemory) as raised:
        programs.compile_program("accumulate", Lowered(), WORKLOAD)
    assert (raised.value.needed, raised.value.there) == (389.10 * 2**30, 95.74 * 2**30)


def test_depths_continue_a_line() -> None:
    near, far = (example(needed=float(n), collectives={"all-gather": 10.0 * n}) for n in (3, 5))
    whole = programs.extrapolate(near, far, (1, 2), 10)
    assert whole.needed == 5 + 8 * 2 and whole.collectives == {"all-gather": 50 + 8 * 20}


def test_by_hand_six_operations_a_parameter_and_token() -> None:
    policy = PolicyConfig(layers=4, dim=512, hidden=2048, query_heads=8, kv_heads=8, head_size=64, vocab_size=1024)
    config = dataclasses.replace(WORKLOAD.config, policy=policy)
    workload = dataclasses.replace(WORKLOAD, config=config)
    parameters = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    completions = workload.sequences * workload.completion
    attention = 3 * 4 * 4 * 512 * workload.sequences * 256 * 257 // 2
    assert workload.update_flops() == pytest.approx(
        6 * parameters * workload.update_tokens + 6 * 512 * 1024 * completions + attention
    )
    epochs = dataclasses.replace(config, update=dataclasses.replace(config.update, epochs=3))
    longer = dataclasses.replace(workload, config=epochs)
    assert longer.micro_batches == 3 * workload.micro_batches
    assert longer.update_tokens == 3 * workload.update_tokens
    assert longer.update_flops() == pytest.approx(3 * workload.update_flops())


def run_entry(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-m", "launch.compile", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


def test_a_chip_that_is_not_known_is_refused() -> None:
    done = run_entry("--config=configs/quickstart.py", "--topology=h100:8")
    assert done.returncode == 1 and "'h100' is not known" in done.stderr and "Traceback" not in done.stderr


VOCAB, DIM, ROW, EXPERTS, HIDDEN, CHUNK = 1536, 256, 512, 8, 384, 64


@pytest.fixture(scope="module")
def mixture() -> dict[str, programs.Compiled]:
    """The update of a small mixture policy, compiled for four v5e chips: two ways of experts, two of parameters."""
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    config = mixture_config()
    return programs.compile_config(config, "v5e:2x2", ("accumulate",), lambda text: None)[0]


def mixture_config() -> ExperimentConfig:
    policy = PolicyConfig(
        vocab_size=VOCAB, dim=DIM, layers=2, query_heads=4, kv_heads=2, head_size=64, moe_layers=(0, 1),
        experts=EXPERTS, experts_per_token=2, expert_hidden=HIDDEN, tied_head=False, dtype="bfloat16", remat="block",
    )  # fmt: skip
    return ExperimentConfig(
        policy=policy,
        engine=EngineConfig(slots=16, max_prompt_tokens=128, max_new_tokens=384, prefill_rows=4, decode_steps=4),
        rollout=RolloutConfig(prompts=4, group_size=4),
        update=UpdateConfig(row_tokens=ROW, micro_tokens=4 * ROW, logprob_chunk=4 * CHUNK),
        mesh=MeshConfig(fsdp=2, expert=2),
    )


def test_the_update_of_a_mixture_gathers_no_full_experts(mixture: dict[str, programs.Compiled]) -> None:
    program = hlo.analyse(mixture["accumulate"].text, lambda path: 1.0)
    gathered = [math.prod(shape[1]) for c in program.collectives if c.kind == "all-gather" for shape in c.shapes]
    own = EXPERTS // 2 * DIM * HIDDEN
    assert gathered and own in gathered  # its own experts, from the shards of the parameters
    assert max(gathered) <= max(own, DIM * VOCAB)
    assert EXPERTS * DIM * HIDDEN > max(own, DIM * VOCAB)


def test_the_update_of_a_mixture_has_no_buffer_of_tokens_times_vocabulary(
    mixture: dict[str, programs.Compiled],
) -> None:
    beside = {math.prod(s[1]) // VOCAB for s in hlo.iterate_shapes(mixture["accumulate"].text) if VOCAB in s[1]}
    assert max(beside) == max(DIM, CHUNK) < ROW  # the head, and logits of a chunk


def test_the_operations_that_are_compiled_are_those_by_hand(mixture: dict[str, programs.Compiled]) -> None:
    program = mixture["accumulate"]
    assert not program.unknown
    layers, heads, kv_heads, head_size, k = 2, 4, 2, 64, 2
    attention = DIM * head_size * 2 * (heads + kv_heads)
    # Forward, again for the backward pass, and twice backward.
    blocks = 2 * ROW * layers * (attention + DIM * EXPERTS) * 4
    # Three products forward, two of them again, and six backward, over blocks of 128 rows; an even share is 256, and
    # half a block more is padding.
    experts = 2 * ROW * layers * DIM * HIDDEN * k * (3 + 2 + 6) * (256 + 64) / 256
    # A row is one block; two products forward, and again, and seven backward, in two kernels.
    scores = layers * (2 * ROW * ROW * head_size * heads) * 11
    head = 2 * ROW * 384 / 512 * DIM * VOCAB * 3
    assert program.flops == pytest.approx(blocks + experts + scores + head, rel=1e-3)


def test_an_optimizer_step_with_its_moments_on_the_host_takes_less_hbm() -> None:
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    steps = {}
    for memory in ("device", "host"):
        config = mixture_config()
        config.update.moments = memory
        compiled, _ = programs.compile_config(config, "v5e:2x2", ("apply",), lambda text: None)
        mesh = make_mesh(config.mesh, programs.topology_devices("v5e:2x2"))
        steps[memory] = compiled["apply"], programs.state_bytes(config, mesh)
    (near, there), (far, away) = steps["device"], steps["host"]
    assert (near.moved, there.host, away.optimizer) == (0, 0, 0) and away.host == there.optimizer == 2 * there.params
    assert far.moved == pytest.approx(2 * away.host, rel=0.01)  # there and back
    layer = 4 * EXPERTS * 3 * DIM * HIDDEN // 4  # bytes of its experts on one of four chips: two moments, old and new
    assert near.needed - far.needed == pytest.approx(away.host - 4 * layer, rel=0.1)
    assert far.needed < near.needed - away.host / 4


def test_decoding_moves_no_pages_between_shards_of_heads() -> None:
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    config = dataclasses.replace(mixture_config(), mesh=MeshConfig(fsdp=2, tensor=2))
    compiled, _ = programs.compile_config(config, "v5e:2x2", ("decode",), lambda text: None)
    assert compiled["decode"].collectives and "all-to-all" not in compiled["decode"].collectives
    assert compiled["decode"].attention_bytes > 0


def test_a_config_is_compiled_from_the_command_line(tmp_path: Path) -> None:
    pytest.importorskip("libtpu", reason="the extra `tpu` is not installed")
    done = run_entry(
        "--config=configs/quickstart.py", "--topology=v5e:2x2", "--layers=1,2", "--programs=decode", f"--hlo={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["fits"] and result["chips"] == 4 and result["layers"] == [1, 2]
    assert result["programs"]["decode"]["seconds"]["compiler"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decode_1.hlo", "decode_2.hlo"]


@pytest.mark.parametrize(("given", "said"), [(["2", "1"], "must rise, from 1 to 4"), (["1"], "two numbers")])
def test_depths_that_cannot_be_are_refused(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        programs.read_depths(given, 4)
