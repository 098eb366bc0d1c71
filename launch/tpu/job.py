"""What runs on every worker: the code as it is here, its environment, and the training command.

The job is one shell script with the verbs `setup`, `start`, `probe` and `stop`, copied to all workers with an archive
of the code. It holds no secret: `--secret=VARIABLE=NAME` makes each worker read Secret Manager itself, as its own
service account. The bucket of the workdir is mounted as a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from rlvr import errors
from rlvr.checks import validate

ROOT = Path(__file__).resolve().parent.parent.parent
# Flags of launch.train that the launcher sets, and so the user may not.
SET_HERE = ("workdir", "coordinator", "processes", "process_index")
SECRET_VALUE = re.compile(r"(sk-|hf_|ghp_|github_pat_|ya29\.|AKIA|AIza)[A-Za-z0-9_-]{8,}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        name: of the folder it has on the workers.
        workdir: "gs://bucket/path".
        train_flags: of launch.train: --config and its overrides.
        secrets: environment variable -> name of a secret in Secret Manager.
        setup: shell lines to run instead of the project's own set-up, "" for that.
    """

    name: str
    workdir: str
    train_flags: tuple[str, ...]
    secrets: tuple[tuple[str, str], ...] = ()
    setup: str = ""

    @property
    def folder(self) -> str:
        """Where it lives on a worker, relative to the home folder."""
        return f"rlvr-jobs/{self.name}"


class Probe(NamedTuple):
    """What a worker says about its job.

    Attributes:
        worker: its number.
        state: "running", "done", "stopped" (asked to, and saved), "failed" or "absent".
        status: the exit status, where it has one.
        ended: when it ended, seconds since the epoch; 0 where it could not note it.
        line: the last line of its log.
    """

    worker: int
    state: str
    status: int
    ended: float
    line: str


def check_workdir(workdir: str) -> None:
    """Raises ConfigError unless the workdir outlives the machines and all of them can write it."""
    if not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/[A-Za-z0-9._=@-]+)+", workdir):
        raise errors.ConfigError(
            f"--workdir={workdir!r} must be gs://BUCKET/FOLDER: all workers write it, and it must outlive them"
        )


def check_secrets(entries: list[str]) -> tuple[tuple[str, str], ...]:
    """Reads VARIABLE=NAME entries.

    Raises:
        ConfigError: an entry is not of that form (its value is not repeated: it may be a secret itself).
    """
    pairs = []
    for entry in entries:
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*)=([A-Za-z0-9_-]{1,255})", entry)
        if not match or SECRET_VALUE.search(entry):
            raise errors.ConfigError(
                "--secret must be VARIABLE=NAME, where NAME is that of a secret in Secret Manager, not its value"
            )
        pairs.append((match[1], match[2]))
    return tuple(pairs)


def check_train_flags(arguments: list[str]) -> None:
    """Checks the flags of launch.train before anything is paid for.

    A config with a `checkpoint` is checked as far as that goes without reading it: it lies where the workers are.

    Raises:
        ConfigError: a flag that is unknown, mistyped, set by the launcher itself or looks like a secret, or a config
            that cannot work.
    """
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0]
        if not argument.startswith("--"):
            raise errors.ConfigError(f"{argument!r} after -- is not a flag of launch.train (write --flag=value)")
        if SECRET_VALUE.search(argument) or re.search(r"(^|[._])(api_?key|token|password|secret)$", name):
            raise errors.ConfigError(
                f"--{name} looks like a secret, and command lines can be read by others: put it into Secret Manager, "
                "pass --secret=VARIABLE=NAME, and name the variable in the config (verifiers.judge.key_variable)"
            )
        if name in SET_HERE:
            raise errors.ConfigError(f"--{name} after --: the launcher sets it itself; leave it out")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=["train", *arguments])
    try:
        left = values(["train", *arguments])
        config = values["config"].value
        checkpoint = getattr(config, "checkpoint", "")  # a file that could not be loaded fails only here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()  # some hold a whole traceback
        raise errors.ConfigError(f"the flags after -- are refused by launch.train: {why}") from error
    if config is None or left[1:]:
        raise errors.ConfigError("the flags after -- must hold --config=FILE and its overrides --config.a.b=value")
    if not checkpoint:
        validate(config)


def pack_code(target: Path, root: Path = ROOT) -> str:
    """Writes all files of the project that git does not ignore into a .tar.gz; returns 12 digits of its content's hash.

    Raises:
        ConfigError: the project is no git checkout.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise errors.ConfigError(f"the code at {root} is no git checkout: {done.stderr.strip()}")
    digest = hashlib.sha256()
    with tarfile.open(target, "w:gz", dereference=False) as archive:
        for name in sorted(filter(None, done.stdout.split("\0"))):
            path = root / name
            if path.is_file() and not path.is_symlink():
                digest.update(name.encode() + b"\0" + path.read_bytes())
                archive.add(path, arcname=name)
    return digest.hexdigest()[:12]


def train_command(job: Job) -> str:
    """Returns the training command of a worker; JAX finds the other workers itself."""
    _, bucket, path = re.split(r"gs://([^/]+)/", job.workdir, maxsplit=1)
    arguments = [*job.train_flags, "--coordinator=auto", f"--workdir=/mnt/rlvr/{bucket}/{path}"]
    return shlex.join([".venv/bin/python", "-m", "launch.train", *arguments])


def write_script(job: Job) -> str:
    """Returns the script `job.sh`."""
    bucket = job.workdir.removeprefix("gs://").split("/")[0]
    secrets = "\n".join(
        f'{variable}="$(gcloud secrets versions access latest --secret={name})" && export {variable} || exit 78'
        for variable, name in job.secrets
    )
    return SCRIPT.format(
        setup=job.setup or SETUP,
        secrets=secrets or ":",
        bucket=bucket,
        workdir=shlex.quote("/mnt/rlvr/" + job.workdir.removeprefix("gs://")),
        train=train_command(job),
    )


def read_probes(output: str) -> list[Probe]:
    """Returns what workers said, by worker; lines of gcloud and ssh between are passed over."""
    pattern = r"^RLVR (\d+) (running|done|stopped|failed|absent) (\d+) ([\d.]+) ?(.*)$"
    return sorted(
        Probe(int(worker), state, int(status), float(ended), line.strip())
        for worker, state, status, ended, line in re.findall(pattern, output, re.MULTILINE)
    )


SETUP = """\
if ! command -v python3.11 >/dev/null; then
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 update -q
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -q python3.11 python3.11-venv
fi
PYTHON=python3.11 bash scripts/setup.sh tpu"""

SCRIPT = """\
#!/usr/bin/env bash
# bash job.sh setup|start|probe|stop: a training job of rlvr on this worker. Written by launch.tpu.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
worker="${{HOSTNAME##*-w-}}"
[[ "$worker" =~ ^[0-9]+$ ]] || worker=0
mounted=/mnt/rlvr/{bucket}

setup() {{
  set -e
  rm -rf "$here/code" && mkdir -p "$here/code" && tar -xzf "$here/code.tar.gz" -C "$here/code"
  cd "$here/code"
{setup}
  if ! mountpoint -q "$mounted"; then
    command -v gcsfuse >/dev/null || sudo apt-get -o DPkg::Lock::Timeout=600 install -y -q gcsfuse
    sudo mkdir -p "$mounted" && sudo chown "$USER" "$mounted"
    # Orbax renames a checkpoint when it is whole; another worker must see at once what this one wrote.
    gcsfuse --implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 {bucket} "$mounted"
  fi
}}

train() {{
  {secrets}
  cd "$here/code"
  exec {train}
}}

start() {{
  stop
  rm -f "$here/status"
  setsid nohup bash "$here/job.sh" body >>"$here/log" 2>&1 </dev/null &
  echo $! >"$here/pid"
}}

body() {{
  echo "== $(date -u +%FT%TZ) worker $worker begins"
  trap : TERM  # the run saves itself; its exit status is to be noted after that
  ( train )
  code=$?
  # A finished run wrote its result; process 0 leaving without one was asked to stop, and saved itself.
  [ "$code" = 0 ] && [ "$worker" = 0 ] && [ ! -f {workdir}/result.json ] && code=75
  echo "$code" >"$here/status"
}}

running() {{ [ -f "$here/pid" ] && kill -0 -- "-$(cat "$here/pid")" 2>/dev/null; }}

probe() {{
  state=absent status=0 ended=0
  if running; then state=running
  elif [ -f "$here/status" ]; then
    status="$(cat "$here/status")" ended="$(stat -c %.3Y "$here/status")"
    case "$status" in 0) state=done ;; 75) state=stopped ;; *) state=failed ;; esac
  elif [ -f "$here/pid" ]; then state=failed status=137
  fi
  line="$(tail -c 2000 "$here/log" 2>/dev/null | tr -d '\\r' | tail -n 1 | cut -c 1-200)"
  echo "RLVR $worker $state $status $ended $line"
}}

stop() {{
  running || return 0
  kill -TERM -- "-$(cat "$here/pid")"
  for _ in $(seq 120); do running || return 0; sleep 1; done
  kill -KILL -- "-$(cat "$here/pid")"
}}

case "${{1:-}}" in
  setup|start|probe|stop|body) "$1" ;;
  *) echo "usage: job.sh setup|start|probe|stop" >&2; exit 64 ;;
esac
"""
