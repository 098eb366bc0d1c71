"""Trains on a Slurm cluster of GPUs: writes the batch script and submits it.

    python -m launch.slurm --name=qwen3 --nodes=4 --gpus_per_node=8 --time=24:00:00 --workdir=/shared/qwen3 \\
        [--partition=gpu --account=A --sbatch=--constraint=h100] [--dry_run] -- --config=FILE [--config.a.b=value ...]

One process a GPU; JAX reads the cluster from Slurm. Five minutes before the time limit Slurm sends SIGTERM: the run
saves itself, the job goes back into the queue, and the same command resumes there; so it does after a preemption or a
node's failure, and when the first process to fail was ended by a signal (the watchdog's, or of a kernel short of
memory), up to five times at the same step. Another exit status would come again and is reported. Variables of the
submitting shell reach the job (that is where a judge's key belongs); command lines hold no secret. Standard output is
WORKDIR/slurm-JOB.log. The checkout and its .venv must be on a shared disk.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import cli
from launch.tpu.job import ROOT, check_train_flags
from rlvr import errors

_NAME = flags.DEFINE_string("name", None, "Name of the job.", required=True)
_NODES = flags.DEFINE_integer("nodes", 1, "Nodes.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus_per_node", 8, "GPUs, and processes, a node.", lower_bound=1)
_CPUS = flags.DEFINE_integer("cpus_per_gpu", 8, "CPU cores a process, verifier workers included.", lower_bound=1)
_TIME = flags.DEFINE_string("time", "24:00:00", "Time limit of one stretch: [D-]HH:MM:SS.")
_PARTITION = flags.DEFINE_string("partition", "", "Partition.")
_ACCOUNT = flags.DEFINE_string("account", "", "Account.")
_SBATCH = flags.DEFINE_multi_string("sbatch", [], "A further option of sbatch, whole: --sbatch=--constraint=h100.")
_WORKDIR = cli.define_workdir("Folder of the run, on a shared disk.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the script and the command, submit nothing.")


def main(argv: Sequence[str]) -> int:
    """Submits the job."""
    train_flags = list(argv[1:])
    check_train_flags(train_flags)
    if not re.fullmatch(r"[A-Za-z0-9._-]+", _NAME.value):
        raise errors.ConfigError(f"--name={_NAME.value!r} must be letters, digits, '.', '_' and '-'")
    if not re.fullmatch(r"(\d+-)?\d{1,3}:\d\d:\d\d", _TIME.value):
        raise errors.ConfigError(f"--time={_TIME.value!r} is not [D-]HH:MM:SS")
    if not _WORKDIR.value.startswith("/"):
        raise errors.ConfigError(f"--workdir={_WORKDIR.value!r} must be an absolute folder that all nodes see")
    if re.search(r"[\s%\"'\\]", _WORKDIR.value):
        raise errors.ConfigError(
            f"--workdir={_WORKDIR.value!r}: sbatch takes no blanks, quotes, '\\' or '%' in its path"
        )
    for option in _SBATCH.value:
        if not option.startswith("-") or "\n" in option:
            raise errors.ConfigError(
                f"--sbatch={option!r} is not an option of sbatch (like --sbatch=--constraint=h100)"
            )
    script = write_script(train_flags)
    path = Path(_WORKDIR.value) / "job.sbatch"
    command = ["sbatch", str(path)]
    if _DRY_RUN.value:
        print(f"{script}# {shlex.join(command)}")
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        print(f"error: sbatch is not installed here\n  tried: {shlex.join(command)}", file=sys.stderr)
        return 1
    print(done.stdout, end="")
    if done.returncode:
        said = done.stderr.strip() or "(nothing)"
        print(f"error: sbatch failed: {said}\n  tried: {shlex.join(command)}", file=sys.stderr)
    return done.returncode


def write_script(train_flags: list[str]) -> str:
    """Returns the batch script."""
    options = [
        f"--job-name={_NAME.value}",
        f"--nodes={_NODES.value}",
        f"--ntasks-per-node={_GPUS.value}",
        f"--gpus-per-node={_GPUS.value}",
        f"--cpus-per-task={_CPUS.value}",
        f"--time={_TIME.value}",
        "--signal=TERM@300",
        "--requeue",
        "--open-mode=append",
        f"--output={_WORKDIR.value}/slurm-%j.log",
        *([f"--partition={_PARTITION.value}"] if _PARTITION.value else []),
        *([f"--account={_ACCOUNT.value}"] if _ACCOUNT.value else []),
        *_SBATCH.value,
    ]
    train = shlex.join(
        [".venv/bin/python", "-m", "launch.train", *train_flags, "--coordinator=auto", f"--workdir={_WORKDIR.value}"]
    )
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        root=shlex.quote(str(ROOT)),
        workdir=shlex.quote(_WORKDIR.value),
        cpus=_CPUS.value,
        crashes=CRASHES,
        train=train,
    )


# How often a job whose processes are ended by signals is started again without having got further.
CRASHES = 5

SCRIPT = """\
#!/usr/bin/env bash
{options}
set -uo pipefail
cd {root}
workdir={workdir}
again() {{ scontrol requeue "$SLURM_JOB_ID"; }}
# How the first process that failed ended, and no other: the rest fail because it is gone, or srun kills them.
export ENDED="$workdir/.ended-$SLURM_JOB_ID"
rm -f "$ENDED"
# Slurm may send SIGTERM to this shell alone, which hands it on, as often as it comes.
task='trap "kill -TERM \\$! 2>/dev/null" TERM; "$@" &
  while wait $!; kill -0 $! 2>/dev/null; do :; done
  wait $!; status=$?  # of its own end, where a signal had broken the waiting off
  [ "$status" = 0 ] || (set -C; echo "$status" >"$ENDED") 2>/dev/null
  exit "$status"'
srun --cpus-per-task={cpus} --kill-on-bad-exit=1 bash -c "$task" task {train}
code=$?
first="$(cat "$ENDED" 2>/dev/null)"
rm -f "$ENDED"
if [ "$code" = 0 ]; then
  # Without a result: asked to stop, and saved.
  [ -f "$workdir/result.json" ] || again
elif [ "${{first:-$code}}" -ge 128 ]; then
  step="$(cat "$workdir/metrics.jsonl" 2>/dev/null | wc -l)"
  echo "$step" >>"$workdir/.crashes"
  crashes="$(grep -cx "$step" "$workdir/.crashes")"
  echo "ended by signal $((${{first:-$code}} - 128)) after $step steps, crash $crashes there"
  if [ "$crashes" -le {crashes} ]; then again; fi
fi
exit "$code"
"""


if __name__ == "__main__":
    cli.run(main)
