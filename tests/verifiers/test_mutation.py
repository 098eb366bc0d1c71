"""Fresh tests from visible ones: new inputs, right outputs, the same for the same seed."""

import ast
import contextlib
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlvr import errors
from rlvr.verifiers import cases, literals, mutation
from rlvr.verifiers.literals import freeze

ROOT = Path(__file__).resolve().parents[2]
TURN = "assert turn('abcd') == 'dcba'\nassert turn('hello') == 'olleh'"


def turn(text):
    return text[::-1]


def holds(tests, **names):
    for test in tests:
        exec(test, dict(names))


def test_fresh_tests_are_new_right_and_fail_what_only_knows_the_visible_ones():
    tests = mutation.mutate_tests(TURN, turn, "turn", count=20, seed=3)
    assert len(tests) == len(set(tests)) == 20
    shown = {case.arguments for case in cases.read_cases(TURN, ["turn"])}
    inputs = [case.arguments for case in cases.read_cases("\n".join(tests), ["turn"])]
    assert len(set(inputs)) == 20 and not shown & set(inputs)
    letters = set("abcdhello")
    assert all(set(text) <= letters for (text,) in inputs)
    holds(tests, turn=turn)
    table = {"abcd": "dcba", "hello": "olleh"}
    for test in tests:
        with pytest.raises((AssertionError, KeyError)):
            holds([test], turn=table.__getitem__)


def test_the_seed_decides_and_nothing_else():
    first = mutation.mutate_tests(TURN, turn, "turn", count=8, seed=1)
    assert first == mutation.mutate_tests(TURN, turn, "turn", count=8, seed=1)
    assert first[:3] == mutation.mutate_tests(TURN, turn, "turn", count=3, seed=1)
    assert first != mutation.mutate_tests(TURN, turn, "turn", count=8, seed=2)
    code = (
        "from rlvr.verifiers.mutation import mutate_tests\n"
        "print(mutate_tests('assert f({\\'a\\', \\'b\\', \\'c\\'}) == 3', len, 'f', count=6))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, cwd=ROOT, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("tests", "reference", "inside"),
    [
        ("assert f(3) == 9\nassert f(10) == 100", lambda x: x * x, lambda a: type(a[0]) is int and 1 <= a[0] <= 15),
        ("assert f(-3) == 9\nassert f(-8) == 64", lambda x: x * x, lambda a: -12 <= a[0] <= 0),
        ("assert f(0.5) == 1.0", lambda x: 2 * x, lambda a: type(a[0]) is float and a[0] >= 0),
        ("assert f([1, 2]) == 3\nassert f([]) == 0", sum, lambda a: all(type(x) is int for x in a[0])),
        ("assert f((1, 'a')) == 2", len, lambda a: type(a[0]) is tuple),
        ("assert f({'k': 1}) == 1", len, lambda a: type(a[0]) is dict),
        ("assert f({1, 2}) == 2", len, lambda a: type(a[0]) is set),
        ("assert f(True, 2) == 3\nassert f(False, 5) == 5", lambda a, b: a + b, lambda a: type(a[0]) is bool),
        ("assert f(None, 'ab') == 'ab'", lambda a, b: b, lambda a: a[0] is None),
        ("assert f([[1, 2], [3]]) == 2", len, lambda a: all(type(x) is list for x in a[0])),
    ],
)
def test_inputs_keep_their_kind(tests, reference, inside):
    fresh = mutation.mutate_tests(tests, reference, "f", count=12)
    found = cases.read_cases("\n".join(fresh), ["f"])
    assert len(found) == len(fresh) >= 2
    assert all(inside(case.arguments) for case in found)
    holds(fresh, f=reference)


def test_literals_are_written_as_python_reads_them():
    value = [{3, 1, 2}, (), (1,), {"k": {b"b"}, "a": ([],)}, frozenset({2, 1}), set(), frozenset(), None, -0.5, True]
    written = literals.write_literal(value)
    assert eval(written) == value and written.startswith(
        "[{1, 2, 3}, (), (1,), {'k': {b'b'}, 'a': ([],)}, frozenset({1"
    )


def test_inputs_that_the_reference_refuses_or_changes_are_no_trouble():
    def odd(n):
        if n % 2 == 0:
            raise ValueError
        return n

    fresh = cases.read_cases("\n".join(mutation.mutate_tests("assert f(99) == 99", odd, "f", count=9)), ["f"])
    assert len(fresh) == 9 and all(case.arguments[0] % 2 == 1 for case in fresh)

    def pop_all(items):
        total = 0
        while items:
            total += items.pop()
        return total

    tests = mutation.mutate_tests("assert f([1, 2, 3]) == 6", pop_all, "f", count=5)
    holds(tests, f=sum)
    never = mutation.mutate_tests("assert f(1) == 2", lambda n: object(), "f", count=5)
    assert never == [] == mutation.mutate_tests("assert f() == 2", lambda: 2, "f", count=5)


@pytest.mark.parametrize("tests", ["", "assert g(1) == 2", "assert f(x) == 2", "assert f(1) == g(2)", []])
def test_tests_that_cannot_be_read_are_refused(tests):
    with pytest.raises(errors.DataError, match="no test compares a call of entry_point='f'"):
        mutation.mutate_tests(tests, len, "f", count=1)


def test_shared_programs_get_gold_tests_that_their_tables_fail(shared):
    """Every tenth MBPP task: fresh tests for nearly all; the reference passes them, a table of the visible ones not."""
    with gzip.open(shared / "mbpp/sanitized.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][::10]
    made = 0
    for row in rows:
        space: dict = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec("\n".join([*row["test_imports"], row["code"]]), space)
        used = cases.read_test_names("\n".join(row["test_list"]))
        defined = [node.name for node in ast.parse(row["code"]).body if isinstance(node, ast.FunctionDef)]
        name = next(name for name in defined if name in used)
        try:
            tests = mutation.mutate_tests(row["test_list"], space[name], name, count=5)
        except errors.DataError:
            continue
        holds(tests, **{name: space[name]})
        visible = cases.read_cases(row["test_list"], [name])
        table = {freeze(case.arguments): case.expected for case in visible}
        made += len(tests) == 5
        for test in tests:
            with pytest.raises((AssertionError, KeyError)):
                holds([test], **{name: lambda *a, table=table: table[freeze(a)]})
    assert made >= 0.85 * len(rows)
