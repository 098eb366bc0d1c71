"""Parity with transformers, family by family: the same weights, read from its files, compute the same."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlvr import errors
from rlvr.policy.cache import Cache, make_pages
from rlvr.policy.transformer import Policy
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.weights import exporter, importer, safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.weights import reference_models as reference  # noqa: E402

ROWS, LENGTH, PROMPT, NEW = 3, 40, 9, 64
TOLERANCE = 2e-4
# Compiling is most of the time here, and how well the machine code runs is of no interest.
QUICKLY = {"xla_backend_optimization_level": 0}


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


def random_tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, reference.V, size=(ROWS, LENGTH)).astype(np.int32)


def positions_of(tokens: Any) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)


def all_logprobs(policy: Policy, params: Any, tokens: jax.Array) -> jax.Array:
    """Log-probs [B, T, V] without a cache."""
    return jax.nn.log_softmax(policy.logits(params, policy.forward(params, tokens, positions_of(tokens)).hidden))


def empty_cache(policy: Policy, rows: int, length: int) -> Cache:
    """A cache with pages of 16 tokens for rows of `length`."""
    pages = -(-length // 16)
    table = jnp.arange(rows * pages, dtype=jnp.int32).reshape(1, rows, pages)
    return Cache(make_pages(policy.config, 1, rows * pages, 16), table)


def greedy(policy: Policy, params: Any, prompts: jax.Array) -> jax.Array:
    """The most probable continuations [B, NEW], token by token through the cache."""
    rows, length = prompts.shape
    given = jnp.pad(prompts, ((0, 0), (0, NEW)), constant_values=-1)

    def step(carry: Any, position: jax.Array) -> Any:
        last, cache = carry
        token = jnp.where(given[:, position] < 0, last, given[:, position])
        output = policy.forward(params, token[:, None], jnp.full((rows, 1), position, jnp.int32), cache)
        best = jnp.argmax(policy.logits(params, output.hidden[:, 0]), axis=-1).astype(jnp.int32)
        return (best, output.cache), best

    start = jnp.zeros(rows, jnp.int32), empty_cache(policy, rows, length + NEW)
    _, tokens = jax.lax.scan(step, start, jnp.arange(length + NEW - 1))
    return tokens.T[:, length - 1 :]


@pytest.mark.parametrize("family", reference.FAMILIES)
def test_computes_what_transformers_computes(family: str, tmp_path: Path) -> None:
    model = reference.make_model(family)
    read = importer.read_weights(save(model, tmp_path / "theirs"))
    assert read.config.family == family and read.config.context_length == 160
    policy, tokens = Policy(read.config), random_tokens()

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def compute(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        return all_logprobs(policy, params, tokens), greedy(policy, params, tokens[:, :PROMPT])

    ours, continued = compute(read.params, tokens)
    right = reference.logprobs(model, tokens, right=(0, 5, 11))
    assert np.std(right) > 1.0  # a flat distribution would agree whatever the network does
    np.testing.assert_allclose(ours, right, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(ours, reference.logprobs(model, tokens, left=(11, 5, 0)), atol=TOLERANCE, rtol=0)

    # Each of our tokens is the most probable after those before it: then the two continuations are one.
    whole = np.concatenate([tokens[:, :PROMPT], continued], axis=1)
    best = reference.logprobs(model, whole).argmax(-1)
    np.testing.assert_array_equal(continued, best[:, PROMPT - 1 : -1])

    exporter.export_policy(tmp_path / "ours", read.config, read.params, read.tokenizer, shard_bytes=100_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    np.testing.assert_allclose(reference.logprobs(again.eval(), tokens), ours, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
def test_gradients_are_those_of_torch(family: str, tmp_path: Path) -> None:
    model = reference.make_model(family)
    read = importer.read_weights(save(model, tmp_path))
    policy, tokens = Policy(read.config), random_tokens()

    def mean_logprob(params: Any, tokens: jax.Array) -> jax.Array:
        found = all_logprobs(policy, params, tokens)[:, :-1]
        return jnp.take_along_axis(found, tokens[:, 1:, None], axis=-1).mean()

    ours = jax.jit(jax.grad(mean_logprob), compiler_options=QUICKLY)(read.params, tokens)

    ids = torch.tensor(tokens, dtype=torch.long)
    found = torch.log_softmax(model(ids).logits[:, :-1], -1)
    found.gather(-1, ids[:, 1:, None]).mean().backward()
    # Gradients have the layout of the weights: the reader brings them into ours.
    for parameter in model.parameters():
        parameter.data = parameter.grad
    theirs = importer.read_weights(save(model, tmp_path)).params

    def compare(path: Any, a: jax.Array, b: np.ndarray) -> None:
        assert np.abs(b).max() > 0, path
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max(), path

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


def test_mxfp4_experts_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    width, hidden, experts = 64, 32, 5
    model = reference.make_model("gpt_oss", hidden_size=width, intermediate_size=hidden)
    folder = save(model, tmp_path)
    file = folder / safetensors.SINGLE_FILE
    stored, rng = load_file(file), np.random.default_rng(0)
    plain, packed = dict(stored), dict(stored)
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        outs, ins = stored[name].shape[2], stored[name].shape[1]
        blocks = rng.integers(0, 256, size=(experts, outs, ins // 32, 16), dtype=np.uint8)
        scales = rng.integers(110, 132, size=blocks.shape[:-1], dtype=np.uint8)
        values = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
        plain[name] = values.float().numpy()
        del packed[name]
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(plain, file)
    expected = importer.read_weights(folder).params
    save_file(packed, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    read = importer.read_weights(folder)
    assert read.stored_types == ("F32", "MXFP4")
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)

    name = "model.layers.1.mlp.experts.down_proj"
    save_file({key: value for key, value in packed.items() if key != f"{name}_scales"}, file)
    with pytest.raises(errors.WeightsError, match=f"the tensor '{name}_scales' is missing"):
        importer.read_weights(folder)
    save_file(packed | {f"{name}_scales": np.zeros((experts, width, 2), np.uint8)}, file)
    with pytest.raises(errors.WeightsError, match="do not fit; expected"):
        importer.read_weights(folder)
