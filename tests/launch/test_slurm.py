"""launch.slurm against an sbatch that records what it gets, and its script under an srun of the test's."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def install(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


def submit(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "launch.slurm", "--name=j", f"--workdir={tmp_path / 'run'}", *arguments]
    command += ["--", "--config=configs/quickstart.py", "--config.name=it's mine"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("wrote", "requeued"), [(True, False), (False, True)])
def test_a_stopped_run_goes_back_into_the_queue_and_a_finished_one_does_not(
    tmp_path: Path, wrote: bool, requeued: bool
) -> None:
    bin_ = tmp_path / "bin"
    result = f"echo {{}} >{tmp_path}/run/result.json" if wrote else ":"
    install(bin_, "srun", f'printf "%s\\n" "$@" >{tmp_path}/srun\n{result}')
    install(bin_, "scontrol", f'echo "$@" >{tmp_path}/scontrol')
    install(bin_, "sbatch", 'SLURM_JOB_ID=7 bash "$1" && echo "Submitted batch job 7"')
    done = submit(tmp_path, "--nodes=2", "--gpus_per_node=4", "--partition=gpu", "--sbatch=--constraint=h100")
    assert done.returncode == 0, done.stderr
    assert "Submitted batch job 7" in done.stdout
    arguments = (tmp_path / "srun").read_text().splitlines()
    assert (
        arguments[:4] == ["--cpus-per-task=8", "--kill-on-bad-exit=1", "bash", "-c"] and ".venv/bin/python" in arguments
    )
    assert arguments[-5:] == [
        "launch.train", "--config=configs/quickstart.py", "--config.name=it's mine", "--coordinator=auto",
        f"--workdir={tmp_path}/run",
    ]  # fmt: skip
    assert (tmp_path / "scontrol").exists() == requeued
    script = (tmp_path / "run" / "job.sbatch").read_text()
    for option in ("--nodes=2", "--ntasks-per-node=4", "--partition=gpu", "--constraint=h100", "--requeue"):
        assert f"#SBATCH {option}\n" in script


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The batch script of a job, in its workdir; its commands are those of `bin` beside that."""
    folder = tmp_path_factory.mktemp("slurm")
    install(folder / "bin", "sbatch", ":")
    assert submit(folder).returncode == 0
    return folder / "run" / "job.sbatch"


# What the two processes of a job do, the status of the job, and whether it goes back into the queue.
@pytest.mark.parametrize(
    ("first", "second", "status", "requeued"),
    [
        ("exit 0", "kill -ALRM $$", 142, True),  # the watchdog
        ('until [ -s "$ENDED" ]; do sleep 0.01; done; exit 1', "kill -KILL $$", 137, True),  # fails without the other
        ("exit 1", "exec sleep 60", 137, False),  # srun kills the other, or what it runs, and says so
        ("exit 2", "exit 0", 2, False),
        # A signal, to the shell alone: it reaches the process, which saves itself.
        ("trap 'sleep 0.1; exit 0' TERM; kill -TERM $PPID; sleep 20 & wait; exit 3", "exit 0", 0, True),
        ("trap 'exit 4' TERM; kill -TERM $PPID; sleep 20 & wait; exit 3", "exit 0", 4, False),
    ],
)
def test_what_was_ended_by_a_signal_is_tried_again(
    script: Path, first: str, second: str, status: int, requeued: bool
) -> None:
    bin_, asked = script.parent.parent / "bin", script.parent / "asked"
    for left in (asked, script.parent / ".crashes"):
        left.unlink(missing_ok=True)
    # The wrapper of each process with another command; the first that fails ends the others.
    install(bin_, "srun", f"""
        SLURM_PROCID=1 "${{@:3:4}}" bash -c {shlex.quote(second)} & other=$!
        SLURM_PROCID=0 "${{@:3:4}}" bash -c {shlex.quote(first)}
        code=$?
        [ $code = 0 ] || {{ pkill -KILL -P $other; sleep 0.2; kill -KILL $other; }}
        wait $other
        second=$?
        exit $((second > code ? second : code))""")  # fmt: skip
    install(bin_, "scontrol", f'echo "$@" >>{asked}')
    env = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def run() -> int:
        return subprocess.run(["bash", script], env=env, capture_output=True, timeout=60).returncode

    assert run() == status
    assert (asked.read_text().splitlines() if asked.exists() else []) == ["requeue 7"] * requeued
    assert not list(script.parent.glob(".ended-*"))
    if status == 142:  # and no more than five times without a step
        assert [run() for _ in range(5)] == [142] * 5 and len(asked.read_text().splitlines()) == 5
        (script.parent / "metrics.jsonl").write_text("{}\n")
        assert run() == 142 and len(asked.read_text().splitlines()) == 6
        (script.parent / "metrics.jsonl").unlink()


def test_sbatch_that_fails_is_shown_with_what_was_tried(tmp_path: Path) -> None:
    install(tmp_path / "bin", "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    done = submit(tmp_path, "--partition=gpu")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr and f"tried: sbatch {tmp_path}/run/job.sbatch" in done.stderr


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--time=soon", "--time='soon' is not [D-]HH:MM:SS"),
        ("--workdir=/shared/my run", "--workdir='/shared/my run': sbatch takes no blanks"),
    ],
)
def test_what_sbatch_would_not_take_is_refused(tmp_path: Path, flag: str, said: str) -> None:
    done = submit(tmp_path, flag)
    assert done.returncode == 1 and said in done.stderr
