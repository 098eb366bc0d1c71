"""Where a program answers visible tests by their text: inputs that it compares with, looked up or listed beside
their expected outputs, and outputs that it returns whatever the input."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rlvr.verifiers.cases import Case
from rlvr.verifiers.literals import MISSING, freeze, iter_values, read_literal, weigh

# Bits (see `literals.weigh`) below which a value stands in a program by chance: 0, "a", [1].
_TELLING = 8.0
# Bits of the matched pairs of input and output above which they are no coincidence of base cases.
_CERTAIN = 16.0
_MAX_SEQUENCES = 200  # literal sequences of a program that are compared with one another

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Entry(NamedTuple):
    """A place in a program that gives an output for an input.

    Attributes:
        keys: literals that the input is compared with.
        outcomes: literals that are then given.
        table: the value of the container that this is a part of, or `MISSING`.
        certain: whether this is surely what the place is for: two lists side by side may have nothing to do with
            each other.
    """

    keys: tuple[Any, ...]
    outcomes: tuple[Any, ...]
    table: Any = MISSING
    certain: bool = True


def find_special_cases(tree: ast.Module, cases: Sequence[Case], names: Mapping[str, Any]) -> list[Case]:
    """Returns the visible cases that the program answers by their text; empty where it may be chance.

    It is no chance when the pairs of input and output together are too improbable (half of that is enough where every
    case is answered), and they are most of what the program's tables and comparisons hold: a table of all months is a
    table, whichever month is tested.
    """
    known = [case for case in cases if case.expected is not MISSING]
    if not known:
        return []
    by_key = _index_keys(known)
    values = {freeze(value) for case in known for value in iter_values((case.arguments, case.expected))}
    matched: set[int] = set()
    matched_keys: set[Hashable] = set()
    other_keys: set[Hashable] = set()
    for entry in iter_entries(tree, names):
        keys = {freeze(key) for key in entry.keys}
        indices = _match(keys, {_freeze_output(outcome) for outcome in entry.outcomes}, known, by_key)
        matched |= indices
        matched_keys |= {key for key in keys if by_key.get(key, set()) & indices}
        matched_keys |= keys & {freeze(argument) for i in indices for argument in known[i].arguments}
        if entry.certain and entry.outcomes and freeze(entry.table) not in values:
            other_keys |= {freeze(key) for key in entry.keys if weigh(key) >= 2}
    surprise = sum(weigh(known[i].arguments) + weigh(known[i].expected) - 1 for i in matched)
    enough = _CERTAIN if len(matched) < max(3, len(known)) else _CERTAIN / 2
    if surprise < enough or len(matched_keys) <= len(other_keys - matched_keys):
        return []
    return [known[i] for i in sorted(matched)]


def _index_keys(cases: Sequence[Case]) -> dict[Hashable, set[int]]:
    """Returns which cases a literal stands for: all arguments, the only one, or one that is telling, or their text."""
    index: dict[Hashable, set[int]] = {}
    for i, case in enumerate(cases):
        keys: list[Any] = [case.arguments]
        for argument in case.arguments:
            if len(case.arguments) == 1 or weigh(argument) >= _TELLING:
                keys.append(argument)
                if weigh(argument) >= _TELLING:
                    keys += [repr(argument), str(argument)]
                if isinstance(argument, str):
                    keys.append(argument.strip())
        for key in keys:
            index.setdefault(freeze(key), set()).add(i)
    return index


def _match(
    keys: set[Hashable], outcomes: set[Hashable], cases: Sequence[Case], by_key: Mapping[Hashable, set[int]]
) -> set[int]:
    """Returns the cases whose input is among the keys and whose output is among the outcomes."""
    if not keys or not outcomes:
        return set()
    candidates = set().union(*(by_key.get(key, ()) for key in keys))
    if len(keys) > 1:  # a == 1 and b == 2
        candidates |= {
            i for i, case in enumerate(cases) if len(case.arguments) > 1 and keys >= set(map(freeze, case.arguments))
        }
    return {i for i in candidates if _freeze_output(cases[i].expected) in outcomes}


def _freeze_output(value: Any) -> Hashable:
    return freeze(value.strip() if isinstance(value, str) else value)


def iter_entries(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[Entry]:
    """Yields every place of a program that gives a literal for a literal."""
    sequences: list[Sequence[Any]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            yield from _branches(node.test, _outcomes(node.body, names), _outcomes(node.orelse, names), names)
        elif isinstance(node, ast.IfExp):
            yield from _branches(node.test, _values([node.body], names), _values([node.orelse], names), names)
        elif isinstance(node, ast.Match):
            for option in node.cases:
                yield Entry(_compared(option.pattern, names), _outcomes(option.body, names))
        elif isinstance(node, ast.Dict):
            table = read_literal(node, names)
            for key, value in zip(node.keys, node.values, strict=True):
                given = value.body if isinstance(value, ast.Lambda) else value
                yield Entry(_values([key], names), _values([given], names), table)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            yield Entry(_values([node.targets[0].slice], names), _values([node.value], names))
        elif isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            compared = [value for value in node.values if isinstance(value, ast.Compare)]
            keys = tuple(key for value in compared for key in _compared(value, names))
            yield Entry(keys, _values(node.values, names))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):  # "cba" * (s == "abc")
            for truth, given in ((node.left, node.right), (node.right, node.left)):
                if isinstance(truth, ast.Compare):
                    yield Entry(_compared(truth, names), _values([given], names))
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Compare):  # ("no", "cba")[s == "abc"]
            held = read_literal(node.value, names)
            yield Entry(_compared(node.slice, names), tuple(held) if isinstance(held, list | tuple) else ())
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 2:
            yield Entry(_values(node.args[:1], names), _values(node.args[1:], names))  # s.replace("abc", "cba")
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            pairs = [item.elts for item in node.elts if isinstance(item, ast.List | ast.Tuple) and len(item.elts) == 2]
            if len(pairs) == len(node.elts):
                table = read_literal(node, names)
                yield from (Entry(_values([key], names), _values([value], names), table) for key, value in pairs)
            items = [read_literal(item, names) for item in node.elts]
            if len(items) > 1 and len(sequences) < _MAX_SEQUENCES and any(item is not MISSING for item in items):
                sequences.append(items)
    yield from _parallel_entries(sequences)


def _parallel_entries(sequences: Sequence[Sequence[Any]]) -> Iterator[Entry]:
    """Yields what stands at the same place of two sequences of equal length: inputs and their outputs."""
    for left, right in itertools.permutations(sequences, 2):
        if len(left) == len(right):
            pairs = [(a, b) for a, b in zip(left, right, strict=True) if a is not MISSING and b is not MISSING]
            # Two short texts may well stand in two lists: the pair must tell on its own.
            yield from (Entry((a,), (b,), certain=False) for a, b in pairs if weigh(a) >= _TELLING)


def _branches(
    test: ast.expr, then: tuple[Any, ...], otherwise: tuple[Any, ...], names: Mapping[str, Any]
) -> Iterator[Entry]:
    equal, unequal = _read_condition(test, names)
    yield Entry(equal, then)
    yield Entry(unequal, otherwise)


def _read_condition(test: ast.AST, names: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Returns the literals that a condition wants something to be equal, and unequal, to."""
    equal: list[Any] = []
    unequal: list[Any] = []
    for node in ast.walk(test):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for operator, left, right in zip(node.ops, operands[:-1], operands[1:], strict=True):
                literals = _values([left, right], names)
                if isinstance(operator, ast.In) and (held := read_literal(right, names)) is not MISSING:
                    equal += list(held) if isinstance(held, list | tuple | set | frozenset | dict) else []
                elif isinstance(operator, ast.Eq | ast.Is):
                    equal += literals
                elif isinstance(operator, ast.NotEq | ast.IsNot):
                    unequal += literals
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith", "__eq__", "__contains__", "fullmatch", "match"):
                equal += _values(node.args, names)
    return tuple(equal), tuple(unequal)


def _compared(node: ast.AST, names: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the literals that are compared with in an expression, or stand in a pattern of match."""
    if isinstance(node, ast.pattern):
        parts = [part.value for part in ast.walk(node) if isinstance(part, ast.MatchValue)]
        whole = _pattern_value(node, names)
        return (*_values(parts, names), *(() if whole is MISSING else (whole,)))
    return _read_condition(node, names)[0]


def _pattern_value(pattern: ast.pattern, names: Mapping[str, Any], depth: int = 0) -> Any:
    if isinstance(pattern, ast.MatchValue):
        return read_literal(pattern.value, names)
    if isinstance(pattern, ast.MatchSequence) and depth < 20:
        items = [_pattern_value(item, names, depth + 1) for item in pattern.patterns]
        return MISSING if any(item is MISSING for item in items) else items
    return MISSING


def _outcomes(body: Sequence[ast.stmt], names: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the literals that a block gives: returned, assigned, yielded or printed, not those of blocks in it."""
    given: list[ast.expr | None] = []
    for statement in body:
        if isinstance(statement, ast.Return | ast.Assign | ast.AnnAssign | ast.AugAssign):
            given.append(statement.value)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Yield):
            given.append(statement.value.value)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            given += statement.value.args
    return _values(given, names)


def _values(nodes: Sequence[ast.expr | None], names: Mapping[str, Any]) -> tuple[Any, ...]:
    values = (read_literal(node, names) for node in nodes if node is not None)
    return tuple(value for value in values if value is not MISSING)


def finds_constant_output(
    tree: ast.Module, cases: Sequence[Case], callees: Collection[str], names: Mapping[str, Any], standard_input: bool
) -> bool:
    """Whether the program gives expected outputs without looking at the input.

    So it is for a function under test that uses none of its parameters and returns a literal that is expected
    somewhere, and for one that returns nothing but literals, each the telling output of one of three or more cases
    (fewer may be labels, such as "even" and "odd"); for standard input, for a program that reads none and prints an
    expected text.
    """
    expected = {_freeze_output(case.expected) for case in cases if case.expected is not MISSING}
    if not expected:
        return False
    if standard_input:
        return not _reads_input(tree) and any(_freeze_output(value) in expected for value in _printed(tree, names))
    if not any(case.arguments for case in cases):
        return False  # a function without arguments is a constant by right
    for name, function in iter_functions(tree):
        if name in callees:
            returned = _returned(function, names)
            literals = {_freeze_output(value) for value in returned if value is not MISSING}
            if literals & expected and not _uses_parameters(function):
                return True
            telling = all(value is not MISSING and weigh(value) >= _TELLING for value in returned)
            distinct = len(expected) == len({freeze(case.arguments) for case in cases}) >= 3
            if returned and telling and distinct and literals == expected:
                return True
    return False


def iter_functions(tree: ast.AST) -> Iterator[tuple[str, Function]]:
    """Yields every function of a program that has a name, with it: def, and a lambda that is assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value


def _returned(function: Function, names: Mapping[str, Any]) -> list[Any]:
    """Returns what a function returns, in either branch of a conditional, each a literal or `MISSING`."""
    if isinstance(function, ast.Lambda):
        pending: list[ast.expr | None] = [function.body]
    else:
        pending = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    values = []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.IfExp):
            pending += [node.body, node.orelse]
        else:
            values.append(read_literal(node, names))
    return values


def _uses_parameters(function: Function) -> bool:
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    parameters = {argument.arg for argument in every if argument is not None} - {"self", "cls"}
    return any(isinstance(node, ast.Name) and node.id in parameters for node in ast.walk(function))


def _reads_input(tree: ast.AST) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id in ("input", "open"))
        or (isinstance(node, ast.Attribute) and node.attr in ("stdin", "read", "fileinput"))
        or (isinstance(node, ast.ImportFrom | ast.Import) and any(a.name in ("stdin", "fileinput") for a in node.names))
        for node in ast.walk(tree)
    )


def _printed(tree: ast.AST, names: Mapping[str, Any]) -> Iterator[Any]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) == 1:
            value = read_literal(node.args[0], names)
            if value is not MISSING:
                yield str(value)
