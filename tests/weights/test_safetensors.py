import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlvr import errors
from rlvr.weights import gguf, importer, safetensors


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


@pytest.fixture
def folder(tmp_path, tiny):
    """A tiny untied policy in one file, with its tokenizer."""
    d, h, k, head, f, n = tiny.dims
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tiny.vocab,
        "hidden_size": d,
        "num_hidden_layers": n,
        "num_attention_heads": h,
        "num_key_value_heads": k,
        "head_dim": head,
        "intermediate_size": f,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tiny.weights, tmp_path / "model.safetensors")
    tiny.train_tokenizer("smollm").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return tmp_path


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def refusal(folder):
    with pytest.raises(errors.WeightsError) as caught:
        importer.read_weights(folder)
    return str(caught.value)


def test_equals_the_gguf_file_of_the_same_weights(folder, tiny, tmp_path_factory):
    tiny.path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    expected = gguf.read_gguf(tiny.write())
    read = importer.read_weights(folder)
    same = {"family": "", "context_length": 0}
    assert dataclasses.replace(read.config, **same) == dataclasses.replace(expected.config, **same)
    assert read.config.family == "llama" and read.stored_types == ("F32",)
    ours, theirs = dict(leaves(read.params)), dict(leaves(expected.params))
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)


@pytest.mark.parametrize(("tied", "dtype", "shard"), [(True, "bfloat16", "8KB"), (False, "float32", "1GB")])
def test_reads_what_transformers_saves(tmp_path, tied, dtype, shard):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
    )
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 if shard == "8KB" else len(files) == 1
    read = safetensors.read_safetensors(tmp_path)
    c = read.config
    assert (c.tied_head, c.rope.theta, c.norm_epsilon, c.head_size) == (tied, 777.0, 1e-6, 6)
    assert read.stored_types == ({"bfloat16": "BF16", "float32": "F32"}[dtype],)
    assert ("head" in read.params) is not tied
    # The projections, run by the library's modules on the same input.
    x = torch.randn(32, dtype=getattr(torch, dtype)).to(torch.float32)
    model = model.to(torch.float32)
    for i, block in enumerate(model.model.layers):
        layer = read.params[f"layer_{i}"]
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            expected = getattr(block.self_attn, theirs)(x).detach().numpy()
            actual = np.einsum("d,dnh->nh", x.numpy(), layer["attention"][ours]).reshape(-1)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        heads = torch.randn(24)
        expected = block.self_attn.o_proj(heads).detach().numpy()
        actual = np.einsum("nh,nhd->d", heads.numpy().reshape(4, 6), layer["attention"]["out"])
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        gate, up = (x.numpy() @ layer["mlp"][name] for name in ("gate", "up"))
        actual = (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down"]
        np.testing.assert_allclose(actual, block.mlp(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(read.params["embed"]["table"], model.model.embed_tokens.weight.detach())
    if not tied:
        np.testing.assert_array_equal(read.params["head"]["kernel"], model.lm_head.weight.detach().T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "opt"},
            "model_type='opt' is not a known family (accepted: llama (LlamaForCausalLM), smollm3 (",
        ),
        ({"model_type": "qwen2"}, "architectures=['LlamaForCausalLM'] is not supported (accepted: Qwen2ForCausalLM)"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "(accepted: LlamaForCausalLM)"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling: the field original_max_position_emb"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling: type='dynamic' is not supported (accepted: default, linear, llama3, yarn)",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters: the field factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1]}}, "mrope_section=[1] is not"),
        ({"rope_parameters": {"full_attention": {}}}, "RoPE by layer type is not of this family"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_interleaved": True}, "rope_interleaved=True is not supported (accepted: False)"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported (accepted: 'silu', 'gelu_pytorch_tanh')"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported"),
        ({"hidden_size": "absent"}, "the field hidden_size is missing"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers='two' must be a positive integer"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps=-1.0 must be a positive number"),
        ({"num_key_value_heads": 3}, "policy.query_heads=4 is not a multiple"),
        ({"head_dim": 5}, "policy.head_size=5: RoPE needs an even head size"),
    ],
)
def test_refuses_configs_it_cannot_honour(folder, changes, message):
    edit(folder, **changes)
    found = refusal(folder)
    assert str(folder / "config.json") in found and message in found


def test_refuses_a_tokenizer_larger_than_the_vocabulary(folder, tiny):
    edit(folder, vocab_size=100)
    assert f"the tokenizer has {tiny.vocab} ids, but the embedding table only 100 rows" in refusal(folder)


def test_refuses_tensors_that_do_not_fit(folder, tiny):
    name = "model.layers.1.mlp.up_proj.weight"
    file = folder / "model.safetensors"
    save_file({k: v for k, v in tiny.weights.items() if k != name}, file)
    assert f"the tensor '{name}' of shape [40, 32] is missing" in refusal(folder)
    save_file(tiny.weights | {name: np.zeros((32, 40), np.float32)}, file)
    assert f"'{name}' has shape [32, 40]; the metadata asks for [40, 32]" in refusal(folder)
    save_file(tiny.weights | {"model.extra": np.zeros(3, np.float32)}, file)
    assert "no parameter of this policy takes: 'model.extra' [3]" in refusal(folder)
    save_file(tiny.weights | {name: np.full((40, 32), np.inf, np.float32)}, file)
    assert f"'{name}' holds NaN or infinity" in refusal(folder)
    save_file(tiny.weights | {name: np.zeros((40, 32), np.float64)}, file)
    assert f"'{name}' has type F64 (accepted: F32, F16, BF16)" in refusal(folder)


def test_a_stored_copy_of_the_tied_head_is_dropped_and_another_matrix_refused(folder, tiny):
    edit(folder, tie_word_embeddings=True)
    assert "'lm_head.weight' differs from 'model.embed_tokens.weight'" in refusal(folder)
    same = tiny.weights | {"lm_head.weight": tiny.weights["model.embed_tokens.weight"].copy()}
    save_file(same, folder / "model.safetensors")
    read = importer.read_weights(folder)
    assert read.config.tied_head and "head" not in read.params


def test_refuses_missing_and_corrupt_files(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert f"{file}: truncated or corrupt safetensors file" in refusal(folder)
    file.unlink()
    assert "neither model.safetensors nor model.safetensors.index.json is there" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert f"{folder / 'config.json'}: not valid JSON" in refusal(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert f"{folder / 'tokenizer.json'}: not a tokenizer" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert f"{folder / 'tokenizer.json'}: the file is missing" in refusal(folder)


def test_shards_must_hold_what_the_index_says(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, held in shards.items() for name in held}
    index.write_text(json.dumps({"weight_map": weight_map}))
    importer.read_weights(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: "b.safetensors"}}))
    assert f"the tensor '{names[0]}' is missing, though" in refusal(folder)
    index.write_text(json.dumps({"weight_map": weight_map | {names[0]: "c.safetensors"}}))
    assert f"{folder / 'c.safetensors'}: the shard is missing" in refusal(folder)
    index.write_text(json.dumps({"metadata": {}}))
    assert "the field weight_map is missing or empty" in refusal(folder)
