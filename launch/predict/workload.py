"""How much of everything a step of a config has: tokens, rows, dispatches, and the trips of its programs' loops.

All prompts and completions are taken at their longest, which is the most that a step can cost.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from launch.benches.flops import forward_flops
from launch.predict.hlo import Trips
from rlvr import partition
from rlvr.config import ExperimentConfig
from rlvr.learner.packing import row_length
from rlvr.policy.blocks import block_size
from rlvr.policy.dispatch import exchange
from rlvr.policy.packed import BLOCK, Segments, count_pairs, whole_blocks
from rlvr.policy.sorting import PIECE


@dataclasses.dataclass(frozen=True)
class Workload:
    """One step of the RL on a mesh.

    Attributes:
        config: the experiment.
        shards: over which rows are split; experts_axis: over which the experts are.
    """

    config: ExperimentConfig
    shards: int
    experts_axis: int

    @property
    def prompt(self) -> int:
        """Tokens of a prompt."""
        return self.config.engine.max_prompt_tokens

    @property
    def completion(self) -> int:
        """Tokens of a completion."""
        return self.config.engine.max_new_tokens

    @property
    def sequences(self) -> int:
        """Sequences a step."""
        return self.config.rollout.prompts * self.config.rollout.group_size

    @property
    def row(self) -> int:
        """Tokens of a row of the update."""
        return row_length(self.prompt + self.completion, self.config.update.row_tokens)

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch."""
        return max(self.config.update.micro_tokens // (self.row * self.shards), 1) * self.shards

    @property
    def update_tokens(self) -> int:
        """Tokens that a step's updates run: sequences of a group in one row share their prompt."""
        return self.config.update.epochs * (self.shares * self.prompt + self.sequences * self.completion)

    @property
    def sharing(self) -> int:
        """Sequences of a group that share a row and their prompt."""
        return min(max((self.row - self.prompt) // self.completion, 1), self.config.rollout.group_size)

    @property
    def shares(self) -> int:
        """Into how many such parts the groups of a step are cut."""
        return self.config.rollout.prompts * math.ceil(self.config.rollout.group_size / self.sharing)

    @property
    def in_row(self) -> int:
        """Such parts in a row."""
        return self.row // (self.prompt + self.sharing * self.completion)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, over all its optimizer steps."""
        rows = math.ceil(self.shares / self.in_row / self.config.update.minibatches)
        return math.ceil(rows / self.micro_rows) * self.config.update.optimizer_steps

    @property
    def dispatches(self) -> int:
        """Dispatches of decoding a step."""
        engine = self.config.engine
        return math.ceil(self.sequences / engine.slots) * math.ceil(self.completion / engine.decode_steps)

    @property
    def prefills(self) -> int:
        """Dispatches of prefilling a step."""
        return math.ceil(self.config.rollout.prompts / self.config.engine.prefill_rows)

    @property
    def expert_share(self) -> float:
        """Returns how many of the rows that a shard has room for are its experts' when all are evenly loaded."""
        policy = self.config.policy
        held = policy.experts // self.experts_axis
        return policy.experts_per_token / (self.experts_axis * min(policy.experts_per_token, held))

    def update_flops(self) -> float:
        """Returns the operations that a step's updates need, by hand: three times the forward pass.

        Recomputing activations is not counted: that is what a compiler or a config chooses to do.
        """
        length, epochs = self.prompt + self.completion, self.config.update.epochs
        keys = epochs * self.sequences * length * (length + 1) // 2
        scored = epochs * self.sequences * self.completion
        return 3.0 * forward_flops(self.config.policy, self.update_tokens, keys, scored)

    def trips(self, program: str) -> Trips:
        """Returns how often the loops of a program run whose bounds are not constants, and the pairs of blocks or the
        pages of a row that a kernel of attention visits."""

        def count(path: str) -> float | None:
            if re.search(r"/(forward|query|key)_kernel[\w.]*$", path):
                return self._pairs(path, program, kernel=True)
            if re.search(r"/ragged_paged_attention_kernel[\w.]*$", path):
                return self._pages(path)
            if "/moe/" in path:
                return self._expert_trips(path, program)
            if path.endswith("attention/while"):
                return self._pages(path) if program == "decode" else self._pairs(path, program, kernel=False)
            if program == "decode" and path.endswith("jit(decode)/while"):
                return float(self.config.engine.decode_steps)
            if program == "accumulate" and re.search(r"jvp\(\)/while$", path):
                width = max(self.config.update.logprob_chunk // self.micro_rows, 1)
                return float(math.ceil(self.in_row * self.sharing * self.completion / width))
            return None

        return count

    def _window(self, path: str) -> int:
        """Returns the window of the layer that a path is in, 0 for none."""
        layer = re.search(r"layer_(\d+)", path)
        policy = self.config.policy
        return policy.sliding_window if layer and int(layer[1]) in policy.window_layers else 0

    def _pairs(self, path: str, program: str, *, kernel: bool) -> float:
        """Returns the pairs of blocks that attention visits in a row of whole sequences."""
        row, parts, lengths = self.row, self.in_row, (self.prompt, *(self.completion,) * self.sharing)
        if program == "prefill":
            row, parts, lengths = self.prompt, 1, (self.prompt,)
        block = whole_blocks(math.ceil(row / BLOCK) * BLOCK) if kernel else BLOCK
        return float(row_pairs(row, parts, lengths, self._window(path), block))

    def _pages(self, path: str) -> float:
        """Returns the pages that attention visits in the middle of a completion."""
        at, window = self.prompt + self.completion / 2, self._window(path)
        return math.ceil((min(at, window) if window else at) / self.config.engine.page_tokens)

    def _expert_trips(self, path: str, program: str) -> float | None:
        """Returns how often the loops of a mixture layer run when all experts are evenly loaded."""
        policy, engine, axis = self.config.policy, self.config.engine, self.experts_axis
        held = {"accumulate": self.micro_rows * self.row, "decode": engine.slots}.get(
            program, engine.prefill_rows * self.prompt
        ) / self.shards  # tokens of a shard
        k, tokens = policy.experts_per_token, held * axis
        loop = re.search(r"(\w+)/while$", path)
        if loop is None:
            return None
        if loop[1] == "rounds":
            return 1.0
        if loop[1] == "blocks":
            rows = tokens * k
            return rows / policy.experts / block_size(int(rows), policy.experts, "tpu") + 0.5  # half a block is padding
        if loop[1] == "ranks" and axis == 1:
            return float(k)  # all of a token's experts are here
        if loop[1] == "ranks" and "rounds/" not in path:
            return float(min(k, axis))  # what a token gets back: sums of all shards
        if loop[1] == "ranks":
            # Tokens stand by source, unless they are gathered, and by how many rows they have: where these change half
            # a piece is run in vain.
            source = tokens if exchange(policy, axis, "tpu") == "gather" else held
            return min(k / axis + k / 2 * min(PIECE, tokens) / source, k)
        return None


@functools.cache
def row_pairs(row: int, parts: int, lengths: tuple[int, ...], window: int, block: int) -> int:
    """Returns the pairs of blocks that are visited in a row of some parts, each a prompt and completions of it."""
    prompt, *completions = lengths
    positions = np.concatenate([np.arange(prompt), *(prompt + np.arange(length) for length in completions)])
    own = np.repeat(np.arange(len(lengths)), lengths)
    first = np.arange(parts)[:, None] * len(lengths)
    tokens = (np.tile(positions, parts), (own + first).ravel(), np.repeat(first, own.size))
    padded = (np.pad(x, (0, row - x.size), constant_values=-1) for x in tokens)
    at, *segments = (jnp.asarray(x)[None] for x in padded)
    return int(count_pairs(at, Segments(*segments), window=window, block=block))


def make_workload(config: ExperimentConfig, mesh: Mesh) -> Workload:
    """Returns the workload of a config on a mesh."""
    return Workload(config, partition.batch_shards(mesh), mesh.shape["expert"])
