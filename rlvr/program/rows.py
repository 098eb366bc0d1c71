"""Rows for the learner whose layout never changes: a prompt and some of its completions, each in a place of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlvr.learner.batch import TrainBatch
from rlvr.policy.packed import BLOCK


class PlacedBatch(TrainBatch):
    """A micro-batch whose sampled tokens stand in fixed columns, with gaps between them: all columns are scored."""

    def columns(self) -> Any:
        return self.mask.shape[-1]


def row_members(prompt: int, completion: int, samples: int) -> int:
    """Returns how many completions of a prompt share a row: all of a group, or as many as one block of attention holds.

    Args:
        prompt, completion: longest, in tokens.
        samples: G.
    """
    fitting = (n for n in range(samples, 0, -1) if samples % n == 0 and prompt + n * (completion - 1) <= BLOCK)
    return next(fitting, 1)


def lay_out(
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    completions: jax.Array,
    lengths: jax.Array,
    *,
    samples: int,
    per_token: dict[str, jax.Array],
    live: jax.Array | None = None,
) -> PlacedBatch:
    """Lays out all completions of P prompts as one micro-batch; the tokens of a prompt stand once in each row.

    Args:
        prompts: [P, T]; prompt_lengths: [P].
        completions: [B, C], sample s of prompt p at p * samples + s; lengths: [B].
        per_token: fields of `TrainBatch` [B, C] of each sampled token; those left out are zeros.
        live: [B] bool, which sequences count; all by default.
    """
    count, budget = completions.shape
    width, run = prompts.shape[1], max(budget - 1, 0)
    members = row_members(width, budget, samples)
    rows = count // members

    def of_rows(x: jax.Array) -> jax.Array:
        """[B, C, ...] -> [R, members * C, ...]."""
        return x.reshape(rows, members * x.shape[1], *x.shape[2:])

    owner = jnp.repeat(jnp.arange(len(prompts)), samples // members)  # of each row
    starts = prompt_lengths[owner]  # [R]
    there = jnp.arange(width)[None, :] < starts[:, None]
    fed = completions[:, :run]
    fed_there = of_rows(jnp.arange(run)[None, :] < lengths[:, None] - 1)
    member = jnp.repeat(jnp.arange(members), run)[None, :]  # [1, members * run]
    offset = jnp.tile(jnp.arange(run), members)[None, :]
    own = jnp.concatenate([jnp.where(there, 0, -1), jnp.where(fed_there, member + 1, -1)], axis=1)
    place = jnp.arange(budget)
    sources = jnp.where(
        place[None, None, :] > 0, width + jnp.arange(members)[None, :, None] * run + place[None, None, :] - 1, 0
    )
    sources = jnp.where(place[None, None, :] > 0, sources, starts[:, None, None] - 1)
    sampled = jnp.arange(budget)[None, :] < lengths[:, None]
    if live is not None:
        sampled &= live[:, None]
    fields = {name: of_rows(x) for name, x in per_token.items()}
    zeros = jnp.zeros((rows, members * budget), jnp.float32)
    given: dict[str, Any] = {
        name: zeros for name in ("old_logprobs", "reference_logprobs", "advantages", "weights")
    } | fields
    return PlacedBatch(
        tokens=jnp.concatenate([prompts[owner], of_rows(fed)], axis=1),
        positions=jnp.concatenate(
            [jnp.broadcast_to(jnp.arange(width)[None, :], there.shape), starts[:, None] + offset], axis=1
        ),
        segments=own,
        prefixes=jnp.where(own >= 0, 0, -1),
        counts=jnp.where(own > 0, 1.0, jnp.where(own == 0, float(members), 0.0)),
        sources=sources.reshape(rows, -1),
        targets=of_rows(completions),
        mask=of_rows(sampled),
        sequences=jnp.broadcast_to(jnp.repeat(jnp.arange(members), budget)[None, :], (rows, members * budget)),
        **given,
    )
