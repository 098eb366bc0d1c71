#!/usr/bin/env python3
"""Plays gcloud over a folder ($FAKE_GCLOUD): records every call in calls.jsonl, and fails in the usual ways.

plan.json says what becomes of each request in turn:
    {"workers": 4, "lives": [{"queued": 1, "fate": "preempted", "after": 2}, ...], "refuse": {"create": "message"}}
`queued` is how many looks at the request say WAITING_FOR_RESOURCES before ACTIVE (or FAILED, with "error"); after
`after` probes `fate` is what happens: "preempted", "dead" (worker 2 gives no answer), "killed" (its process is killed
by a signal), "refused" (all processes end with status 1) or "done". `refuse` makes a call fail at once, always.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE_GCLOUD"])
PLAN = json.loads((FOLDER / "plan.json").read_text())
WORKERS = PLAN.get("workers", 4)


def name_call(arguments: list[str]) -> str:
    words = [word for word in arguments if not word.startswith("-")]
    if words[:1] == ["storage"]:
        return f"storage {words[1]}"
    verb = words[3]
    if verb == "describe":
        return "request" if words[2] == "queued-resources" else "node"
    if verb == "ssh":
        script = next(a for a in arguments if a.startswith("--command="))
        return "ssh " + script.rsplit(" ", 1)[-1].split("/")[0].replace("rlvr-jobs", "mkdir")
    return verb


def fail(message: str, status: int = 1) -> None:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(status)


def main() -> None:
    arguments = sys.argv[1:]
    call = name_call(arguments)
    with open(FOLDER / "calls.jsonl", "a") as file:
        file.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
    path = FOLDER / "state.json"
    state = json.loads(path.read_text()) if path.exists() else {"made": 0, "there": False, "looks": 0, "probes": 0}
    if call in PLAN.get("refuse", {}):
        fail(PLAN["refuse"][call])
    try:
        answer(call, arguments, state)
    finally:
        path.write_text(json.dumps(state))


def answer(call: str, arguments: list[str], state: dict[str, Any]) -> None:
    life = PLAN["lives"][max(state["made"] - 1, 0)]
    over = state["probes"] >= life.get("after", 0) and state["made"] > 0
    preempted = over and life.get("fate") == "preempted"
    if call == "create":
        if state["there"]:
            fail("ALREADY_EXISTS: the resource already exists")
        state.update(made=state["made"] + 1, there=True, looks=0, probes=0, started=False)
    elif call == "request":
        if not state["there"]:
            fail("NOT_FOUND: Resource 'queuedResources/x' was not found")
        state["looks"] += 1
        if state["looks"] <= life.get("queued", 0):
            print(json.dumps({"state": {"state": "WAITING_FOR_RESOURCES"}}))
        elif "error" in life:
            print(json.dumps({"state": {"state": "FAILED", "failedData": {"error": {"message": life["error"]}}}}))
        else:
            print(json.dumps({"state": {"state": "SUSPENDED" if preempted else "ACTIVE"}}))
    elif call == "node":
        if not state["there"]:
            fail("NOT_FOUND: node was not found")
        node = {"state": "PREEMPTED" if preempted else "READY", "networkEndpoints": [{}] * WORKERS}
        print(json.dumps(node))
    elif call == "delete":
        if not state["there"]:
            fail("NOT_FOUND: queued resource was not found")
        state["there"] = False
    elif call == "ssh start":
        state.update(started=True, starts=state.get("starts", 0) + 1)
        if life.get("fate") == "killed" and state["starts"] > 1:
            life["fate"] = "done"
            PLAN["lives"][state["made"] - 1] = life
            (FOLDER / "plan.json").write_text(json.dumps(PLAN))
    elif call == "ssh probe":
        probe(life, state, over)
    elif call == "scp":
        if not any(":" in a for a in arguments[4:] if not a.startswith("-")):
            fail("no instance")
        target = [a for a in arguments if not a.startswith("-")][-1]
        if ":" not in target:
            Path(target).write_text("the log\n")
        else:
            sent = [Path(a) for a in arguments[4:] if a.endswith(".sh")]
            state["scripts"] = [*state.get("scripts", []), *(path.read_text() for path in sent)]
    elif call == "storage ls":
        print("gs://bucket/run/config.json\ngs://bucket/run/result.json\ngs://bucket/run/checkpoints/")
    elif call == "storage cp":
        words = [a for a in arguments[2:] if not a.startswith("-")]
        for source in words[:-1]:
            (Path(words[-1]) / source.rsplit("/", 1)[-1]).write_text("{}")


def probe(life: dict[str, Any], state: dict[str, Any], over: bool) -> None:
    if not state["started"]:
        fail("bash: rlvr-jobs/x/job.sh: No such file or directory", 127)
    state["probes"] += 1
    fate = life.get("fate") if over else "running"
    for worker in range(WORKERS):
        said = "running 0 0"
        if fate == "done":
            said = "done 0 9"
        elif fate == "refused":
            said = "failed 1 9.5"
        elif fate == "killed" and worker == 2:
            said = "failed 137 9.5"
        elif fate == "dead" and worker == 2:
            continue
        print(f"RLVR {worker} {said} step {state['probes']}/9 reward 0.5")
    if fate == "dead":
        fail("ssh: connect to host 10.0.0.4 port 22: Connection timed out", 255)


main()
