"""The visible tests of a code task as pairs of input and expected output, as far as they can be read as values."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlvr.verifiers.literals import MISSING, parse_program, read_literal, read_names

_CANDIDATE = "candidate"  # what HumanEval's check() calls the function under test
_EQUAL_METHODS = ("assertEqual", "assertEquals", "assertAlmostEqual", "assertIs", "assertListEqual", "assertDictEqual")
_TRUTH_METHODS = {"assertTrue": True, "assertFalse": False}
_WRAPPERS = ("set", "frozenset", "sorted", "list", "tuple", "abs", "str", "len")


class Case(NamedTuple):
    """One visible test.

    Attributes:
        arguments: of the call, positional and then keyword; for standard input, one text.
        expected: the literal that the result is compared with, or `MISSING`.
    """

    arguments: tuple[Any, ...]
    expected: Any


def read_cases(tests: str | Sequence[Any], callees: Collection[str]) -> list[Case]:
    """Returns the cases whose arguments are literals, in order; others, and text that is no Python, give none.

    Args:
        tests: as in the `code` verifier's payload: asserts, `check(candidate)` or unittest as text, a list of such
            texts, or a list of {"input", "output"} for standard input.
        callees: names of the functions under test; "candidate" always is one.
    """
    if isinstance(tests, str):
        return list(_iter_text_cases(tests, {*callees, _CANDIDATE}))
    cases: list[Case] = []
    for test in tests:
        if isinstance(test, str):
            cases += _iter_text_cases(test, {*callees, _CANDIDATE})
        elif isinstance(test, Mapping) and "input" in test and "output" in test:
            cases.append(Case((str(test["input"]),), str(test["output"])))
    return cases


def is_standard_input(tests: str | Sequence[Any]) -> bool:
    """Whether the tests are cases for standard input."""
    return not isinstance(tests, str) and any(isinstance(test, Mapping) for test in tests)


def parse_tests(tests: str) -> ast.Module | None:
    """Returns the syntax tree of a text of tests, or None if it is no Python or too deep to be read."""
    try:
        return parse_program(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _iter_text_cases(text: str, callees: Collection[str]) -> Iterator[Case]:
    tree = parse_tests(text)
    if tree is None:
        return
    names = read_names(tree)
    for node in ast.walk(tree):
        found: tuple[ast.expr, Any] | None = None
        if isinstance(node, ast.Assert):
            found = _read_assertion(node.test, callees, names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = _read_method(node.func.attr, node.args, callees, names)
        if found is None:
            continue
        call = find_call(found[0], callees)
        if call is not None and (arguments := read_arguments(call, names)) is not None:
            yield Case(arguments, found[1])


def _read_assertion(test: ast.expr, callees: Collection[str], names: Mapping[str, Any]) -> tuple[ast.expr, Any] | None:
    """Returns (the expression that holds the call, the expected literal) of an assert's condition."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand, False
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        if isinstance(test.ops[0], ast.Eq | ast.Is):
            return _pair(left, right, callees, names)
        if isinstance(test.ops[0], ast.Lt | ast.LtE):  # abs(f(x) - y) < tolerance
            difference = left.args[0] if isinstance(left, ast.Call) and len(left.args) == 1 else left
            if isinstance(difference, ast.BinOp) and isinstance(difference.op, ast.Sub):
                return _pair(difference.left, difference.right, callees, names)
        return None
    if isinstance(test, ast.Call) and len(test.args) >= 2 and not _is_callee(test.func, callees):  # isclose(f(x), y)
        return _pair(test.args[0], test.args[1], callees, names)
    return test, True


def _read_method(
    method: str, arguments: Sequence[ast.expr], callees: Collection[str], names: Mapping[str, Any]
) -> tuple[ast.expr, Any] | None:
    """The same for an assertion of unittest."""
    if method in _EQUAL_METHODS and len(arguments) >= 2:
        return _pair(arguments[0], arguments[1], callees, names)
    if method in _TRUTH_METHODS and arguments:
        return arguments[0], _TRUTH_METHODS[method]
    return None


def _pair(
    left: ast.expr, right: ast.expr, callees: Collection[str], names: Mapping[str, Any]
) -> tuple[ast.expr, Any] | None:
    if find_call(left, callees) is not None:
        return left, read_literal(right, names)
    return (right, read_literal(left, names)) if find_call(right, callees) is not None else None


def find_call(node: ast.expr, callees: Collection[str]) -> ast.Call | None:
    """Returns the call of a function under test, bare or inside set(), sorted() and their like; None if neither."""
    while isinstance(node, ast.Call):
        if _is_callee(node.func, callees):
            return node
        wraps = isinstance(node.func, ast.Name) and node.func.id in _WRAPPERS and len(node.args) == 1
        if not wraps:
            return None
        node = node.args[0]
    return None


def _is_callee(function: ast.expr, callees: Collection[str]) -> bool:
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", None)
    return name in callees


def read_arguments(call: ast.Call, names: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Returns the arguments of a call, or None unless all are literals."""
    nodes = (*call.args, *(keyword.value for keyword in call.keywords))
    values = tuple(read_literal(node, names) for node in nodes)
    return None if any(value is MISSING for value in values) else values


def read_test_names(tests: str | Sequence[Any]) -> frozenset[str]:
    """Returns the names that tests use and do not define, those of the functions under test included."""
    texts = [tests] if isinstance(tests, str) else [test for test in tests if isinstance(test, str)]
    trees = [tree for text in texts if (tree := parse_tests(text)) is not None]
    names = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    return frozenset({node.id for node in names} - stored)
