"""Attention over strips, written token by token, against attention over pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.policy import cache as cache_lib
from rlvr.policy.cache import Prefix, make_pages, make_strips, write_strips
from rlvr.policy.config import PolicyConfig
from rlvr.policy.paged import attend_pages, attend_strips

CONFIG = PolicyConfig(query_heads=6, kv_heads=2, head_size=10, layers=1, attention_backend="jax")
ROWS, ROOM, SIZE = 6, 12, 4


@pytest.mark.parametrize(("window", "sinks"), [(0, False), (5, False), (3, True)])
def test_strips_are_pages_without_a_table(window, sinks):
    rng = np.random.default_rng(1)

    def draw(rows, tokens, heads):
        return jnp.asarray(rng.normal(size=(rows, tokens, heads, CONFIG.head_size)), jnp.float32)

    # Prompts of 5 tokens and padding, two rows of each; then one token more in each row.
    prompt_key, prompt_value = draw(3, 7, CONFIG.kv_heads), draw(3, 7, CONFIG.kv_heads)
    key, value, query = (draw(ROWS, 1, heads) for heads in (CONFIG.kv_heads, CONFIG.kv_heads, CONFIG.query_heads))
    at = jnp.array([[2], [5], [4], [5], [3], [6]])  # over the padding, or behind it
    strips = make_strips(Prefix(prompt_key.swapaxes(1, 2), prompt_value.swapaxes(1, 2)), 2, ROOM)
    strips = jax.jit(write_strips)(strips, key, value, at)
    table = jnp.arange(ROWS * ROOM // SIZE).reshape(1, ROWS, -1)
    (pages,) = make_pages(CONFIG, 1, table.size, SIZE)
    repeated = (jnp.repeat(x, 2, axis=0) for x in (prompt_key, prompt_value))
    pages = cache_lib.write(pages, table, *repeated, jnp.broadcast_to(jnp.arange(7)[None], (ROWS, 7)))
    pages = cache_lib.write(pages, table, key, value, at)
    form = {"scale": 0.3, "window": window, "sinks": jnp.arange(6.0) if sinks else None}
    np.testing.assert_allclose(
        attend_strips(query, strips, at, **form), attend_pages(query, pages, table, at, **form), rtol=2e-5, atol=2e-6
    )
