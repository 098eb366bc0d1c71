"""Stages open by accuracy or by steps."""

import pytest

from rlvr import errors
from rlvr.algo.stages import advance, check_stages, is_open, start

STAGES = ("a", "b", "c")


def test_a_run_through():
    state, seen = start(), []
    for known in (None, 0.7, 0.8, 0.1, 0.1, 0.1, 1.0, 1.0):
        state = advance(STAGES, state, known, accuracy=0.8, steps=3)
        seen.append((state["stage"], state["steps"]))
    assert seen == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert advance(STAGES, start(), 1.0, accuracy=0.0, steps=2)["stage"] == 0
    assert advance(STAGES, {"stage": 0, "steps": 99}, 0.5, accuracy=0.8, steps=0)["stage"] == 0


def test_what_is_open():
    for stage, wanted in ((0, "xa"), (1, "xab"), (2, "xabc")):
        assert [label for label in "xabc" if is_open(label, STAGES, {"stage": stage, "steps": 0})] == list(wanted)


def test_refused():
    check_stages(STAGES, ["a", "b", "c", "d"])
    with pytest.raises(errors.ConfigError, match=r"stages\[1\]='cc' is not known; did you mean 'c'"):
        check_stages(("a", "cc"), ["a", "b", "c"])
    with pytest.raises(errors.ConfigError, match=r"stages=\('a', 'b', 'a'\) names 'a' twice"):
        check_stages(("a", "b", "a"), ["a", "b"])
