"""Adapters as PEFT's folders: loaded by it beside transformers' model, they compute what ours do."""

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlvr import adaptation, errors
from rlvr.checkpoint import save_params
from rlvr.policy import lora
from rlvr.policy.config import PolicyConfig
from rlvr.policy.lora import LoraConfig
from rlvr.policy.transformer import Policy
from rlvr.policy_folder import save_policy
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.weights import peft as peft_folders
from rlvr.weights import safetensors

ROOT = Path(__file__).resolve().parents[2]

# What is adapted in the families that have nothing else than attention, one dense layer or none, and experts.
EXPERTS = ("moe/gate", "moe/up", "moe/down")
CASES: dict[str, tuple[str, LoraConfig]] = {
    "llama": ("llama", LoraConfig(rank=3, alpha=5.0)),
    "llama_some": ("llama", LoraConfig(rank=3, alpha=5.0, targets=("attention/out:2", "mlp/up"), layers=(0, 2))),
    "gemma3_text": ("gemma3_text", LoraConfig(rank=4, alpha=0.5)),
    "mixtral": (
        "mixtral",
        LoraConfig(rank=2, alpha=3.0, targets=("moe/gate", "moe/up:3", "moe/down")),
    ),
    "qwen3_moe": ("qwen3_moe", LoraConfig(rank=2, alpha=3.0)),  # layer 1 is dense
    "qwen3_moe_some": ("qwen3_moe", LoraConfig(rank=2, alpha=3.0, targets=("moe/up", "mlp/down:4"), layers=(1, 2))),
    "olmoe": ("olmoe", LoraConfig(rank=2, alpha=3.0, targets=("moe/down:5", "attention/value"))),
    "gpt_oss": (
        "gpt_oss",
        LoraConfig(rank=2, alpha=3.0, targets=("attention/query", *EXPERTS)),
    ),
    "dots1": ("dots1", LoraConfig(rank=2, alpha=3.0)),  # layer 0 is dense, and the others have a shared expert
}


def random_adapters(config: LoraConfig, policy: Policy) -> Any:
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: lora.init_adapters(config, policy, jax.random.key(0)))
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.3, shapes)


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_what_we_compute(case: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    from tests.weights import reference_models as reference

    family, chosen = CASES[case]
    model = reference.make_model(family)
    model.save_pretrained(tmp_path / "base")
    read = safetensors.read_safetensors(tmp_path / "base")
    policy = Policy(read.config)
    chosen.validate(policy)
    adapters = random_adapters(chosen, policy)
    peft_folders.export_adapters(tmp_path / "adapter", read.config, chosen, adapters, base=str(tmp_path / "base"))

    tokens = np.random.default_rng(1).integers(0, reference.V, size=(2, 20)).astype(np.int32)
    positions = jnp.broadcast_to(jnp.arange(20)[None], tokens.shape)

    @jax.jit
    def compute(params: Any, adapters: Any) -> jax.Array:
        beside = lora.attach(params, lora.scale(adapters, chosen.alpha))
        return jax.nn.log_softmax(policy.logits(beside, policy.forward(beside, tokens, positions).hidden))

    ours = np.asarray(compute(read.params, adapters))
    base = reference.logprobs(model, tokens)
    assert np.max(np.abs(ours - base)) > 0.5  # the adapters matter
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert not [str(w.message) for w in caught if "adapter keys" in str(w.message)]
    # 2e-4 on log-probs that are never below -20: logits agree as well as the base's do.
    np.testing.assert_allclose(ours, reference.logprobs(adapted, tokens), atol=2e-4, rtol=0)
    count = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert count == sum(x.size for x in stored.values())  # nothing of PEFT's own was left as it was initialised


def test_the_config_names_targets_as_people_do(tmp_path: Path) -> None:
    config = PolicyConfig(family="llama", dim=24, layers=2, query_heads=4, kv_heads=2, head_size=6, hidden=20)
    chosen = LoraConfig(rank=3, alpha=8.0, targets=("attention/query", "attention/out:5", "mlp/down"))
    adapters = random_adapters(chosen, Policy(config))
    peft_folders.export_adapters(tmp_path / "all", config, chosen, adapters, base="somebody/model")
    fields = json.loads((tmp_path / "all" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["mlp.down_proj", "self_attn.o_proj", "self_attn.q_proj"]
    assert fields["target_parameters"] is None
    assert (fields["r"], fields["lora_alpha"], fields["base_model_name_or_path"]) == (3, 8, "somebody/model")
    assert (fields["rank_pattern"], fields["alpha_pattern"]) == ({"self_attn.o_proj": 5}, {"self_attn.o_proj": 8})
    stored = load_file(tmp_path / "all" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.o_proj.lora_{}.weight"
    assert stored[key.format("A")].shape == (5, 24) and stored[key.format("B")].shape == (24, 5)

    chosen = LoraConfig(rank=3, targets=("mlp/down",), layers=(1,))
    peft_folders.export_adapters(tmp_path / "one", config, chosen, random_adapters(chosen, Policy(config)))
    fields = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert fields["target_modules"] == ["model.layers.1.mlp.down_proj"] and fields["base_model_name_or_path"] is None


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    config = PolicyConfig(dim=24, layers=1, query_heads=4, kv_heads=2, head_size=6, hidden=20)
    chosen = LoraConfig(rank=2, targets=("mlp/down",))
    adapters = random_adapters(chosen, Policy(config))
    with pytest.raises(errors.WeightsError, match=r"policy\.family=''.*accepted: llama"):
        peft_folders.export_adapters(tmp_path / "out", config, chosen, adapters)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(errors.WeightsError, match="exists and is not an empty folder"):
        peft_folders.export_adapters(tmp_path / "full", config, chosen, adapters, family="llama")
    adapters["layer_0"]["mlp"]["down_lora_b"][0, 0] = np.nan
    with pytest.raises(errors.WeightsError, match=r"adapter of model\.layers\.0\.mlp\.down_proj holds NaN"):
        peft_folders.export_adapters(tmp_path / "out", config, chosen, adapters, family="llama")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def launch(*flags: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": "/tmp"}
    command = [sys.executable, "-m", "launch.export_adapter", *flags]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


def test_the_launcher_writes_the_adapters_of_a_workdir(tmp_path: Path) -> None:
    config = PolicyConfig(family="llama", dim=24, layers=2, query_heads=4, kv_heads=2, head_size=6, hidden=20)
    policy, chosen = Policy(config), LoraConfig(rank=2, alpha=4.0)
    save_policy(tmp_path / "base", config, policy.init(jax.random.key(0)), ByteTokenizer())
    adapters = random_adapters(chosen, policy)
    workdir, out = tmp_path / "run", tmp_path / "out"
    save_params(workdir / "checkpoints" / "7" / "params", adapters)
    (workdir / "policy.json").write_text((tmp_path / "base" / "policy.json").read_text())
    done = launch(f"--checkpoint={workdir}", f"--output={out}")
    assert done.returncode == 1 and "run holds no adapters: lora.json is missing" in done.stderr
    adaptation.write(workdir, adaptation.Adaptation(chosen, str(tmp_path / "base"), "0"))
    done = launch(f"--checkpoint={workdir}", f"--output={out}", "--base=somebody/model")
    assert done.returncode == 0, done.stderr
    assert f"wrote adapters of {sum(x.size for x in jax.tree.leaves(adapters)):,} parameters" in done.stdout
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/model"
    stored = load_file(out / "adapter_model.safetensors")
    a = adapters["layer_1"]["mlp"]["up_lora_a"]
    np.testing.assert_array_equal(stored["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"], a.T)
    done = launch(f"--checkpoint={workdir}", f"--output={tmp_path / 'other'}", "--step=3")
    assert done.returncode == 1 and "has no checkpoint of step 3 (it has: [7])" in done.stderr
