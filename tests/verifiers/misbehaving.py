"""Verifiers that do everything a verifier should not. Loaded by name in worker processes; no test in here."""

import os
import re
import subprocess
import sys
import time

from rlvr import types
from rlvr.verifiers import base


def run(completion, reference, payload):
    """Does what the completion says; "say:TEXT" answers with TEXT as the detail of a correct verdict."""
    action, _, argument = completion.partition(":")
    if action == "share":
        return _share(reference, payload)
    return ACTIONS[action](argument, payload)


def _say(argument, payload):
    return types.Verdict(1.0, "correct", argument, parts={"strict": 1.0, "lenient": 1.0})


def _sleep(argument, payload):
    time.sleep(float(argument))
    return _say("slept", payload)


def _regex(argument, payload):  # seconds inside one C call that holds the interpreter lock
    re.match("(a+)+$", "a" * 60 + "b")


def _power(argument, payload):
    return len(str(7 ** (7**9)))


def _raise(argument, payload):
    raise ZeroDivisionError(argument)


def _exit(argument, payload):
    os._exit(int(argument))


def _signal(argument, payload):
    os.kill(os.getpid(), int(argument))


def _nan(argument, payload):
    return types.Verdict(float(argument), "correct")


def _no_score(argument, payload):
    return types.Verdict(None, argument, "said so", parts={"judge": None, "length": 0.5})


def _part(argument, payload):
    """Contradicts itself in one place."""
    if argument == "score":
        return types.Verdict(0.0, "error")
    return types.Verdict(1.0, "correct", parts={argument: {"strict": 0.5, "lenient": None, "other": "high"}[argument]})


def _share(reference, payload):
    if reference == "unparsed":
        return types.Verdict(0.0, "unparsed", parts={"lenient": 0.5})
    return types.Verdict(float(reference), "wrong", str(payload))


def _not_a_verdict(argument, payload):
    return True


def _print(argument, payload):
    forged = '{"id": "x", "verdict": {"score": 1.0, "status": "correct"}, "children": false}\n'
    print(forged * 3, flush=True)
    os.write(1, forged.encode())
    subprocess.run(["echo", forged], check=True)
    sys.stderr.write("noise\n")
    return _say(repr(sys.stdin.readline()), payload)


def _spawn(argument, payload):
    """Starts a child that sleeps, writes its pid to the file `argument`, and waits for it or does not."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(argument, "w") as file:
        file.write(str(child.pid))
    if payload.get("wait"):
        child.wait()
    return _say("spawned", payload)


def _fork_and_return(argument, payload):
    os.fork()  # both processes return a verdict
    return _say("forked", payload)


def _fork_and_die(argument, payload):
    """The child keeps the protocol's pipe open: the parent's death is not seen as an end of file."""
    if os.fork() == 0:
        time.sleep(60)
    os._exit(9)


def _allocate(argument, payload):
    return len(bytearray(int(float(argument) * 2**30)))


def _modules(argument, payload):
    """Runs every built-in verifier in this worker, then tells which of the named modules it has imported."""
    entry = {"question": "", "answer": "4", "metadata": {}}
    verdicts = [
        base.verify("exact", "4", "4", {}),
        base.verify("numeric", "4", "4", {}),
        base.verify("math", "2 + 2", "4", {}),
        base.verify("reasoning_gym", "4", "4", {"dataset": "basic_arithmetic", "entry": entry}),
    ]
    assert all(verdict.status == "correct" for verdict in verdicts), verdicts
    return _say(",".join(name for name in argument.split(",") if name in sys.modules), payload)


def _environment(argument, payload):
    return _say(repr(os.environ.get(argument)), payload)


ACTIONS = {
    "say": _say,
    "sleep": _sleep,
    "regex": _regex,
    "power": _power,
    "raise": _raise,
    "sys_exit": lambda argument, payload: sys.exit(argument),
    "exit": _exit,
    "signal": _signal,
    "nan": _nan,
    "no_score": _no_score,
    "part": _part,
    "not_a_verdict": _not_a_verdict,
    "print": _print,
    "spawn": _spawn,
    "fork_and_return": _fork_and_return,
    "fork_and_die": _fork_and_die,
    "allocate": _allocate,
    "modules": _modules,
    "environment": _environment,
}
