"""Which form of attention over the cache a policy uses: written in JAX, or JAX's kernel for TPUs."""

from __future__ import annotations

from rlvr import errors, partition
from rlvr.policy.config import PolicyConfig


def attends_by_kernel(config: PolicyConfig) -> bool:
    """Returns whether `jax.experimental.pallas.ops.tpu.ragged_paged_attention` reads the cache.

    Raises:
        ConfigError: the policy asks for the kernel and cannot have it.
    """
    refusal = _refusal(config)
    if config.attention_backend == "kernel" and refusal:
        raise errors.ConfigError(
            f"policy.attention_backend='kernel' cannot be used: {refusal}. 'auto' and 'jax' work everywhere"
        )
    return config.attention_backend != "jax" and not refusal


def _refusal(config: PolicyConfig) -> str:
    """Returns what the kernel lacks; "" for nothing."""
    platform, mesh = partition.platform(), partition.current_mesh()
    if platform != "tpu":
        return f"it is a kernel for TPUs, and this program is made for {platform}"
    if config.sinks:
        return "policy.sinks=True, and it knows no sinks"
    shards = 1 if mesh is None else mesh.shape["tensor"]
    held, rest = divmod(config.kv_heads, shards)
    # Keys and values of a token must fill whole tiles, or divide one.
    tile = 4 if config.dtype == "float32" else 8
    if rest or (held not in (1, 2, 4) and held % tile):
        return (
            f"policy.kv_heads={config.kv_heads} over mesh.tensor={shards} must leave each device 1, 2, 4 or a multiple "
            f"of {tile} heads in {config.dtype}"
        )
    return ""
