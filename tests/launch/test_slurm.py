"""launch.slurm against an sbatch that records what it gets, and its script under an srun of the test's."""

import os
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
    assert arguments[-5:] == [
        "launch.train", "--config=configs/quickstart.py", "--config.name=it's mine", "--coordinator=auto",
        f"--workdir={tmp_path}/run",
    ]  # fmt: skip
    assert (tmp_path / "scontrol").exists() == requeued
    script = (tmp_path / "run" / "job.sbatch").read_text()
    for option in ("--nodes=2", "--ntasks-per-node=4", "--partition=gpu", "--constraint=h100", "--requeue"):
        assert f"#SBATCH {option}\n" in script


def test_sbatch_that_fails_is_shown_with_what_was_tried(tmp_path: Path) -> None:
    install(tmp_path / "bin", "sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    done = submit(tmp_path, "--partition=gpu")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr and f"tried: sbatch {tmp_path}/run/job.sbatch" in done.stderr


def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    done = submit(tmp_path, "--time=soon")
    assert done.returncode == 1 and "--time='soon' is not [D-]HH:MM:SS" in done.stderr
