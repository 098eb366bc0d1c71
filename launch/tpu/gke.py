"""The same verbs on a GKE cluster, through xpk: the cluster holds the slices, and its JobSet replaces what is lost."""

from __future__ import annotations

import dataclasses
import re
import shlex

from launch.tpu import shell
from launch.tpu.slices import Slice
from rlvr import errors


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A GKE cluster and what runs in it.

    Attributes:
        name: of the cluster.
        image: Docker image with the dependencies of `requirements/tpu.txt`; xpk adds the code.
        mount: folder of the containers at which the bucket of --workdir is mounted (`xpk storage attach`).
        restarts: how often the job is started again after a failure of its machines.
    """

    name: str
    image: str
    mount: str
    restarts: int


def check_cluster(cluster: Cluster) -> None:
    """Raises ConfigError on the first field that cannot work."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", cluster.name):
        raise errors.ConfigError(f"--cluster={cluster.name!r} must be lower-case letters, digits and hyphens")
    if not cluster.mount.startswith("/"):
        raise errors.ConfigError(f"--mount={cluster.mount!r} must be an absolute folder of the containers")


def commands(verb: str, wanted: Slice, cluster: Cluster, workdir: str, train_flags: tuple[str, ...]) -> list[list[str]]:
    """Returns xpk's commands of a verb.

    Raises:
        ConfigError: `run` has no --image.
    """
    where = [f"--cluster={cluster.name}", *wanted.where()]
    capacity = ["--spot"] if wanted.spot else []
    if verb == "create":
        tpu = f"--tpu-type={wanted.accelerator_type}"
        return [["xpk", "cluster", "create", *where, tpu, "--num-slices=1", *(capacity or ["--on-demand"])]]
    if verb == "watch":
        return [["xpk", "workload", "list", *where, f"--wait-for-job-completion={wanted.name}"]]
    if verb == "delete":
        return [["xpk", "workload", "delete", *where, f"--workload={wanted.name}", "--force"]]
    if not cluster.image:
        raise errors.ConfigError("--image is needed with --cluster: a Docker image with requirements/tpu.txt installed")
    folder = f"{cluster.mount.rstrip('/')}/{workdir.removeprefix('gs://').split('/', 1)[1]}"
    train = shlex.join(
        ["python", "-m", "launch.train", *train_flags, "--coordinator=auto", f"--workdir={folder}"]
    )  # fmt: skip
    start = [
        "xpk", "workload", "create", *where, f"--workload={wanted.name}", f"--tpu-type={wanted.accelerator_type}",
        "--num-slices=1", f"--base-docker-image={cluster.image}", f"--max-restarts={cluster.restarts}",
        "--termination-grace-period-seconds=300", *capacity, f"--command={train}",
    ]  # fmt: skip
    return [start, *commands("watch", wanted, cluster, workdir, train_flags)]


def perform(verb: str, wanted: Slice, cluster: Cluster, workdir: str, train_flags: tuple[str, ...]) -> None:
    """Runs xpk's commands of a verb; `run` and `watch` return when the job is complete.

    Raises:
        CloudError: xpk fails, or the job did.
    """
    for command in commands(verb, wanted, cluster, workdir, train_flags):
        shell.stream(command)
