"""Folders written from our parameters: what they hold, what they refuse, and that our own reader gets it all back."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from rlvr import errors, policy_folder
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.parts import check_mesh
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.policy.transformer import Policy
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.weights import exporter, families, importer

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[str, Any] = {
    "vocab_size": 272,
    "dim": 48,
    "layers": 3,
    "context_length": 99,
    "query_heads": 6,
    "kv_heads": 2,
    "head_size": 10,
    "hidden": 56,
    "tied_head": False,
}
MOE: dict[str, Any] = {"experts": 4, "experts_per_token": 3, "expert_hidden": 40}
WINDOWS: dict[str, Any] = {"sliding_window": 5, "window_layers": (0, 2)}
YARN = RopeConfig(
    theta=700.0, scaling="yarn", factor=3.0, original_length=33, beta_slow=0.5, beta_fast=9.0, magnitude=1.25
)
# What each family can say, as far from the defaults as it goes.
POLICIES: dict[str, PolicyConfig] = {
    "llama": PolicyConfig(**SIZES, attention_bias=True, out_bias=True, activation="gelu", rope=YARN),
    "smollm3": PolicyConfig(**SIZES, **WINDOWS, nope_layers=(1, 2)),
    "qwen2": PolicyConfig(**SIZES, **WINDOWS, attention_bias=True),
    "qwen3": PolicyConfig(**SIZES, **WINDOWS, qk_norm="head"),
    "gemma3_text": PolicyConfig(
        **SIZES,
        **WINDOWS,
        qk_norm="head",
        norm_place="both",
        activation="gelu",
        embed_scale=48**0.5,
        attention_scale=168**-0.5,
        rope=RopeConfig(theta=900.0, scaling="linear", factor=8.0),
        window_theta=90.0,
    ),
    "olmo2": PolicyConfig(**SIZES, qk_norm="width", norm_place="after"),
    "olmo3": PolicyConfig(**SIZES, **WINDOWS, qk_norm="width", norm_place="after", rope=YARN, window_theta=90.0),
    "mixtral": PolicyConfig(**SIZES, **MOE, moe_layers=(0, 1, 2), sliding_window=5, window_layers=(0, 1, 2)),
    "qwen3_moe": PolicyConfig(**SIZES, **MOE, moe_layers=(1,), qk_norm="head", renormalize_gates=False),
    "olmoe": PolicyConfig(**SIZES | {"head_size": 8}, **MOE, moe_layers=(0, 1, 2), qk_norm="width"),
    "gpt_oss": PolicyConfig(
        **SIZES,
        **MOE,
        **WINDOWS,
        moe_layers=(0, 1, 2),
        attention_bias=True,
        out_bias=True,
        sinks=True,
        activation="clamped_silu",
        activation_limit=5.0,
        expert_bias=True,
        router_bias=True,
        rope=dataclasses.replace(YARN, truncate=False),
    ),
    "dots1": PolicyConfig(
        **SIZES,
        **MOE,
        **WINDOWS,
        moe_layers=(1, 2),
        qk_norm="head",
        shared_hidden=80,
        router_scores="sigmoid",
        selection_bias=True,
        router_groups=2,
        router_groups_kept=2,
        gate_scale=2.5,
    ),
}


def flatten(tree: Any) -> dict[str, Any]:
    return {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("family", POLICIES)
def test_our_reader_gets_back_what_was_written(family: str, tmp_path: Path, params_of: Any) -> None:
    config = POLICIES[family]
    params = params_of(Policy(config))
    exporter.export_policy(tmp_path / "out", config, params, ByteTokenizer(), family=family, shard_bytes=200_000)
    read = importer.read_weights(tmp_path / "out")
    assert families.canonical(read.config) == families.canonical(config)
    assert read.config.family == family
    ours, again = flatten(params), flatten(read.params)
    assert ours.keys() == again.keys()
    for path in ours:
        np.testing.assert_allclose(again[path], ours[path], rtol=0, atol=2e-7, err_msg=path)  # Gemma: 1 + (w - 1)


def test_every_family_is_covered() -> None:
    assert POLICIES.keys() == families.FAMILIES.keys()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"moe_layers": (1,)}, "moe_layers would be (), and is (1,)"),
        ("llama", {"out_bias": False}, "out_bias would be True, and is False"),
        ("llama", {"qk_norm": "head"}, "qk_norm would be 'none', and is 'head'"),
        ("llama", {"rope": RopeConfig(magnitude=1.5)}, "rope would be {"),
        ("llama", {"query_heads": 10}, "hidden_size=48 must be a multiple of num_attention_heads=10"),
        ("llama", {"family": "opt"}, "family='opt' is not known; did you mean 'dots1'? (accepted: llama, smollm3"),
        ("llama", {"family": ""}, "the policy does not say what family it is of"),
        ("qwen2", {"attention_bias": False}, "attention_bias would be True, and is False"),
        ("gemma3_text", {"embed_scale": 1.0}, "embed_scale would be 6.9"),
        ("gemma3_text", {"attention_scale": 0.3}, "attention_scale would be 0.30"),
        ("olmo3", {"rope": dataclasses.replace(YARN, truncate=False)}, "transformers ignores truncate"),
        ("olmoe", {"head_size": 10}, "head_dim=10 must be hidden_size / num_attention_heads = 8"),
        ("mixtral", {"window_layers": (0, 2)}, "window_layers would be (0, 1, 2), and is (0, 2)"),
        ("dots1", {"shared_hidden": 70}, "shared_hidden would be 40, and is 70"),
        ("dots1", {"moe_layers": (0, 2)}, "moe_layers would be (0, 1, 2), and is (0, 2)"),
    ],
)
def test_refuses_what_a_family_cannot_express(family: str, changes: dict, message: str, tmp_path: Path) -> None:
    config = dataclasses.replace(POLICIES[family], family=family)
    config = dataclasses.replace(config, **changes)
    with pytest.raises(errors.WeightsError) as caught:
        exporter.export_policy(tmp_path / "out", config, {}, ByteTokenizer())
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_types_and_what_does_not_fit_them(tmp_path: Path, params_of: Any) -> None:
    config = dataclasses.replace(POLICIES["qwen3_moe"], family="qwen3_moe")
    params = params_of(Policy(config))
    params["layer_1"]["moe"]["up"] = params["layer_1"]["moe"]["up"].at[2, 3, 4].set(1e5)
    exporter.export_policy(tmp_path / "bf16", config, params, ByteTokenizer(), dtype="bfloat16")
    with safe_open(tmp_path / "bf16" / "model.safetensors", "numpy") as file:
        stored = file.get_tensor("model.layers.1.mlp.experts.2.up_proj.weight")
        assert file.metadata() == {"format": "pt"}
    expected = np.asarray(params["layer_1"]["moe"]["up"][2].T).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(stored.view(np.uint16), expected.view(np.uint16))
    with pytest.raises(errors.WeightsError, match="layer_1/moe/up holds NaN or infinity as float16"):
        exporter.export_policy(tmp_path / "f16", config, params, ByteTokenizer(), dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["bf16"]


def test_imports_onto_a_mesh(tmp_path: Path, params_of: Any) -> None:
    config = POLICIES["mixtral"]
    params = params_of(Policy(config))
    exporter.export_policy(tmp_path / "out", config, params, ByteTokenizer(), family="mixtral")
    mesh = make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))
    read = flatten(importer.read_weights(tmp_path / "out", mesh).params)
    gate = read["layer_1/moe/gate"]
    assert gate.sharding.spec == jax.sharding.PartitionSpec("expert", "fsdp", "tensor")
    assert {shard.data.shape for shard in gate.addressable_shards} == {(2, 24, 20)}
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(read[path], value, err_msg=path)
    mesh = make_mesh(MeshConfig(expert=8))
    with pytest.raises(errors.ConfigError, match=r"policy\.experts=4 does not divide over mesh axes expert = 8"):
        importer.read_weights(tmp_path / "out", mesh, lambda config: check_mesh(config, mesh))


def launch(module: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"launch.{module}", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_launchers_bring_a_folder_back(tiny: Any, tmp_path: Path) -> None:
    policy, out, again = tmp_path / "policy", tmp_path / "out", tmp_path / "again"
    read = importer.read_weights(tiny.write())
    policy_folder.save_policy(policy, dataclasses.replace(read.config, family=""), read.params, read.tokenizer)
    done = launch("export_weights", f"--checkpoint={policy}", f"--output={out}", "--family=llama", "--shard_gb=5e-5")
    assert done.returncode == 0, done.stderr
    assert "as llama in float32" in done.stdout and (out / "model.safetensors.index.json").exists()
    assert (out / "chat_template.jinja").read_text() == read.tokenizer.chat_template
    config = json.loads((out / "config.json").read_text())
    assert config["eos_token_id"] == list(read.tokenizer.stop_ids) and config["architectures"] == ["LlamaForCausalLM"]
    done = launch("import_weights", f"--source={out}", f"--output={again}", "--fsdp=4", "--tensor=2")
    assert done.returncode == 0, done.stderr
    jax.tree.map(np.testing.assert_array_equal, policy_folder.load_policy(again).params, read.params)
