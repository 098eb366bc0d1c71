"""Log-probabilities of given tokens, and losses of them, without ever holding logits of more than a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.learner.batch import TrainBatch
from rlvr.policy.packed import Segments
from rlvr.policy.transformer import Output, Params, Policy

# What takes the place of the logits of tokens that could not be sampled: exp of it is 0, and 0 times it is 0.
NEVER = -1e30

Metrics = dict[str, jax.Array]
# (log-probs [R, n], entropies [R, n], the fields of those tokens) -> (loss, (sums, maxima)), over the tokens.
Loss = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, tuple[Metrics, Metrics]]]


class Other(NamedTuple):
    """Another distribution over the sampled tokens, for a divergence from it; without gradient.

    Attributes:
        logits: (its parameters, hidden states [R, n, D']) -> logits [R, n, V].
        divergence: (log-probs of the policy [R, n, V], of the other [R, n, V], the fields) -> [R, n].
        params: of `logits`.
        hidden: [R, T, D'].
        sources: [R, S] places in T of the states to predict from.
    """

    logits: Callable[[Params, jax.Array], jax.Array]
    divergence: Callable[[jax.Array, jax.Array, Any], jax.Array]
    params: Params
    hidden: jax.Array
    sources: jax.Array


def run_rows(policy: Policy, params: Params, batch: TrainBatch, replay: jax.Array | None = None) -> Output:
    """Runs a micro-batch through the policy, each token seeing its own sequence only; see `Policy.forward`."""
    tokens = partition.constrain(batch.tokens, "batch", None)
    segments = Segments(batch.segments, batch.prefixes)
    return policy.forward(params, tokens, batch.positions, replay=replay, segments=segments, counts=batch.counts)


def token_logprobs(
    policy: Policy,
    params: Params,
    hidden: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    columns: jax.Array,
    temperature: jax.Array,
    chunk: int,
    support: jax.Array | None = None,
) -> jax.Array:
    """Scores targets from the hidden states before them. For values only: `token_loss` has the gradients.

    Args:
        hidden: [R, T, D].
        sources: [R, S] places in T of the states to predict from.
        targets: [R, S] token ids.
        columns: scalar int32; the first so many of S are scored, the others are 0.
        temperature: scalar > 0 dividing the logits, as at sampling.
        chunk: tokens whose logits exist at a time.
        support: [R, S, V / 8] uint8 which tokens could have been sampled: the others are left out of the distribution,
            as at sampling; or None.

    Returns:
        logprobs [R, S], float32.
    """
    scored = (hidden, sources, targets, columns, temperature, chunk, support)
    return token_statistics(policy, params, *scored, entropies=False)[0]


def token_statistics(
    policy: Policy,
    params: Params,
    hidden: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    columns: jax.Array,
    temperature: jax.Array,
    chunk: int,
    support: jax.Array | None = None,
    *,
    entropies: bool = True,
) -> tuple[jax.Array, ...]:
    """Returns (logprobs [R, S], entropies [R, S] if they are wanted); see `token_logprobs`."""
    head = policy.head_params(params)
    width, padded = _pad((sources, targets, support), chunk)

    def body(i: jax.Array, out: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        at, wanted, drawable = _columns(padded, i, width)
        logprobs, log_p = _normalise(_logits(policy, head, _take(hidden, at), temperature, drawable), wanted)
        found = (logprobs, _entropies(log_p)) if entropies else (logprobs,)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, own, i * width, axis=1) for x, own in zip(out, found, strict=True)
        )

    empty = partition.constrain(jnp.zeros(padded[0].shape, jnp.float32), "batch", None)
    out = jax.lax.fori_loop(0, -(-columns // width), body, (empty,) * (1 + entropies))
    return tuple(x[:, : sources.shape[1]] for x in out)


def token_loss(
    policy: Policy,
    params: Params,
    hidden: jax.Array,
    sources: jax.Array,
    targets: jax.Array,
    columns: jax.Array,
    temperature: jax.Array,
    chunk: int,
    loss: Loss,
    fields: Any,
    support: jax.Array | None = None,
    other: Other | None = None,
) -> tuple[jax.Array, tuple[Metrics, Metrics]]:
    """A loss that is a sum over tokens of any function of their log-probs and entropies.

    The gradient is made together with the value, chunk by chunk, so that the logits are made once and live only
    within their chunk. That of the head is left out where it is not wanted (adapters).

    Args:
        loss: of a chunk of tokens; its fields must mask those that do not count. Sums and maxima start from 0.
        fields: tree of arrays [R, S], given to the loss chunk by chunk.
        other: where there is one, the loss has among its fields the "divergence" from it, with its gradient.
        Others: see `token_logprobs`.

    Returns:
        (loss, (sums, maxima)); the last two are without gradient.
    """
    beside_sources = None if other is None else other.sources
    width, padded = _pad((sources, targets, fields, support, beside_sources), chunk)
    beside = None if other is None else jax.lax.stop_gradient((other.params, other.hidden))
    data = (padded, -(-columns // width), temperature, beside)

    def run(head: Params, hidden: jax.Array, data: Any, wanted: tuple[bool, bool]) -> tuple[Any, jax.Array, Params]:
        """Returns (value, gradient by hidden, gradient by head), the last two only where wanted."""
        padded, chunks, temperature, beside = data

        def compare(own: Any, at: Any) -> Callable[[jax.Array], jax.Array] | None:
            """Returns the divergence of a chunk by the policy's log-probs."""
            if other is None:
                return None
            params, states = beside
            logits = other.logits(params, partition.constrain(_take(states, at), "batch", None, None)) / temperature
            log_q = jax.nn.log_softmax(partition.constrain(logits, "batch", None, "vocab"), axis=-1)
            return lambda log_p: other.divergence(log_p, log_q, own)

        def step(i: jax.Array) -> tuple[Any, jax.Array, Any]:
            at, ids, own, drawable, elsewhere = _columns(padded, i, width)
            inputs = (_take(hidden, at).astype(jnp.float32), *((head,) if wanted[1] else ()))
            logits, pull = jax.vjp(
                lambda x, *given: _logits(policy, given[0] if given else head, x, temperature, drawable), *inputs
            )
            value, by_logits = _loss_of_logits(loss, logits, ids, own, compare(own, elsewhere))
            return value, at, pull(by_logits)

        def body(i: jax.Array, carry: Any) -> Any:
            (total, (sums, maxima)), by_hidden, by_head = carry
            (value, (more, largest)), at, (states_step, *head_step) = step(i)
            total = (total + value, (_map(jnp.add, sums, more), _map(jnp.maximum, maxima, largest)))
            if wanted[0]:
                by_hidden = jax.vmap(lambda x, at, step: x.at[at].add(step))(by_hidden, at, states_step)
            if wanted[1]:
                by_head = _map(jnp.add, by_head, *head_step)
            return total, by_hidden, by_head

        nothing = _map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(step, jnp.int32(0))[0])
        by_hidden = partition.constrain(jnp.zeros(hidden.shape, jnp.float32), "batch", None, None)
        return jax.lax.fori_loop(0, chunks, body, (nothing, by_hidden, _map(jnp.zeros_like, head)))

    @jax.custom_vjp
    def summed(head: Params, hidden: jax.Array, data: Any) -> Any:
        return run(head, hidden, data, (False, False))[0]

    def forward(*primals: Any) -> tuple[Any, Any]:
        head_wanted = any(leaf.perturbed for leaf in jax.tree.leaves(primals[0], is_leaf=_is_primal))
        head, hidden, data = jax.tree.map(lambda leaf: leaf.value, primals, is_leaf=_is_primal)
        value, by_hidden, by_head = run(head, hidden, data, (True, head_wanted))
        return value, (by_hidden.astype(hidden.dtype), by_head if head_wanted else None)

    def backward(saved: Any, bars: Any) -> tuple[Any, Any, None]:
        by_hidden, by_head = saved
        scale = bars[0]
        return _map(lambda x: x * scale, by_head), by_hidden * scale.astype(by_hidden.dtype), None

    summed.defvjp(forward, backward, symbolic_zeros=True)
    value, measured = summed(policy.head_params(params), hidden, data)
    return value, jax.lax.stop_gradient(measured)


def _loss_of_logits(
    loss: Loss, logits: jax.Array, ids: jax.Array, fields: Any, compare: Callable[[jax.Array], jax.Array] | None
) -> tuple[Any, jax.Array]:
    """Returns ((loss, (sums, maxima)), gradient by the logits [R, n, V]) of one chunk."""
    logprobs, log_p = _normalise(logits, ids)
    p, entropies = jnp.exp(log_p), _entropies(log_p)
    far, pull_far = (None, None) if compare is None else jax.vjp(compare, log_p)

    def of_statistics(x: jax.Array, h: jax.Array, d: jax.Array | None) -> Any:
        return loss(x, h, fields if d is None else {**fields, "divergence": d})

    value, pull, beside = jax.vjp(of_statistics, logprobs, entropies, far, has_aux=True)
    by_logprob, by_entropy, by_far = pull(jnp.ones_like(value))
    by_logprob, by_entropy = by_logprob[..., None], by_entropy[..., None]
    is_target = jnp.arange(logits.shape[-1])[None, None, :] == ids[..., None]
    # d logprob / d logits = [target] - p, and d entropy / d logits = -p (log p + entropy).
    by_logits = jnp.where(is_target, by_logprob, 0.0) - p * (by_logprob + by_entropy * (log_p + entropies[..., None]))
    if pull_far is not None:
        (by_log_p,) = pull_far(by_far)
        by_logits += by_log_p - p * jnp.sum(by_log_p, axis=-1, keepdims=True)
    return (value, beside), by_logits


def _normalise(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (log-probs of the ids [R, n], of all [R, n, V])."""
    lse = jax.scipy.special.logsumexp(logits, axis=-1)
    return jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0] - lse, logits - lse[..., None]


def _entropies(log_p: jax.Array) -> jax.Array:
    # Not lse - sum(p * logits): that is the difference of two large numbers where the policy is nearly certain.
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _logits(
    policy: Policy, head: Params, states: jax.Array, temperature: jax.Array, support: jax.Array | None
) -> jax.Array:
    logits = policy.logits(head, partition.constrain(states, "batch", None, None)) / temperature
    if support is not None:
        logits = jnp.where(jnp.unpackbits(support, axis=-1, count=logits.shape[-1]) > 0, logits, NEVER)
    return partition.constrain(logits, "batch", None, "vocab")


def _take(hidden: jax.Array, at: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden, at[..., None], axis=1)


def _pad(columns: Any, chunk: int) -> tuple[int, Any]:
    """Returns (columns of a chunk of about `chunk` tokens, the arrays [R, S] with S padded to a multiple of them)."""
    rows, count = jax.tree.leaves(columns)[0].shape
    width = max(min(chunk // rows, count), 1)
    return width, _map(lambda x: jnp.pad(x, ((0, 0), (0, -count % width)) + ((0, 0),) * (x.ndim - 2)), columns)


def _columns(columns: Any, i: jax.Array, width: int) -> Any:
    return _map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * width, width, axis=1), columns)


def _is_primal(x: Any) -> bool:
    return hasattr(x, "perturbed")


_map = jax.tree.map
