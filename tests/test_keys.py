"""Keys are counters: equal exactly where the draw is the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rlvr import keys


def data(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_each_counter_role_and_seed_makes_another_key() -> None:
    draws = {
        (seed, role, *counters): data(keys.make_key(seed, role, *counters))
        for seed in (0, 1)
        for role in keys.ROLES
        for counters in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (2**32 - 1,)]
    }
    for (a, first), (b, second) in itertools.combinations(draws.items(), 2):
        assert first != second, (a, b)


def test_roles_are_never_renumbered() -> None:
    assert keys.ROLES["init"] == 0 and keys.ROLES["rollout"] == 1
    assert keys.ROLES["evaluation"] == 2 and keys.ROLES["sample"] == 3
    expected = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 1), jnp.uint32(9))
    assert data(keys.make_key(5, "rollout", 9)) == data(expected)


def test_fold_in_rows_is_fold_in_of_each_row() -> None:
    counters = jnp.array([3, 0, 2**32 - 1], jnp.uint32)
    base = jax.random.key(4)
    rows = keys.fold_in_rows(base, counters)
    again = keys.fold_in_rows(rows, counters[::-1])
    for i in range(3):
        assert data(rows[i]) == data(jax.random.fold_in(base, counters[i]))
        assert data(again[i]) == data(jax.random.fold_in(rows[i], counters[2 - i]))
