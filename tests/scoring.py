"""Verifiers of the tests' own tasks, loaded by name in worker processes; no test in here."""

import time

from rlvr import types


def share_of_digits(completion, reference, payload):
    """The share of the completion's characters that are digits: a reward that even a random policy gets some of."""
    score = sum(c in "0123456789" for c in completion) / max(len(completion), 1)
    return types.Verdict(score, "correct" if score >= 1 else "wrong", parts={"strict": score, "lenient": score})


def misbehave(completion, reference, payload):
    """Does what the reference says, by which a task set can hold every kind of failure."""
    if reference == "raise":
        raise ZeroDivisionError("the verifier's own mistake")
    if reference == "hang":
        time.sleep(60)
    if reference == "nan":
        return types.Verdict(float("nan"), "correct")
    return share_of_digits(completion, reference, payload)
