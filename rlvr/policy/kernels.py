"""Whether a policy's attention is by kernels for TPUs, or written in JAX (`policy.attention_backend`)."""

from __future__ import annotations

from rlvr import errors, partition
from rlvr.policy.config import PolicyConfig


def cache_by_kernel(config: PolicyConfig) -> bool:
    """Returns whether `jax.experimental.pallas.ops.tpu.ragged_paged_attention` reads the cache.

    Raises (both):
        ConfigError: the policy asks for kernels and cannot have this one.
    """
    tensor = _tensor_shards()
    held, rest = divmod(config.kv_heads, tensor)
    # Keys and values of a token must fill whole tiles, or divide one.
    tile = 4 if config.dtype == "float32" else 8
    lacks = ""
    if config.sinks:
        lacks = "policy.sinks=True, and the one that reads the cache knows no sinks"
    elif rest or (held not in (1, 2, 4) and held % tile):
        lacks = (
            f"policy.kv_heads={config.kv_heads} over mesh.tensor={tensor} must leave each device 1, 2, 4 or a multiple "
            f"of {tile} heads in {config.dtype}"
        )
    return _decide(config, lacks)


def rows_by_kernel(config: PolicyConfig) -> bool:
    """Returns whether rows without a cache are attended by `rlvr.policy.flash`."""
    tensor = _tensor_shards()
    lacks = f"policy.kv_heads={config.kv_heads} is no multiple of mesh.tensor={tensor}"
    return _decide(config, lacks if config.kv_heads % tensor else "")


def _tensor_shards() -> int:
    mesh = partition.current_mesh()
    return 1 if mesh is None else mesh.shape["tensor"]


def _decide(config: PolicyConfig, lacks: str) -> bool:
    if partition.platform() != "tpu":
        lacks = f"they are for TPUs, and this program is made for {partition.platform()}"
    if config.attention_backend == "kernel" and lacks:
        raise errors.ConfigError(
            f"policy.attention_backend='kernel': the kernels cannot be used: {lacks}. 'auto' and 'jax' work everywhere"
        )
    return config.attention_backend != "jax" and not lacks
