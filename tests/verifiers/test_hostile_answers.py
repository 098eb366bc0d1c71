"""The corpus of hostile answers earns nothing, takes no time, changes no file and keeps no memory."""

import os
import time

import pytest

from rlvr import types
from rlvr.verifiers import base, pool
from tests.verifiers.hostile_answers import CASES

ANSWER_VERIFIERS = ["math", "numeric", "exact", "choice", "f1"]
LIMIT_S = 5.0  # of one item; the slowest takes a third of a second on an idle core
BY_NAME = {name: (completion, gold) for name, completion, gold in CASES}
SHORT = {name: case for name, case in BY_NAME.items() if len(case[0]) < 200_000}


def gold_for(verifier, gold):
    """A gold answer that the verifier can use."""
    if verifier == "choice":
        return "C"
    return "42" if verifier == "numeric" else gold


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(CASES) == len(BY_NAME) >= 200


@pytest.fixture(scope="module", autouse=True)
def warm():
    base.warm_up("math")


@pytest.mark.parametrize("name", BY_NAME)
def test_no_reward_and_no_hang(name):
    """In this process: nothing here relies on being killed."""
    completion, gold = BY_NAME[name]
    for verifier in ANSWER_VERIFIERS:
        began = time.process_time()
        verdict = base.verify(verifier, completion, gold_for(verifier, gold), {})
        accepted = ("wrong", "unparsed", *(["correct"] if verifier == "f1" else []))  # f1 knows words, not order
        assert verdict.status in accepted, (verifier, verdict)
        assert verdict.score == 0 or verifier == "f1", (verifier, verdict)
        assert time.process_time() - began < LIMIT_S, verifier


def test_formats_that_were_asked_for_are_no_weaker():
    for name, (completion, gold) in SHORT.items():
        for answer_format in ("boxed", "tag", "hash", "bare"):
            verdict = base.verify("math", completion, gold, {"answer_format": answer_format})
            assert verdict.score == 0, (name, answer_format, verdict)


def test_no_file_is_changed_and_no_memory_kept(tmp_path, monkeypatch):
    """In a worker of the pool, with a canary in its folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "canary").write_text("unharmed")
    tasks = [types.Task(0, name, "", gold, "math") for name, (_, gold) in SHORT.items()]
    with pool.VerifierPool(pool.VerifierConfig(workers=1, timeout_s=LIMIT_S), ["math"]) as verifiers:
        pid = verifiers._workers[0]._process.pid
        resident = []
        for _ in range(3):
            futures = [verifiers.submit(task, BY_NAME[task.task][0]) for task in tasks]
            verdicts = [future.result(120) for future in futures]
            assert {verdict.status for verdict in verdicts} <= {"wrong", "unparsed"}
            with open(f"/proc/{pid}/statm") as file:
                resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        assert verifiers._workers[0]._process.pid == pid, "no worker was replaced"
    assert resident[2] - resident[0] < 30 * 2**20, resident
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]
    assert (tmp_path / "canary").read_text() == "unharmed"
