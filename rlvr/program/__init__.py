"""The whole loop as one program: rollout, verification, advantages and updates under one jit, for many runs at once."""
