"""When the gradients of parameters are made.

XLA makes last what is used last: without more, what the gradients by the parameters of all layers are made of (sums
over the rows of a chip, and the operands of sums not yet made) waits in memory for the end of the backward pass.
"""

from __future__ import annotations

from typing import Any

import jax

Primals = tuple[jax.Array, Any]


@jax.custom_vjp
def keep_pace(x: jax.Array, params: Any) -> Primals:
    """Returns both as they are. In the backward pass the gradient by `x` goes on to what made it only once the
    gradients by `params` are made, of those of them that are trained."""
    return x, params


def _forward(x: Any, params: Any) -> tuple[Primals, Any]:
    # () for what is trained, None for what is not: part of the structure, so that it is known in the backward pass.
    trained = jax.tree.map(lambda primal: () if primal.perturbed else None, params)
    values: Primals = jax.custom_derivatives.custom_vjp_primal_tree_values((x, params))
    return values, trained


def _backward(trained: Any, gradients: tuple[Any, Any]) -> Primals:
    def wanted(gradient: Any, trained: Any) -> Any:
        zero = isinstance(gradient, jax.custom_derivatives.SymbolicZero)
        return None if zero or trained is None else gradient

    of_x, of_params = gradients
    held: Primals = jax.lax.optimization_barrier((of_x, jax.tree.map(wanted, of_params, trained)))
    return held


keep_pace.defvjp(_forward, _backward, symbolic_zeros=True)
