"""Runs commands of Google's tools; a failure says what was tried, what the tool said, and what to do."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping

# Which failure it is, by what the tool prints; the first that matches. "quota" comes before "capacity": both are
# RESOURCE_EXHAUSTED.
PATTERNS: Mapping[str, str] = {
    "account": r"active account|gcloud auth login|[Rr]eauthenticat|refreshing your current auth",
    "disabled": r"SERVICE_DISABLED|has not been used in project|API .* is not enabled",
    "permission": r"PERMISSION_DENIED|[Pp]ermission .*denied|does not have .*permission|403",
    "quota": r"[Qq]uota",
    "capacity": r"no more capacity|RESOURCE_EXHAUSTED|[Ii]nsufficient .*capacity|STOCKOUT|not enough resources",
    "missing": r"NOT_FOUND|was not found|404",
    "exists": r"ALREADY_EXISTS|already exists|409",
    "passing": r"UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|[Cc]onnection (timed out|refused|reset)|502|503",
}
ADVICE: Mapping[str, str] = {
    "account": "log in with `gcloud auth login` (on a machine of its own: a service account)",
    "disabled": "enable the Cloud TPU API of the project: `gcloud services enable tpu.googleapis.com`",
    "permission": "the account needs the roles TPU Admin and Service Account User in the project (--project)",
    "quota": "ask for more quota of these chips in this zone, or take fewer (--accelerator_type) or another zone",
    "capacity": "try another zone, --spot or --reserved, fewer chips, or a longer --valid_until",
    "missing": "check --name, --zone and --project; `create` makes the slice",
    "exists": "`watch` goes on with what is there, `delete` removes it",
    "passing": "this often passes: run the command again",
}


class CloudError(RuntimeError):
    """A command of Google's tools failed; `kind` is a key of `ADVICE`, or "other"."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


class ShellError(CloudError):
    """A command on the workers failed or did not reach them; `output` is what came back all the same."""

    def __init__(self, message: str, output: str):
        super().__init__(message, "other")
        self.output = output


def run(command: list[str], timeout_s: float = 900.0) -> str:
    """Runs a command and returns its standard output.

    Raises:
        CloudError: it is not installed, exits with another status than 0, or takes too long (kind "passing").
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise CloudError(f"{command[0]} is not installed here\n  tried: {shlex.join(command)}", "other") from error
    except subprocess.TimeoutExpired as error:
        message = f"{command[0]} gave no answer within {timeout_s:.0f} s\n  tried: {shlex.join(command)}"
        raise CloudError(message, "passing") from error
    if done.returncode:
        raise make_error(command, done.returncode, done.stdout, done.stderr)
    return done.stdout


def stream(command: list[str]) -> None:
    """Runs a command whose output is for the user to follow, for as long as it takes.

    Raises:
        CloudError: it is not installed, or exits with another status than 0.
    """
    try:
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    except FileNotFoundError as error:
        raise CloudError(f"{command[0]} is not installed here\n  tried: {shlex.join(command)}", "other") from error
    if status:
        raise make_error(command, status, "", "see above")


def make_error(command: list[str], status: int, output: str, said: str) -> CloudError:
    """Returns the error of a command that failed."""
    lines = [line for line in said.strip().splitlines() if line.strip()] or ["(nothing)"]
    message = f"{command[0]} failed with status {status}: " + "\n  ".join(lines[-12:])
    message += f"\n  tried: {shlex.join(command)}"
    kind = next((kind for kind, pattern in PATTERNS.items() if re.search(pattern, said)), "other")
    if "ssh" in command[:5] and kind in ("other", "passing"):
        return ShellError(message, output)
    return CloudError(message + (f"\n  what helps: {ADVICE[kind]}" if kind in ADVICE else ""), kind)


def format_plan(parts: list[tuple[str, list[list[str]]]], script: str) -> str:
    """Returns commands as they would be typed, each part under its comment, and a script that goes with them."""
    lines: list[str] = []
    for comment, commands in parts:
        lines += [f"# {comment}"] if comment else []
        lines += [shlex.join(command) for command in commands]
    return "\n".join(lines + (["# job.sh", script.rstrip()] if script else []))
