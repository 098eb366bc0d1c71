"""Parity with transformers, family by family: the same weights, read from its files, compute the same."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.policy.cache import make_cache
from rlvr.policy.transformer import Policy
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.weights import exporter, families, importer, safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.weights import reference_models as reference  # noqa: E402

ROWS, LENGTH, PROMPT, NEW = 3, 40, 9, 64
TOLERANCE = 2e-4


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

    start = jnp.zeros(rows, jnp.int32), make_cache(policy.config, rows, length + NEW)
    _, tokens = jax.lax.scan(step, start, jnp.arange(length + NEW - 1))
    return tokens.T[:, length - 1 :]


@pytest.mark.parametrize("family", reference.FAMILIES)
def test_computes_what_transformers_computes(family: str, tmp_path: Path) -> None:
    model = reference.make_model(family)
    read = importer.read_weights(save(model, tmp_path / "theirs"))
    assert read.config.family == family and read.config.context_length == 160
    policy, tokens = Policy(read.config), random_tokens()

    @jax.jit
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
