"""rlvr: reinforcement learning with verifiable rewards in JAX.

Importing this package imports nothing else: the verifier workers run `rlvr.verifiers.worker` and must never
load jax.
"""
