"""Rows that nobody meant, over all verifiers: always a verdict, in time, from workers that do not grow."""

import collections
import json
import math
import os
import pathlib
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from rlvr import types
from rlvr.verifiers import base, rows, rubric
from rlvr.verifiers.pool import VerifierConfig, VerifierPool
from tests.verifiers import fuzz

LIMIT = 2.0
SMALL = ("exact", "numeric", "choice", "f1", "format", "length", "repetition", "regex", "tool_call", "json_schema")
PAYLOADS = {
    "length": {"max": 20, "unit": "characters"},
    "regex": {"pattern": "[0-9]+$"},
    "tool_call": {
        "functions": [{"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}],
        "ground_truth": [{"f": {"a": [1]}}],
    },
    "json_schema": {"schema": {"type": "object"}},
}


def check(name, verdict):
    assert verdict.status in types.STATUSES
    assert (verdict.score is None) == (verdict.parts["strict"] is None) == (verdict.status == "error"), (name, verdict)
    assert verdict.score is None or (math.isfinite(verdict.score) and verdict.parts["strict"] == verdict.score)
    assert verdict.score is None or verdict.parts["lenient"] >= verdict.score, (name, verdict)
    assert len(verdict.detail) <= 500


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.sampled_from(SMALL), st.text(max_size=60), st.sampled_from(["5", "B", "the cat", "½"]))
def test_any_text_has_a_verdict(name, completion, reference):
    verdict = base.verify(name, completion, reference, PAYLOADS.get(name, {}))
    check(name, verdict)
    assert verdict.status != "error" or "raised DataError" in verdict.detail, verdict  # the reference is no number


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(
    st.one_of(st.text(), st.recursive(st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
)
def test_any_reply_of_a_judge_is_grades_or_refused(reply):
    text = reply if isinstance(reply, str) else json.dumps(reply)
    try:
        grades = rubric.parse_grades(text, 2)
    except ValueError:
        return
    assert len(grades) == 2 and all(0 <= grade <= 10 for grade in grades)


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(st.binary(max_size=80) | st.dictionaries(st.text(max_size=12), st.none() | st.text() | st.floats()))
def test_any_line_is_a_row_or_refused(line):
    line = line if isinstance(line, bytes) else json.dumps(line).encode()
    try:
        item = rows.parse_item(line, "numeric")
    except rows.errors.DataError:
        return
    assert isinstance(item.completion, str) and isinstance(item.task.answer, str)


def resident_mb(pids):
    """Returns the resident memory of the processes and of all their descendants, MiB each."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    tree = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    sizes = {}
    for pid in tree:
        try:
            sizes[pid] = (
                int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sizes


def run(count, seed):
    """Puts `count` rows through a pool; returns what was seen of them."""
    statuses, slowest, began = collections.Counter(), (0.0, None), time.monotonic()
    memory = []
    with VerifierPool(VerifierConfig(workers=2, timeout_s=LIMIT), sorted(base.VERIFIERS)) as pool:
        pending = collections.deque()
        for number in range(count + 64):
            if number < count:
                name, completion, reference, payload = fuzz.make_row(number, seed)
                task = types.Task(0, "fuzz", "", reference, name, payload=payload)
                pending.append((number, name, pool.submit(task, completion, 7)))
            if number >= 64 or number >= count:
                if not pending:
                    break
                at, name, future = pending.popleft()
                verdict = future.result(600)
                check((at, name), verdict)
                statuses[name, verdict.status] += 1
                slowest = max(slowest, (verdict.seconds, (at, name)))
            if number % max(count // 50, 1) == 0:
                sizes = resident_mb([os.getpid()])
                memory.append((sizes[os.getpid()], sum(sizes.values())))
        while pending:
            at, name, future = pending.popleft()
            check((at, name), future.result(600))
            statuses[name, future.result().status] += 1
    return statuses, slowest, memory, time.monotonic() - began


@pytest.mark.parametrize("count", [400, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(14_400)])])
def test_rows_that_nobody_meant(count):
    statuses, slowest, memory, wall = run(count, seed=count)
    totals = collections.Counter()
    for (_, status), number in statuses.items():
        totals[status] += number
    print(f"\n{count} rows in {wall:.0f} s; slowest {slowest}; {dict(totals)}")
    print("parent and all processes, MiB:", [tuple(round(x) for x in pair) for pair in memory])
    for name in sorted(base.VERIFIERS):
        print(name, {status: number for (other, status), number in sorted(statuses.items()) if other == name})
    assert sum(totals.values()) == count
    assert slowest[0] < LIMIT + 1
    assert {name for name, _ in statuses} == set(base.VERIFIERS)
    assert totals["correct"] and totals["wrong"] and totals["unparsed"] and totals["error"]
    quarter = max(len(memory) // 4, 1)
    early, late = (
        sum(parent for parent, _ in part) / quarter for part in (memory[quarter:][:quarter], memory[-quarter:])
    )
    assert late < early + 20, memory  # the parent
    early, late = (
        sum(every for _, every in part) / quarter for part in (memory[quarter:][:quarter], memory[-quarter:])
    )
    assert late < 1.5 * early + 50, memory  # the parent and whatever workers there are at that moment
