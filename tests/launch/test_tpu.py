"""launch.tpu against a gcloud that records its calls and fails in the usual ways, and its job script under bash."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.tpu import job as jobs
from launch.tpu import shell, slices, verbs
from rlvr import errors

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = Path(__file__).with_name("fake_gcloud.py")
HERE = ["--name=run", "--zone=us-east5-a"]
CHIPS = ["--topology=v5p:2x2x4"]
JOB = ["--workdir=gs://bucket/run", "--poll_s=0"]
TRAIN = ["--", "--config=configs/quickstart.py", "--config.seed=1"]


class Cloud:
    """A fake gcloud on PATH, and launch.tpu run against it."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        xpk = f'echo "$@" >>{folder}/xpk; echo listed'
        for name, text in (("gcloud", f"#!{sys.executable}\n{FAKE.read_text()}"), ("xpk", f"#!/bin/bash\n{xpk}\n")):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def __call__(self, verb: str, *arguments: str, **plan: object) -> subprocess.CompletedProcess[str]:
        (self.folder / "plan.json").write_text(json.dumps({"lives": [{}], **plan}))
        env = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_GCLOUD": str(self.folder),
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, "-m", "launch.tpu", verb, *HERE, f"--output={self.folder / 'out'}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)

    def calls(self) -> list[str]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line)["call"] for line in path.read_text().splitlines()] if path.exists() else []

    def arguments(self, call: str) -> list[list[str]]:
        rows = [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        return [row["arguments"] for row in rows if row["call"] == call]


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def test_a_run_with_two_preemptions_and_a_dead_worker_ends_done(cloud: Cloud) -> None:
    lives = [
        {"queued": 1, "fate": "preempted", "after": 2},
        {"fate": "dead", "after": 1},
        {"queued": 2, "fate": "preempted", "after": 1},
        {"fate": "done", "after": 2},
    ]
    done = cloud("run", *CHIPS, "--spot", *JOB, *TRAIN, lives=lives)
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    assert [c for c in calls if c in ("create", "delete")] == ["create", "delete"] * 3 + ["create"]
    # Every life is set up anew and runs the very same script.
    assert calls.count("ssh setup") == calls.count("ssh start") == 4
    scripts = json.loads((cloud.folder / "state.json").read_text())["scripts"]
    assert len(scripts) == 4 and len(set(scripts)) == 1
    assert "the slice is SUSPENDED" in done.stdout and "worker 2 of 4 gives no answer" in done.stdout
    assert sorted(p.name for p in (cloud.folder / "out").iterdir()) == ["config.json", "result.json", "worker0.log"]
    create = cloud.arguments("create")[0]
    assert {"--accelerator-type=v5p-32", "--runtime-version=v2-alpha-tpuv5", "--spot", "--node-id=run"} <= set(create)


def test_a_killed_process_is_started_again_on_the_same_machines(cloud: Cloud) -> None:
    done = cloud("run", *CHIPS, *JOB, *TRAIN, lives=[{"fate": "killed", "after": 1}])
    assert done.returncode == 0, done.stderr
    calls = cloud.calls()
    assert calls.count("create") == 1 and calls.count("delete") == 0 and calls.count("ssh start") == 2
    assert "worker 2 was killed by signal 9" in done.stdout


def test_a_job_that_fails_by_itself_is_not_started_again(cloud: Cloud) -> None:
    done = cloud("run", *CHIPS, *JOB, *TRAIN, lives=[{"fate": "refused", "after": 1}])
    assert done.returncode == 1
    assert "ended with status 1" in done.stderr and str(cloud.folder / "out") in done.stderr
    assert cloud.calls().count("ssh start") == 1
    assert {p.name for p in (cloud.folder / "out").glob("*.log")} == {f"worker{i}.log" for i in range(4)}


def test_run_goes_on_with_what_runs_already_and_watch_starts_nothing(cloud: Cloud) -> None:
    life = {"fate": "done", "after": 3}
    (cloud.folder / "state.json").write_text(
        json.dumps({"made": 1, "there": True, "looks": 1, "probes": 0, "started": True})
    )
    done = cloud("run", *CHIPS, *JOB, *TRAIN, lives=[life])
    assert done.returncode == 0, done.stderr
    assert not {"create", "ssh setup", "ssh start"} & set(cloud.calls())
    watched = cloud("watch", *JOB, lives=[life])
    assert watched.returncode == 0, watched.stderr
    assert not {"create", "ssh setup", "ssh start", "delete"} & set(cloud.calls())
    lost = cloud("watch", *JOB, lives=[{"fate": "preempted", "after": 0}])
    assert lost.returncode == 1 and "`run` with the same flags resumes it" in lost.stderr


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ('There is no more capacity in the zone "us-east5-a"; you can try in another zone', "try another zone"),
        ("PERMISSION_DENIED: Permission 'tpu.queuedResources.create' denied", "TPU Admin"),
    ],
)
def test_a_refused_request_says_what_was_tried_and_what_helps(cloud: Cloud, said: str, helps: str) -> None:
    done = cloud("create", *CHIPS, "--poll_s=0", refuse={"create": said})
    assert done.returncode == 1
    assert said in done.stderr and helps in done.stderr
    assert "tried: gcloud compute tpus queued-resources create run --zone=us-east5-a" in done.stderr


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Quota limit 'TPUV5PPerProjectPerZoneForTPUAPI' has been exceeded. RESOURCE_EXHAUSTED", "quota"),
        ("You do not currently have an active account selected.", "account"),
        ("Insufficient reserved capacity. Contact customer support", "capacity"),
        ("Cloud TPU API has not been used in project 1 before or it is disabled. SERVICE_DISABLED", "disabled"),
        ("{'code': 13, 'message': 'INTERNAL'}", "passing"),
        ("something new", "other"),
    ],
)
def test_failures_are_told_apart_by_what_gcloud_says(said: str, kind: str) -> None:
    error = shell.make_error(["gcloud", "compute", "tpus"], 1, "", said)
    assert error.kind == kind and said in str(error) and "tried: gcloud compute tpus" in str(error)


def test_a_request_that_is_never_met_times_out_and_stays_queued(cloud: Cloud) -> None:
    done = cloud("create", *CHIPS, "--poll_s=0.05", "--wait_s=0.5", lives=[{"queued": 10**9}])
    assert done.returncode == 1
    assert "run is WAITING_FOR_RESOURCES and not ACTIVE after 0 s" in done.stderr
    assert "delete" not in cloud.calls()


def test_a_failed_request_is_made_again_but_not_after_its_own_deadline(cloud: Cloud) -> None:
    again = cloud("create", *CHIPS, "--poll_s=0", lives=[{"error": "no capacity was found"}, {}])
    assert again.returncode == 0, again.stderr
    assert "the request failed: no capacity was found" in again.stdout
    for path in ("state.json", "calls.jsonl"):
        (cloud.folder / path).unlink()
    expired = cloud("create", *CHIPS, "--poll_s=0", "--valid_until=6h", lives=[{"error": "valid until has passed"}])
    assert expired.returncode == 1 and "--valid_until" in expired.stderr
    assert cloud.calls().count("create") == 1


def test_delete_removes_and_does_not_mind_what_is_gone(cloud: Cloud) -> None:
    done = cloud("delete")
    assert done.returncode == 0, done.stderr
    assert cloud.arguments("delete") == [
        ["compute", "tpus", "queued-resources", "delete", "run", "--zone=us-east5-a", "--force", "--quiet"]
    ]


def test_a_dry_run_prints_the_commands_that_a_run_executes_and_calls_nothing(cloud: Cloud) -> None:
    flags = [*CHIPS, "--secret=JUDGE_KEY=judge", *JOB]
    dry = cloud("run", *flags, "--dry_run", *TRAIN)
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    real = cloud("run", *flags, *TRAIN, lives=[{"fate": "done", "after": 1}])
    assert real.returncode == 0, real.stderr
    for call in ("create", "request", "node", "ssh mkdir", "ssh setup", "ssh start", "ssh probe", "storage ls"):
        # Quoted for a shell: compare without the quotes.
        assert " ".join(cloud.arguments(call)[0]) in dry.stdout.replace("'", ""), call
    assert "--config.seed=1 --coordinator=auto --workdir=/mnt/rlvr/bucket/run" in dry.stdout
    assert "gcloud secrets versions access latest --secret=judge" in dry.stdout


def dry_lines(text: str) -> list[str]:
    """The lines of a dry run as the shell would split and join them again."""
    return [" ".join(shlex.split(line)) for line in text.splitlines()]


CONFIG = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (lambda: slices.read_accelerator("", "v5p:4x4"), "is not a shape of 3 sizes"),
        (lambda: slices.read_accelerator("", "v9:4x4"), "'v9' is not known"),
        (lambda: slices.read_accelerator("v5q-8", ""), "v5litepod-N"),
        (lambda: slices.read_accelerator("", ""), "give one of --accelerator_type"),
        (lambda: slices.check_slice(slices.Slice("x", "us-east5-a", "", "", spot=True, reserved=True)), "exclude"),
        (lambda: slices.check_slice(slices.Slice("x", "us-east5-a", "", "", valid_until="soon")), "not a duration"),
        (lambda: slices.check_slice(slices.Slice("x", "us", "", "")), "is not a zone"),
        (lambda: slices.check_slice(slices.Slice("X_1", "us-east5-a", "", "")), "--name='X_1'"),
        (lambda: jobs.check_workdir("/tmp/x"), "must be gs://BUCKET/FOLDER"),
        (lambda: jobs.check_secrets(["KEY=sk-0123456789abcdef"]), "not its value"),
        (lambda: jobs.check_train_flags([CONFIG, "--api_key=x"]), "looks like a secret"),
        (lambda: jobs.check_train_flags([CONFIG, "--config.name=hf_abcdefghijk"]), "looks like a secret"),
        (lambda: jobs.check_train_flags([CONFIG, "--workdir=x"]), "the launcher sets it itself"),
        (lambda: jobs.check_train_flags([CONFIG, "--config.sed=1"]), "sed"),
        (lambda: jobs.check_train_flags([CONFIG, "--config.steps=-1"]), "steps=-1"),
        (lambda: jobs.check_train_flags(["--config=configs/none.py"]), "configs/none.py"),
        (lambda: jobs.check_train_flags([]), "--config=FILE"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(check: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(errors.ConfigError) as refused:
        check()
    assert said in str(refused.value) and "Traceback" not in str(refused.value)
    assert "0123456789" not in str(refused.value) and "abcdefghijk" not in str(refused.value)


def test_a_mistake_ends_as_one_line_before_gcloud_is_called(cloud: Cloud) -> None:
    done = cloud("run", *CHIPS, *JOB, "--", CONFIG, "--config.steps=-1")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == ["error: steps=-1 must be at least 0"]
    assert cloud.calls() == []


def test_xpk_gets_the_same_job(cloud: Cloud) -> None:
    flags = [*CHIPS, "--cluster=pods", "--image=europe-docker.pkg.dev/p/rlvr/tpu:1", *JOB]
    done = cloud("run", *flags, "--dry_run", *TRAIN)
    assert done.returncode == 0, done.stderr
    create, wait = done.stdout.splitlines()
    assert create.startswith("xpk workload create --cluster=pods --zone=us-east5-a --workload=run --tpu-type=v5p-32")
    assert "launch.train --config=configs/quickstart.py --config.seed=1 --coordinator=auto" in create
    assert "--workdir=/mnt/rlvr/run" in create
    assert wait.endswith("--wait-for-job-completion=run")
    real = cloud("run", *flags, *TRAIN)
    assert real.returncode == 0 and real.stdout.split() == ["listed"] * 2
    called = (cloud.folder / "xpk").read_text().splitlines()
    assert [f"xpk {line}" for line in called] == dry_lines(done.stdout)
    missing = cloud("run", *CHIPS, "--cluster=pods", *JOB, *TRAIN)
    assert missing.returncode == 1 and "--image" in missing.stderr
    for flag in ("--reserved", "--setup=true", "--runtime_version=v2"):
        refused = cloud("create", *CHIPS, "--cluster=pods", flag)
        assert refused.returncode == 1 and flag.split("=")[0] in refused.stderr


def test_accelerator_types_follow_from_topologies() -> None:
    assert slices.read_accelerator("", "v5p:4x4x4") == ("v5p-128", "v2-alpha-tpuv5")
    assert slices.read_accelerator("", "v5e:8x8") == ("v5litepod-64", "v2-alpha-tpuv5-lite")
    assert slices.read_accelerator("v6e-64", "") == ("v6e-64", "v2-alpha-tpuv6e")
    with pytest.raises(errors.ConfigError, match="v4"):
        slices.read_accelerator("", "h100:8")


class Worker:
    """The job script in a folder of its own, where the training command is a script of the test's."""

    def __init__(self, folder: Path, train: str):
        self.folder = folder
        script = jobs.write_script(jobs.Job("x", "gs://bucket/run", ("--config=c.py",)))
        script = script.replace("/mnt/rlvr/bucket", str(folder / "bucket"))
        (folder / "job.sh").write_text(script)
        (folder / "bucket" / "run").mkdir(parents=True)
        python = folder / "code" / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/usr/bin/env bash\n{train}\n")
        python.chmod(0o755)

    def __call__(self, verb: str) -> str:
        env = os.environ | {"HOSTNAME": "t1v-n-0a1b-w-0"}
        done = subprocess.run(
            ["bash", str(self.folder / "job.sh"), verb], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def until(self, state: str) -> jobs.Probe:
        deadline = time.monotonic() + 20
        while (probe := jobs.read_probes(self("probe"))[0]).state != state and time.monotonic() < deadline:
            time.sleep(0.1)
        return probe


def test_the_script_starts_probes_and_stops(tmp_path: Path) -> None:
    # As a run does: asked to stop, it saves itself and ends with status 0 and no result.
    worker = Worker(tmp_path, 'trap "echo saved; exit 0" TERM\necho "step 3/9"\nwhile :; do sleep 0.1; done')
    assert jobs.read_probes(worker("probe")) == [jobs.Probe(0, "absent", 0, 0, "")]
    worker("start")
    assert worker.until("running").state == "running"
    deadline = time.monotonic() + 20
    while "step 3/9" not in worker("probe") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert jobs.read_probes(worker("probe")) == [jobs.Probe(0, "running", 0, 0, "step 3/9")]
    worker("stop")
    (probe,) = jobs.read_probes(worker("probe"))
    assert probe._replace(ended=0) == jobs.Probe(0, "stopped", 75, 0, "saved")
    assert abs(time.time() - probe.ended) < 60


@pytest.mark.parametrize(
    ("ends", "outcome", "said"),
    [
        # An error of one, which ends the others by their SIGABRT; a kill, of which the others fail.
        (((134, 9.2), (1, 9.1), (134, 9.3)), "failed", "worker 1 ended with status 1"),
        (((1, 9.2), (134, 9.3), (137, 9.1)), "crashed", "worker 2 was killed by signal 9"),
        (((1, 9.2), (134, 9.3), (137, 0.0)), "crashed", "worker 2 was killed by signal 9"),
    ],
)
def test_the_first_that_failed_says_why(ends: tuple[tuple[int, float], ...], outcome: str, said: str) -> None:
    probes = [jobs.Probe(worker, "failed", *end, "a line") for worker, end in enumerate(ends)]
    judged = verbs.judge(probes)
    assert judged == verbs.Outcome(outcome, f"{said}: a line")


@pytest.mark.parametrize(
    ("train", "state", "status"),
    [
        ("echo {} >bucket_run/result.json", "done", 0),
        ("echo 'error: steps=-1'; exit 1", "failed", 1),
        ("kill -KILL $$", "failed", 137),
    ],
)
def test_the_script_says_how_the_job_ended(tmp_path: Path, train: str, state: str, status: int) -> None:
    worker = Worker(tmp_path, train.replace("bucket_run", str(tmp_path / "bucket" / "run")))
    worker("start")
    probe = worker.until(state)
    assert (probe.state, probe.status) == (state, status), worker("probe")


def test_a_worker_whose_processes_vanished_has_failed_by_a_kill(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "while :; do sleep 0.1; done")
    worker("start")
    worker.until("running")
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert worker.until("failed").status == 137


def test_the_packed_code_is_the_tree_without_what_git_ignores(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    for name, text in {"a.py": "1", ".gitignore": "weights/\n", "weights/w": "x", "new.py": "2"}.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)
    first = jobs.pack_code(tmp_path / "a.tar.gz", tree)
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert sorted(archive.getnames()) == [".gitignore", "a.py", "new.py"]
    (tree / "a.py").write_text("3")
    assert jobs.pack_code(tmp_path / "b.tar.gz", tree) != first
    shutil.rmtree(tree / ".git")
    with pytest.raises(errors.ConfigError, match="git"):
        jobs.pack_code(tmp_path / "c.tar.gz", tree)
