"""Turns a dense policy into a mixture of experts that computes the same function (sparse upcycling, 2212.05055).

    python -m launch.upcycle --checkpoint=weights/smollm2-135m-instruct --output=weights/smollm2-upcycled \
        --experts=8 --experts_per_token=2 --every=3

Every expert starts as a copy of the dense layer and the router at random; with --noise the copies differ a little.
The output is a policy folder like that of launch/import_weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from launch import checkpoints, cli
from rlvr import errors, policy_folder
from rlvr.policy_folder import read_policy_config
from rlvr.weights import layout, upcycle

OUTPUT = flags.DEFINE_string("output", None, "The policy folder to write; may exist if empty.", required=True)
EXPERTS = flags.DEFINE_integer("experts", 8, "Experts of a mixture layer.")
EXPERTS_PER_TOKEN = flags.DEFINE_integer("experts_per_token", 2, "Experts that a token uses.")
EVERY = flags.DEFINE_integer(
    "every", 1, "One layer in so many becomes a mixture, counted from the last.", lower_bound=1
)
NOISE = flags.DEFINE_float(
    "noise", 0.0, "Standard deviation of what each expert differs by, as a share of the matrix's own.", lower_bound=0.0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the router and the noise.", lower_bound=0, upper_bound=2**32 - 1)


def main(argv: Sequence[str]) -> None:
    """Reads, upcycles, writes."""
    cli.refuse_arguments(argv)
    output = Path(OUTPUT.value).absolute()
    errors.check_new_folder(output)
    dense = read_policy_config(Path(checkpoints.CHECKPOINT.value))
    layers = range(dense.layers - 1, -1, -EVERY.value)
    mixture = upcycle.upcycle_config(
        dense, experts=EXPERTS.value, experts_per_token=EXPERTS_PER_TOKEN.value, layers=layers
    )
    with checkpoints.loaded() as (loaded, _):
        params = upcycle.upcycle_params(loaded.params, mixture, jax.random.key(SEED.value), noise=NOISE.value)
        host = jax.tree.map(np.asarray, params)
    print(
        f"{layout.count_parameters(host):,} parameters, {len(mixture.moe_layers)} of {mixture.layers} layers mixtures "
        f"of {mixture.experts} experts, {mixture.experts_per_token} a token",
        flush=True,
    )
    policy_folder.save_policy(output, mixture, host, loaded.tokenizer)
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.run(main)
