"""The pure device steps of the engine: prefill prompts, decode rows. Only the pages of the cache live on the device;
which sequence is in which row, and what it has sampled so far, the host knows and sends along."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy.cache import AnyLayer, Cache, Prefix
from rlvr.policy.transformer import Params, Policy
from rlvr.rollout.sampling import Sampling, sample


class Rows(NamedTuple):
    """R sequences that decode together, shard by shard (`rlvr.policy.cache`).

    Attributes:
        token: [R] int32 next token to feed: the prompt's last, then the last sampled.
        position: [R] int32 position of `token` in its sequence.
        sampled: [R] int32 number of tokens sampled so far.
        limit: [R] int32 number of tokens after which it ends; 0 for an empty row.
        keys: [R, 2] uint32 data of each sequence's key.
        table: [X, R / X, N] int32 pages; None for strips.
    """

    token: jax.Array
    position: jax.Array
    sampled: jax.Array
    limit: jax.Array
    keys: jax.Array
    table: Any


class Sampled(NamedTuple):
    """What a dispatch of n steps sampled; of row r, the first `taken[r]` columns.

    Attributes:
        taken: [R] int32 number of tokens.
        stopped: [R] bool whether the last sampled token is a stop token.
        tokens, logprobs: [R, n].
        choices: [R, n, mixture layers, k] int16 experts of the token that was fed to sample each, or None for a dense
            policy.
        support: [R, n, V / 8] uint8, see `rlvr.rollout.sampling.Draw`, or None.
    """

    taken: jax.Array
    stopped: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    choices: jax.Array | None
    support: jax.Array | None


class Prefilled(NamedTuple):
    """Prompts [B, T] that were run: keys and values, and experts [B, T, mixture layers, k] int16 or None."""

    prefixes: tuple[Prefix, ...]
    choices: jax.Array | None


def prefill(policy: Policy, params: Params, tokens: jax.Array) -> Prefilled:
    """Runs prompts tokens [B, T], padded at the end.

    All tokens of a prompt are kept but its last is fed again by the first decode step, which makes the first
    logits: so tokens are sampled in one place only.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    output = policy.forward(params, tokens, positions, keep=True)
    assert output.prefix is not None
    return Prefilled(output.prefix, None if output.choices is None else output.choices.astype(jnp.int16))


def decode(
    policy: Policy,
    params: Params,
    layers: tuple[AnyLayer, ...],
    rows: Rows,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    steps: int,
    *,
    filtered: bool,
) -> tuple[tuple[Any, ...], Sampled]:
    """Samples up to `steps` tokens in every row that is not empty.

    Args:
        layers: the pages, of which those of `rows.table` hold the tokens before `rows.position` and have room for the
            new ones; or the strips of the rows.
        stop_ids: a sequence ends after sampling one of these (which stays part of it).
        steps: tokens a dispatch; ends early when every sequence has ended.
        filtered: see `sample`.
    """
    c = policy.config
    count = rows.token.shape[0]
    row_keys = jax.random.wrap_key_data(rows.keys)
    shape = (count, steps)
    start = Sampled(
        taken=jnp.zeros(count, jnp.int32),
        stopped=jnp.zeros(count, bool),
        tokens=jnp.zeros(shape, jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
        choices=jnp.zeros((*shape, len(c.moe_layers), c.experts_per_token), jnp.int16) if c.moe_layers else None,
        support=jnp.zeros((*shape, -(-c.vocab_size // 8)), jnp.uint8) if filtered else None,
    )
    Carry = tuple[jax.Array, jax.Array, jax.Array, tuple[AnyLayer, ...], Sampled]

    def body(carry: Carry) -> Carry:
        i, active, token, layers, out = carry
        fed = partition.constrain(token[:, None], "batch", None)
        # A row that has ended goes on writing at its own next position, which nobody reads.
        position = (rows.position + out.taken)[:, None]
        output = policy.forward(params, fed, position, Cache(layers, rows.table))
        assert output.cache is not None
        logits = policy.logits(params, output.hidden[:, 0])
        drawn = sample(logits, row_keys, rows.sampled + out.taken, sampling, filtered=filtered)
        stopped = jnp.isin(drawn.tokens, jnp.array(stop_ids, jnp.int32))
        taken = out.taken + active

        def put(old: jax.Array | None, new: jax.Array | None) -> jax.Array | None:
            return None if old is None or new is None else old.at[:, i].set(new.astype(old.dtype))

        out = Sampled(
            taken=taken,
            stopped=jnp.where(active, stopped, out.stopped),
            tokens=out.tokens.at[:, i].set(drawn.tokens),
            logprobs=out.logprobs.at[:, i].set(drawn.logprobs),
            choices=put(out.choices, None if output.choices is None else output.choices[:, 0]),
            support=put(out.support, drawn.support),
        )
        still = active & ~stopped & (rows.sampled + taken < rows.limit)
        return i + 1, still, jnp.where(active, drawn.tokens, token), output.cache.layers, out

    def more(carry: Carry) -> jax.Array:
        return (carry[0] < steps) & jnp.any(carry[1])

    carry = (jnp.int32(0), rows.sampled < rows.limit, rows.token, layers, start)
    _, _, _, layers, out = jax.lax.while_loop(more, body, carry)
    return layers, out
