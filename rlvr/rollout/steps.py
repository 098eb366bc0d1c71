"""The pure device steps of the slot engine: prefill prompts, admit them to slots, decode."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from rlvr import keys, partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.transformer import Params, Policy
from rlvr.rollout.sampling import sample


class Slots(NamedTuple):
    """Decode state of S slots; only `cache` is large.

    Attributes:
        cache: keys and values of the tokens before `position`.
        token: [S] int32 next token to feed: the prompt's last, then the last sampled.
        position: [S] int32 position of `token` in its sequence.
        active: [S] bool; the others are empty or finished and change no more.
        row_keys: [S] key of each sequence.
        sampled: [S] int32 number of tokens sampled so far.
        tokens, logprobs: [S, C] what was sampled.
        stopped: [S] bool whether the last sampled token is a stop token.
        choices: [S, L, mixture layers, k] int16 experts of the token at each position, or None for a dense policy.
    """

    cache: cache_lib.Cache
    token: jax.Array
    position: jax.Array
    active: jax.Array
    row_keys: jax.Array
    sampled: jax.Array
    tokens: jax.Array
    logprobs: jax.Array
    stopped: jax.Array
    choices: jax.Array | None


class Prefilled(NamedTuple):
    """Prompts [P, T] that were run: their cache, and their experts [P, T, mixture layers, k] int16 or None."""

    cache: cache_lib.Cache
    choices: jax.Array | None


class Admission(NamedTuple):
    """What enters the slots; n entries, of which those with slot >= S are padding.

    Attributes:
        slot: [n] int32.
        source: [n] int32 row of the prefill that holds the prompt.
        token, position: [n] int32 last token of the prompt and its position.
        prompt_id, sample: [n] uint32 identity of the sequence, folded into the call's key.
    """

    slot: jax.Array
    source: jax.Array
    token: jax.Array
    position: jax.Array
    prompt_id: jax.Array
    sample: jax.Array


def make_slots(policy: Policy, slots: int, length: int, max_tokens: int) -> Slots:
    """Returns S empty slots for sequences of up to `length` tokens, of which `max_tokens` sampled."""
    zeros = jnp.zeros(slots, jnp.int32)
    c = policy.config
    routed = (slots, length, len(c.moe_layers), c.experts_per_token)
    return Slots(
        cache=cache_lib.make_cache(policy.config, slots, length),
        token=zeros,
        position=zeros,
        active=zeros > 0,
        row_keys=keys.fold_in_rows(jax.random.key(0), zeros),
        sampled=zeros,
        tokens=jnp.zeros((slots, max_tokens), jnp.int32),
        logprobs=jnp.zeros((slots, max_tokens), jnp.float32),
        stopped=zeros > 0,
        choices=jnp.zeros(routed, jnp.int16) if c.moe_layers else None,
    )


def slot_shardings(policy: Policy, mesh: Mesh) -> Slots:
    """Returns the shardings of Slots on a mesh: slots over the batch axes, heads of the cache over the tensor axis."""
    rows = NamedSharding(mesh, partition.spec(("batch",)))
    shardings: dict[str, Any] = dict.fromkeys(Slots._fields, rows)
    shardings["cache"] = NamedSharding(mesh, partition.spec(cache_lib.AXES))
    shardings["choices"] = rows if policy.config.moe_layers else None
    return Slots(**shardings)


def prefill(policy: Policy, params: Params, tokens: jax.Array) -> Prefilled:
    """Runs prompts tokens [P, T], padded at the end.

    All tokens of a prompt are written but its last is fed again by the first decode step, which makes the first
    logits: so tokens are sampled in one place only.
    """
    prompts, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    empty = cache_lib.make_cache(policy.config, prompts, length)
    output = policy.forward(params, tokens, positions, empty)
    assert output.cache is not None
    return Prefilled(output.cache, None if output.choices is None else output.choices.astype(jnp.int16))


def admit(slots: Slots, prompts: Prefilled, admission: Admission, key: jax.Array) -> Slots:
    """Puts prefilled prompts into slots, ready to decode."""
    row_keys = keys.fold_in_rows(keys.fold_in_rows(key, admission.prompt_id), admission.sample)
    at = admission.slot

    def put(old: jax.Array, new: jax.Array | int | bool) -> jax.Array:
        return old.at[at].set(new, mode="drop")

    choices = slots.choices
    if choices is not None and prompts.choices is not None:
        rows = prompts.choices[admission.source]
        choices = choices.at[at, : rows.shape[1]].set(rows, mode="drop")
    return slots._replace(
        cache=cache_lib.admit(slots.cache, prompts.cache, at, admission.source),
        choices=choices,
        token=put(slots.token, admission.token),
        position=put(slots.position, admission.position),
        active=put(slots.active, True),
        row_keys=slots.row_keys.at[at].set(row_keys, mode="drop"),
        sampled=put(slots.sampled, 0),
        stopped=put(slots.stopped, False),
    )


def decode(
    policy: Policy,
    params: Params,
    slots: Slots,
    temperature: jax.Array,
    max_tokens: jax.Array,
    stop_ids: tuple[int, ...],
    steps: int,
) -> Slots:
    """Samples up to `steps` tokens in every active slot.

    Args:
        temperature: scalar; 0 is greedy.
        max_tokens: scalar int32; a sequence ends after so many sampled tokens.
        stop_ids: a sequence ends after sampling one of these (which stays part of it).
        steps: tokens a dispatch; ends early when no slot is active.
    """
    rows = jnp.arange(slots.token.shape[0])
    width = slots.tokens.shape[1]

    def one(slots: Slots) -> Slots:
        token = partition.constrain(slots.token[:, None], "batch", None)
        output = policy.forward(params, token, slots.position[:, None], slots.cache)
        logits = policy.logits(params, output.hidden[:, 0])
        drawn, logprobs = sample(logits, slots.row_keys, slots.sampled, temperature)
        stopped = jnp.isin(drawn, jnp.array(stop_ids, jnp.int32))
        count = slots.sampled + slots.active
        column = jnp.where(slots.active, slots.sampled, width)  # inactive rows write nowhere
        assert output.cache is not None
        choices = slots.choices
        if choices is not None and output.choices is not None:
            fed = jnp.where(slots.active, slots.position, choices.shape[1])
            choices = choices.at[rows, fed].set(output.choices[:, 0].astype(jnp.int16), mode="drop")
        return Slots(
            cache=output.cache,
            token=jnp.where(slots.active, drawn, slots.token),
            position=slots.position + slots.active,
            active=slots.active & ~stopped & (count < max_tokens),
            row_keys=slots.row_keys,
            sampled=count,
            tokens=slots.tokens.at[rows, column].set(drawn, mode="drop"),
            logprobs=slots.logprobs.at[rows, column].set(logprobs, mode="drop"),
            stopped=jnp.where(slots.active, stopped, slots.stopped),
            choices=choices,
        )

    def more(carry: tuple[jax.Array, Slots]) -> jax.Array:
        return (carry[0] < steps) & jnp.any(carry[1].active)

    def body(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        return carry[0] + 1, one(carry[1])

    return jax.lax.while_loop(more, body, (jnp.int32(0), slots))[1]
