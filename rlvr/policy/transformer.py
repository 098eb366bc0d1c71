"""The decoder: embedding, blocks, head. The same function samples (with a cache) and trains (without)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlvr import partition
from rlvr.policy import cache as cache_lib
from rlvr.policy.attention import Attention
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.policy.mlp import Mlp
from rlvr.policy.moe import Moe, RouterStats
from rlvr.policy.norm import RmsNorm
from rlvr.policy.pace import keep_pace
from rlvr.policy.packed import Segments
from rlvr.policy.parameters import fan_in, param, recording
from rlvr.policy.rope import rope_angles

Params = dict[str, Any]

# What the backward pass finds of a block, by `PolicyConfig.remat`.
_ATTENDED = jax.checkpoint_policies.save_only_these_names("attended")
SAVED = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _ATTENDED
    ),
    "attention": _ATTENDED,
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Output(NamedTuple):
    """Result of `Policy.forward`.

    Attributes:
        hidden: [B, T, D] after the final norm; `Policy.logits` makes logits of any part of it.
        cache: the extended cache, or None if none was given.
        prefix: keys and values of the row in every layer if `keep` asked for them, else None.
        router: statistics of the mixture layers, fields stacked [layers, ...], or None if there are none.
        choices: [B, T, mixture layers, k] int32 experts that the router would choose now, or None.
    """

    hidden: jax.Array
    cache: cache_lib.Cache | None
    prefix: tuple[cache_lib.Prefix, ...] | None
    router: RouterStats | None
    choices: jax.Array | None


class Block(nn.Module):
    """Attention and feed-forward, each with its norms and its residual.

    Attributes:
        config: of the policy.
        layer: which of its blocks this is.
    """

    config: PolicyConfig
    layer: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        angles: tuple[jax.Array, jax.Array] | None,
        pages: cache_lib.AnyLayer | None,
        table: jax.Array | None,
        segments: Segments,
        counts: jax.Array,
        replay: jax.Array | None,
    ) -> tuple[jax.Array, cache_lib.AnyLayer | cache_lib.Prefix, RouterStats | None, jax.Array | None]:
        """Maps x [B, T, D] to ([B, T, D], what attention keeps, router statistics, router choices [B, T, k])."""
        c = self.config

        def before(name: str, x: jax.Array) -> jax.Array:
            return x if c.norm_place == "after" else RmsNorm(c, name=f"{name}_norm")(x)

        def after(name: str, x: jax.Array) -> jax.Array:
            return x if c.norm_place == "before" else RmsNorm(c, name=f"{name}_post_norm")(x)

        window = c.sliding_window if self.layer in c.window_layers else 0
        attention = Attention(c, window, name="attention")
        attended, kept = attention(before("attention", x), positions, angles, pages, table, segments)
        x = x + after("attention", attended)
        normed = before("mlp", x)
        stats = choices = None
        if self.layer in c.moe_layers:
            out, stats, choices = Moe(c, name="moe")(normed, counts, replay)
            if c.shared_hidden:
                out += Mlp(c, c.shared_hidden, name="shared")(normed)
        else:
            out = Mlp(c, c.hidden, name="mlp")(normed)
        return x + after("mlp", out), kept, stats, choices


def _pure_block(config: PolicyConfig, layer: int) -> Callable[..., Any]:
    """Returns a block as a function of its parameters and its inputs, which keeps for the backward pass what
    `PolicyConfig.remat` says."""
    block = Block(config, layer, name=f"layer_{layer}", parent=None)

    def run(params: Params, *inputs: Any) -> Any:
        return block.apply({"params": params}, *inputs)

    return run if config.remat == "none" else jax.checkpoint(run, policy=SAVED[config.remat])


class Decoder(nn.Module):
    """The whole network; see `Policy` for how it is called."""

    config: PolicyConfig

    def setup(self) -> None:
        c = self.config
        self.embed = Embedding(c)
        self.layer = [Block(c, i) for i in range(c.layers)]
        self.final_norm = RmsNorm(c)
        if not c.tied_head:
            self.head = Head(c)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        cache: cache_lib.Cache | None,
        segments: Segments,
        counts: jax.Array,
        replay: jax.Array | None,
        keep: bool,
    ) -> Output:
        c = self.config
        x = self.embed()[tokens].astype(jnp.dtype(c.dtype))
        if c.embed_scale != 1.0:
            x = x * jnp.asarray(c.embed_scale, x.dtype)
        x = partition.constrain(x, "batch", None, None)
        angles = self._angles(positions)
        kept: list[Any] = []
        table = None if cache is None else cache.table
        stats: list[RouterStats] = []
        choices: list[jax.Array] = []
        params = [layer.variables.get("params", {}) for layer in self.layer]
        for i, layer in enumerate(self.layer):
            chosen = None if replay is None or i not in c.moe_layers else replay[:, :, len(choices)]
            pages = None if cache is None else cache.layers[i]
            if i + 1 < c.layers:
                # The next layer's, so that their exchange has the time that this one's gradients take.
                x, params[i + 1] = keep_pace(x, params[i + 1])
            run = layer if self.is_initializing() else functools.partial(_pure_block(c, i), params[i])
            x, layer_kept, layer_stats, layer_choices = run(
                x, positions, angles[i], pages, table, segments, counts, chosen
            )
            kept.append(layer_kept)
            if layer_stats is not None and layer_choices is not None:
                stats.append(layer_stats)
                choices.append(layer_choices)
        return Output(
            hidden=self.final_norm(x),
            cache=None if cache is None else cache._replace(layers=tuple(kept)),
            prefix=tuple(kept) if keep and cache is None else None,
            router=jax.tree.map(lambda *fields: jnp.stack(fields), *stats) if stats else None,
            choices=jnp.stack(choices, axis=2) if choices else None,
        )

    def _angles(self, positions: jax.Array) -> list[tuple[jax.Array, jax.Array] | None]:
        """Returns the RoPE angles of each layer."""
        c = self.config
        usual = rope_angles(positions, c.head_size, c.rope)
        local = usual
        if c.window_theta:
            local = rope_angles(positions, c.head_size, RopeConfig(theta=c.window_theta))
        of = {i: local if i in c.window_layers else usual for i in range(c.layers)}
        return [None if i in c.nope_layers else angles for i, angles in of.items()]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden [..., D] to logits [..., V] in float32."""
        # A float32 head: MiniMax-M1 (2506.13585) and ScaleRL (2510.13786) trace most of the gap between sampled
        # and recomputed log-probs to this product.
        hidden = hidden.astype(jnp.float32)
        if self.config.tied_head:
            return jnp.einsum("...D,VD->...V", hidden, self.embed())
        return jnp.einsum("...D,DV->...V", hidden, self.head())


class Embedding(nn.Module):
    """Token embedding table [V, D]."""

    config: PolicyConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the table."""
        shape = (self.config.vocab_size, self.config.dim)
        return param(self, "table", ("vocab", "embed"), shape, fan_in(1))


class Head(nn.Module):
    """Untied output matrix [D, V]."""

    config: PolicyConfig

    @nn.compact
    def __call__(self) -> jax.Array:
        """Returns the matrix."""
        shape = (self.config.dim, self.config.vocab_size)
        return param(self, "kernel", ("embed", "vocab"), shape, fan_in(0))


class Policy:
    """The policy as pure functions of its parameters, a plain nested dict of float32 arrays."""

    def __init__(self, config: PolicyConfig):
        config.validate()
        self.config = config
        self._module = Decoder(config)

    def init(self, key: jax.Array) -> Params:
        """Returns freshly initialised parameters."""

        def run(module: Decoder) -> None:
            tokens = jnp.zeros((1, 1), jnp.int32)
            output = module(tokens, tokens, None, Segments(tokens, tokens), jnp.ones(tokens.shape), None, False)
            module.logits(output.hidden)

        # No mesh: initialisation runs one token through the network, which no mesh could split.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            return nn.init(run, self._module)(key)["params"]

    def abstract_params(self) -> Params:
        """Returns the tree of shapes and dtypes of the parameters."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def logical_axes(self) -> Params:
        """Returns the tree of logical-axes tuples, shaped like the parameters."""
        with recording() as axes:
            shapes = self.abstract_params()
        return jax.tree_util.tree_map_with_path(lambda path, _: axes[tuple(p.key for p in path)], shapes)

    def forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        cache: cache_lib.Cache | None = None,
        replay: jax.Array | None = None,
        keep: bool = False,
        segments: Segments | None = None,
        counts: jax.Array | None = None,
    ) -> Output:
        """Runs the network.

        Args:
            params: the parameters.
            tokens: [B, T] int32 ids.
            positions: [B, T] int32 of each token in its sequence. A token sees those at its own position and before.
            cache: keys and values of the tokens before each row's; extended by the row, whose positions are
                consecutive.
            replay: [B, T, mixture layers, k] experts to use instead of those that the router would choose now; a
                token whose entries are negative is routed live. The gates are computed anew either way.
            keep: without a cache, whether to return the keys and values of the row.
            segments: which tokens of a row see each other, where a row holds several sequences; by default it is
                one, with padding at its end. Not with a cache.
            counts: [B, T] how often each token counts in the router statistics; default once.
        """
        if counts is None:
            counts = jnp.ones(tokens.shape, jnp.float32)
        if segments is None:
            segments = Segments(*(jnp.zeros(tokens.shape, jnp.int32) for _ in range(2)))
        output: Any = self._module.apply({"params": params}, tokens, positions, cache, segments, counts, replay, keep)
        return output

    def head_params(self, params: Params) -> Params:
        """Returns those of the parameters that `logits` uses."""
        name = "embed" if self.config.tied_head else "head"
        return {name: params[name]}

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Maps hidden [..., D] to float32 logits [..., V]."""
        logits: Any = self._module.apply({"params": params}, hidden, method="logits")
        return logits
