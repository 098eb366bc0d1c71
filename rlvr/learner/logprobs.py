"""Log-probabilities of given tokens, without ever holding logits of shape [B, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.transformer import Output, Params, Policy


def token_logprobs(
    policy: Policy, params: Params, hidden: jax.Array, targets: jax.Array, temperature: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """Scores targets from the hidden states before them, `chunk` columns at a time.

    The logits of a chunk live only within its step, forward and backward (they are recomputed there).

    Args:
        hidden: [R, C, D].
        targets: [R, C] token ids.
        temperature: scalar > 0 dividing the logits, as at sampling.
        chunk: columns a step.

    Returns:
        (logprobs [R, C], entropies [R, C] in nats), float32.
    """
    rows, columns, _ = hidden.shape
    chunks = -(-columns // chunk)
    pad = chunks * chunk - columns

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(rows, chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def score(params: Params, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = policy.logits(params, partition.constrain(hidden, "batch", None, None)) / temperature
        logits = partition.constrain(logits, "batch", None, "vocab")
        lse = jax.scipy.special.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        # Not lse - sum(p * logits): that is the difference of two large numbers where the policy is nearly certain.
        log_probabilities = logits - lse[..., None]
        return picked - lse, -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)

    def body(_: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array]]:
        return None, score(params, *inputs)

    _, (logprobs, entropies) = jax.lax.scan(body, None, (split(hidden), split(targets)))

    def join(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(rows, chunks * chunk)[:, :columns]

    return join(logprobs), join(entropies)


def row_logprobs(
    policy: Policy,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    scored: jax.Array,
    temperature: jax.Array,
    chunk: int,
    replay: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Output]:
    """Runs rows through the policy and scores the chosen tokens of each.

    The head is applied only where a log-probability is wanted.

    Args:
        tokens: [R, T], padded at the end.
        lengths: [R] tokens that are not padding.
        scored: [R, C] positions (>= 1) of the tokens to score; padding entries score something meaningless.
        temperature, chunk: see `token_logprobs`.
        replay: see `Policy.forward`.

    Returns:
        (logprobs [R, C], entropies [R, C], the policy's output).
    """
    tokens = partition.constrain(tokens, "batch", None)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    output = policy.forward(params, tokens, positions, valid=positions < lengths[:, None], replay=replay)
    before = jnp.maximum(scored - 1, 0)
    hidden = jnp.take_along_axis(output.hidden, before[..., None], axis=1)
    targets = jnp.take_along_axis(tokens, scored, axis=1)
    logprobs, entropies = token_logprobs(policy, params, hidden, targets, temperature, chunk)
    return logprobs, entropies, output
