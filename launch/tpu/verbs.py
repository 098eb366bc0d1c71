"""create, run, watch, delete: a slice and the training job on it, until the job has ended.

A run resumes by itself when its command is repeated, so whatever is lost (a preempted slice, a dead worker, a process
killed by a signal) is replaced and the same command started again. A job that refuses its own flags or crashes with an
ordinary exit status is not: it would do so again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from launch.tpu import shell, slices
from launch.tpu.job import Job, Probe, pack_code, read_probes, write_script
from launch.tpu.shell import CloudError, ShellError
from launch.tpu.slices import Slice

GONE = ("SUSPENDING", "SUSPENDED", "DELETING", "FAILED")  # states of a request that will not become ACTIVE any more
GATHERED = ("config.json", "metrics.jsonl", "samples.jsonl", "result.json", "report.html")


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long to wait for what.

    Attributes:
        poll_s: seconds between looks.
        active_s: seconds that a request may take to become ACTIVE.
        silent: looks in a row at which a worker may give no answer.
        restarts: how often what is lost is replaced.
        crashes: how often a job whose processes were killed by signals is started again on the same machines.
    """

    poll_s: float = 30.0
    active_s: float = 86_400.0
    silent: int = 3
    restarts: int = 100
    crashes: int = 5


class Outcome(NamedTuple):
    """How a look at a job ended: "done", "failed", "crashed" (start again), "lost" (new machines), and why."""

    kind: str
    why: str


def say(text: str) -> None:
    """Prints a line with the time."""
    print(time.strftime("%H:%M:%S ") + text, flush=True)


def create(wanted: Slice, patience: Patience) -> None:
    """Queues the request, unless it is there, and waits until its machines are.

    Raises:
        CloudError: gcloud fails, the request fails, or it is not ACTIVE in time; a request that waits is left queued.
    """
    deadline, shown = time.monotonic() + patience.active_s, ""
    while True:
        found = read_request(wanted)
        state = request_state(found)
        if state != shown:
            say(f"{wanted.name}: {state or 'not there'}")
            shown = state
        if state == "ACTIVE":
            return
        if state == "FAILED" and deadline_passed(found):
            raise CloudError(f"{wanted.name} waited in the queue for longer than --valid_until", "capacity")
        if state in GONE:
            if state == "FAILED":
                say(f"{wanted.name}: the request failed: {failure_of(found)}")
            remove(wanted)
            shown = ""
        elif not state:
            shell.run(slices.create_command(wanted))
            continue
        if time.monotonic() > deadline:
            raise CloudError(
                f"{wanted.name} is {state or 'not there'} and not ACTIVE after {patience.active_s:.0f} s: it may still "
                "become so; run the command again to wait on, or delete it\n"
                f"  what helps: {shell.ADVICE['capacity']}",
                "capacity",
            )
        time.sleep(patience.poll_s)


def remove(wanted: Slice) -> None:
    """Deletes the request with its machines; one that is not there is no error."""
    try:
        shell.run(slices.delete_command(wanted))
        say(f"{wanted.name}: deleted")
    except CloudError as error:
        if error.kind != "missing":
            raise


def run(wanted: Slice, job: Job, output: Path, patience: Patience) -> None:
    """Brings a job to its end, whatever is taken away on the way; what it left is then in `output`.

    Raises:
        CloudError: gcloud fails, the job failed by itself, or something was lost more often than allowed.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive, script = Path(folder) / "code.tar.gz", Path(folder) / "job.sh"
        say(f"{job.name}: code {pack_code(archive)}")
        script.write_text(write_script(job))
        lost = crashed = 0
        while True:
            create(wanted, patience)
            outcome = begin(wanted, job, [str(archive), str(script)]) or follow(wanted, job, patience)
            say(f"{job.name}: {outcome.kind}: {outcome.why}")
            if outcome.kind == "done":
                gather(wanted, job, output)
                return
            if outcome.kind == "lost":
                remove(wanted)
                lost, crashed = lost + 1, 0
            elif outcome.kind == "crashed":
                crashed += 1
            if outcome.kind == "failed" or crashed > patience.crashes:
                with contextlib.suppress(CloudError):  # the failure itself is what matters
                    gather(wanted, job, output)
                raise CloudError(f"{job.name} {outcome.kind}: {outcome.why}\n  its logs: {output}", "other")
            if lost > patience.restarts:
                raise CloudError(f"{job.name} was lost {lost} times (--max_restarts); the last: {outcome.why}", "other")


def watch(wanted: Slice, job: Job, output: Path, patience: Patience) -> None:
    """Follows a job that `run` started elsewhere, and gathers what it left; replaces nothing.

    Raises:
        CloudError: it failed, or was lost.
    """
    outcome = follow(wanted, job, patience)
    say(f"{job.name}: {outcome.kind}: {outcome.why}")
    if outcome.kind in ("done", "failed"):
        gather(wanted, job, output)
    if outcome.kind != "done":
        raise CloudError(f"{job.name} {outcome.kind}: {outcome.why}\n  `run` with the same flags resumes it", "other")


def begin(wanted: Slice, job: Job, files: list[str]) -> Outcome | None:
    """Sets the job up on all workers and starts it, unless it runs already; says so if the machines were lost."""
    try:
        with contextlib.suppress(ShellError):  # machines that are new have no job.sh
            probes = read_probes(shell.run(probe_command(wanted, job)))
            if probes and all(probe.state == "running" for probe in probes):
                say(f"{job.name}: runs already")
                return None
        for command in begin_commands(wanted, job, files):
            shell.run(command, timeout_s=3600.0)
        say(f"{job.name}: started")
        return None
    except CloudError as error:
        why = machines_lost(wanted)
        if why is None:
            raise
        return Outcome("lost", f"{why} ({str(error).splitlines()[0]})")


def begin_commands(wanted: Slice, job: Job, files: list[str]) -> list[slices.Command]:
    """Returns the commands that copy, set up and start a job."""
    return [
        slices.ssh_command(wanted, f"mkdir -p {job.folder}"),
        slices.upload_command(wanted, *files, folder=job.folder),
        slices.ssh_command(wanted, f"bash {job.folder}/job.sh setup"),
        slices.ssh_command(wanted, f"bash {job.folder}/job.sh start"),
    ]


def probe_command(wanted: Slice, job: Job) -> slices.Command:
    """Returns the command that asks all workers for the state of a job."""
    return slices.ssh_command(wanted, f"bash {job.folder}/job.sh probe")


def follow(wanted: Slice, job: Job, patience: Patience) -> Outcome:
    """Looks at a job until it has ended or something of it is gone."""
    silent, ended, shown = 0, 0, ""
    while True:
        lost = machines_lost(wanted)
        if lost is not None:
            return Outcome("lost", lost)
        workers = count_workers(wanted)
        try:
            said, trouble = shell.run(probe_command(wanted, job), timeout_s=300.0), ""
        except ShellError as error:
            said, trouble = error.output, str(error).splitlines()[0]
        except CloudError as error:
            if error.kind not in ("passing", "missing"):  # a node that is missing is seen at the next look
                raise
            said, trouble = "", str(error).splitlines()[0]
        probes = read_probes(said)
        quiet = sorted(set(range(workers)) - {probe.worker for probe in probes})
        silent = silent + 1 if quiet else 0
        if silent >= patience.silent:
            return Outcome("lost", f"worker {', '.join(map(str, quiet))} of {workers} gives no answer. {trouble}")
        if probes and probes[0].worker == 0 and probes[0].line not in ("", shown):
            shown = probes[0].line
            say(shown)
        outcome = judge(probes) if not quiet else None
        # One worker may end before the others: the run is over when all have ended, or do not follow the first.
        ended = ended + 1 if outcome else 0
        if outcome and (ended >= patience.silent or not any(probe.state == "running" for probe in probes)):
            return outcome
        time.sleep(patience.poll_s)


def judge(probes: list[Probe]) -> Outcome | None:
    """Returns what the workers' states amount to, None while all run."""
    if all(probe.state == "running" for probe in probes):
        return None
    if all(probe.state == "done" for probe in probes):
        return Outcome("done", f"{len(probes)} workers")
    failed = [probe for probe in probes if probe.state == "failed"]
    if failed:
        first = min(failed, key=lambda probe: probe.ended)  # the others fail because of it
        if first.status >= 128:
            return Outcome("crashed", f"worker {first.worker} was killed by signal {first.status - 128}: {first.line}")
        return Outcome("failed", f"worker {first.worker} ended with status {first.status}: {first.line}")
    other = next(probe for probe in probes if probe.state != "running")
    return Outcome("crashed", f"worker {other.worker} is {other.state}")


def gather(wanted: Slice, job: Job, output: Path) -> None:
    """Copies the log of process 0 (of all workers that failed, too) and the run's small files to `output`.

    Raises:
        CloudError: something cannot be copied.
    """
    output.mkdir(parents=True, exist_ok=True)
    try:
        probes = read_probes(shell.run(probe_command(wanted, job)))
    except ShellError as error:
        probes = read_probes(error.output)
    for worker in sorted({0} | {probe.worker for probe in probes if probe.state == "failed"}):
        target = str(output / f"worker{worker}.log")
        shell.run(slices.download_command(wanted, f"{job.folder}/log", target, worker))
    listed = shell.run(["gcloud", "storage", "ls", job.workdir + "/"]).split()
    there = [f"{job.workdir}/{name}" for name in GATHERED if f"{job.workdir}/{name}" in listed]
    if there:
        shell.run(["gcloud", "storage", "cp", *there, str(output) + "/"])
    say(f"{job.name}: {', '.join(sorted(path.name for path in output.iterdir()))} in {output}")


def read_request(wanted: Slice) -> dict[str, Any]:
    """Returns what the service says of the request; {} if there is none."""
    return read_json(slices.request_command(wanted))


def read_json(command: slices.Command) -> dict[str, Any]:
    """Returns what a describing command prints, {} where the thing is not there; retries what passes.

    Raises:
        CloudError: it fails otherwise, or three times.
    """
    for attempt in range(3):
        try:
            found: dict[str, Any] = json.loads(shell.run(command))
            return found
        except CloudError as error:
            if error.kind == "missing":
                return {}
            if error.kind != "passing" or attempt == 2:
                raise
        except json.JSONDecodeError as error:
            raise CloudError(f"gcloud printed no JSON ({error}): {' '.join(command)}", "other") from error
        time.sleep(1.0)
    raise AssertionError("unreachable")


def request_state(found: dict[str, Any]) -> str:
    """Returns the state of a request, "" if there is none."""
    return str(found.get("state", {}).get("state", "")) if found else ""


def failure_of(found: dict[str, Any]) -> str:
    """Returns why a request failed, in the service's words."""
    return str(found.get("state", {}).get("failedData", {}).get("error", {}).get("message", "no reason was given"))


def deadline_passed(found: dict[str, Any]) -> bool:
    """Says whether a request failed because it was not met in time."""
    return "valid" in failure_of(found).lower()


def machines_lost(wanted: Slice) -> str | None:
    """Returns why the slice is no use any more, or None."""
    state = request_state(read_request(wanted))
    if state != "ACTIVE":
        return f"the slice is {state or 'gone'}"
    node = read_json(slices.node_command(wanted))
    if node.get("state") != "READY":
        return f"its machines are {node.get('state', 'gone')}"
    return None


def count_workers(wanted: Slice) -> int:
    """Returns how many workers the slice has."""
    return max(len(read_json(slices.node_command(wanted)).get("networkEndpoints", [])), 1)


def preview(verb: str, wanted: Slice, job: Job | None, output: Path) -> str:
    """Returns the commands of a verb, in order, and the script that the workers get."""
    commands: list[tuple[str, list[slices.Command]]] = []
    if verb in ("create", "run"):
        commands.append(("unless it is there", [slices.create_command(wanted)]))
        commands.append(("until it is ACTIVE", [slices.request_command(wanted)]))
    if verb == "run" and job:
        commands.append(("on all workers", begin_commands(wanted, job, ["code.tar.gz", "job.sh"])))
    if verb in ("run", "watch") and job:
        looks = [slices.request_command(wanted), slices.node_command(wanted), probe_command(wanted, job)]
        commands.append(("until it has ended", looks))
        gathers = [slices.download_command(wanted, f"{job.folder}/log", f"{output}/worker0.log", 0)]
        gathers.append(["gcloud", "storage", "ls", job.workdir + "/"])
        gathers.append(["gcloud", "storage", "cp", *(f"{job.workdir}/{name}" for name in GATHERED), f"{output}/"])
        commands.append(("what it left", gathers))
    if verb == "run":
        commands.append(("whenever the slice is lost, before it is made again", [slices.delete_command(wanted)]))
    if verb == "delete":
        commands.append(("", [slices.delete_command(wanted)]))
    return shell.format_plan(commands, write_script(job) if verb == "run" and job else "")
