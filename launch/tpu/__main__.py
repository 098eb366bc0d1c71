"""Trains on Cloud TPU: makes the machines, runs the job until it has ended, gathers what it left.

    python -m launch.tpu run --name=qwen3 --zone=us-east5-a --topology=v5p:4x4x4 --spot \\
        --workdir=gs://bucket/qwen3 -- --config=configs/pods/qwen3_30b_a3b_v5p.py --config.seed=1

`create` and `delete` make and remove the slice alone; `watch` follows a job that `run` started elsewhere. `run` starts
what is not running, and may be repeated at any time. --dry_run prints the commands. --cluster=NAME does the same on a
GKE cluster through xpk. What follows `--` are flags of launch.train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from launch import cli
from launch.tpu import gke, shell, verbs
from launch.tpu.job import Job, check_secrets, check_train_flags, check_workdir
from launch.tpu.slices import Slice, check_slice, read_accelerator
from rlvr import errors

VERBS = ("create", "run", "watch", "delete")

_NAME = flags.DEFINE_string("name", None, "Name of the slice and the job.", required=True)
_ZONE = flags.DEFINE_string("zone", None, "Zone, for example us-east5-a.", required=True)
_PROJECT = flags.DEFINE_string("project", "", "Google Cloud project; gcloud's own setting if not given.")
_ACCELERATOR = flags.DEFINE_string("accelerator_type", "", "Cloud's name of the slice, for example v5p-128.")
_TOPOLOGY = flags.DEFINE_string("topology", "", "The slice as launch.compile names it, for example v5p:4x4x4.")
_RUNTIME = flags.DEFINE_string("runtime_version", "", "Software of the VMs, if not that of the generation.")
_SPOT = flags.DEFINE_bool("spot", False, "Spot capacity: cheaper, and taken away at times.")
_RESERVED = flags.DEFINE_bool("reserved", False, "Capacity of the project's reservation.")
_ACCOUNT = flags.DEFINE_string("service_account", "", "Service account of the VMs.")
_VALID = flags.DEFINE_string("valid_until", "", "How long the request may wait in the queue: 90m, 6h, 2d.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: gs://BUCKET/FOLDER.")
_SECRETS = flags.DEFINE_multi_string("secret", [], "VARIABLE=NAME: a secret of Secret Manager, for the job alone.")
_SETUP = flags.DEFINE_string("setup", "", "Shell lines that set a worker up, instead of the project's own.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder here for logs and the report; runs/NAME if not given.")
_POLL = flags.DEFINE_float("poll_s", 30.0, "Seconds between looks.", lower_bound=0.0)
_WAIT = flags.DEFINE_float("wait_s", 86_400.0, "Seconds to wait for the machines.", lower_bound=0.0)
_RESTARTS = flags.DEFINE_integer("max_restarts", 100, "How often what was lost is replaced.", lower_bound=0)
_CLUSTER = flags.DEFINE_string("cluster", "", "GKE cluster to use, through xpk.")
_IMAGE = flags.DEFINE_string("image", "", "With --cluster: Docker image of the job.")
_MOUNT = flags.DEFINE_string("mount", "/mnt/rlvr", "With --cluster: where the bucket is mounted in the containers.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and run none.")


def main(argv: Sequence[str]) -> int:
    """Does what the verb says."""
    if len(argv) < 2:
        raise app.UsageError(f"name a verb (accepted: {', '.join(VERBS)})")
    verb, rest = argv[1], list(argv[2:])
    errors.check_choice("verb", verb, VERBS)
    if verb == "run":
        check_train_flags(rest)
    elif rest:
        raise errors.ConfigError(f"{rest[0]!r}: only `run` takes flags of launch.train after --")
    wanted = read_slice(verb)
    job = Job(wanted.name, _WORKDIR.value, tuple(rest), check_secrets(_SECRETS.value), _SETUP.value)
    if verb in ("run", "watch"):
        check_workdir(job.workdir)
    try:
        if _CLUSTER.value:
            perform_on_cluster(verb, wanted, job)
        else:
            perform(verb, wanted, job)
    except shell.CloudError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def read_slice(verb: str) -> Slice:
    """Returns the slice that the flags describe; only `create` and `run` must say which chips."""
    if verb in ("create", "run") or _ACCELERATOR.value or _TOPOLOGY.value:
        accelerator, runtime = read_accelerator(_ACCELERATOR.value, _TOPOLOGY.value)
    else:
        accelerator, runtime = "", ""
    wanted = Slice(
        name=_NAME.value,
        zone=_ZONE.value,
        accelerator_type=accelerator,
        runtime=_RUNTIME.value or runtime,
        project=_PROJECT.value,
        spot=_SPOT.value,
        reserved=_RESERVED.value,
        service_account=_ACCOUNT.value,
        valid_until=_VALID.value,
    )
    check_slice(wanted)
    return wanted


def perform(verb: str, wanted: Slice, job: Job) -> None:
    """Does a verb on TPU VMs."""
    output = Path(_OUTPUT.value or f"runs/{wanted.name}")
    patience = verbs.Patience(_POLL.value, _WAIT.value, restarts=_RESTARTS.value)
    if _DRY_RUN.value:
        print(verbs.preview(verb, wanted, job, output))
    elif verb == "create":
        verbs.create(wanted, patience)
    elif verb == "run":
        verbs.run(wanted, job, output, patience)
    elif verb == "watch":
        verbs.watch(wanted, job, output, patience)
    else:
        verbs.remove(wanted)


def perform_on_cluster(verb: str, wanted: Slice, job: Job) -> None:
    """Does a verb on a GKE cluster."""
    if job.secrets:
        raise errors.ConfigError("--secret with --cluster: give the job a Kubernetes secret or a Workload Identity")
    for flag in (_RESERVED, _RUNTIME, _ACCOUNT, _VALID, _SETUP):
        if flag.value:
            raise errors.ConfigError(
                f"--{flag.name}={flag.value} with --cluster: it is of the VMs that launch.tpu makes by itself; "
                "make the cluster as it is to be (xpk cluster create), and the image with what the job needs"
            )
    cluster = gke.Cluster(_CLUSTER.value, _IMAGE.value, _MOUNT.value, _RESTARTS.value)
    gke.check_cluster(cluster)
    if _DRY_RUN.value:
        parts = gke.commands(verb, wanted, cluster, job.workdir, job.train_flags)
        print(shell.format_plan([("", parts)], ""))
    else:
        gke.perform(verb, wanted, cluster, job.workdir, job.train_flags)


if __name__ == "__main__":
    cli.run(main)
