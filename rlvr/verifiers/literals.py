"""Values that stand in a program as literals: read off the syntax tree, made comparable, and weighed."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Final

_MAX_DEPTH = 40  # deeper literals are not read
_MAX_ITEMS = 10_000  # items of one value, and characters of a text put together from pieces


class Missing:
    """The type of `MISSING`: what is not a literal. (None is one.)"""


MISSING: Final = Missing()

_CONSTRUCTORS: Mapping[str, type] = {"set": set, "frozenset": frozenset, "tuple": tuple, "list": list, "dict": dict}


def parse_program(text: str) -> ast.Module:
    """Returns the syntax tree of a program, without the warnings that its author would get.

    Raises:
        SyntaxError, ValueError: it is no Python (ValueError for a NUL byte or a lone surrogate).
        RecursionError, MemoryError: it is too deeply nested to be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def read_literal(node: ast.AST | None, names: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """Returns the value that an expression has whatever the program does, or `MISSING`.

    Reads constants, containers of them, signs, sums (also of texts, put together from pieces), f-strings without
    fields, `set((1, 2))` and its like, and names.

    Args:
        node: the expression.
        names: values of names; see `read_names`.
        depth: how deep the caller is inside a literal.
    """
    if depth > _MAX_DEPTH or node is None:
        return MISSING
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return (names or {}).get(node.id, MISSING)
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return _read_items(node, names, depth)
    if isinstance(node, ast.Dict):
        return _read_dict(node, names, depth)
    if isinstance(node, ast.UnaryOp):
        value = read_literal(node.operand, names, depth + 1)
        return -value if isinstance(node.op, ast.USub) and _is_number(value) else MISSING
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _add(read_literal(node.left, names, depth + 1), read_literal(node.right, names, depth + 1))
    if isinstance(node, ast.JoinedStr):
        parts = [read_literal(part, names, depth + 1) for part in node.values]
        return "".join(parts) if all(isinstance(part, str) for part in parts) else MISSING
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and len(node.args) <= 1:
        return _construct(_CONSTRUCTORS.get(node.func.id), [read_literal(a, names, depth + 1) for a in node.args])
    return MISSING


def _read_items(node: ast.List | ast.Tuple | ast.Set, names: Mapping[str, Any] | None, depth: int) -> Any:
    items = [read_literal(item, names, depth + 1) for item in node.elts[:_MAX_ITEMS]]
    if any(item is MISSING for item in items):
        return MISSING
    if isinstance(node, ast.Set):
        return _construct(set, [items])
    return items if isinstance(node, ast.List) else tuple(items)


def _read_dict(node: ast.Dict, names: Mapping[str, Any] | None, depth: int) -> Any:
    keys = [read_literal(key, names, depth + 1) for key in node.keys[:_MAX_ITEMS]]  # a key of None is **mapping
    values = [read_literal(value, names, depth + 1) for value in node.values[:_MAX_ITEMS]]
    if any(item is MISSING for item in (*keys, *values)):
        return MISSING
    return _construct(dict, [list(zip(keys, values, strict=True))])


def _construct(constructor: type | None, arguments: list[Any]) -> Any:
    if constructor is None or any(argument is MISSING for argument in arguments):
        return MISSING
    try:
        return constructor(*arguments)
    except (TypeError, ValueError):  # set(3), {[1]}
        return MISSING


def _add(left: Any, right: Any) -> Any:
    if _is_number(left) and _is_number(right):
        return left + right
    if type(left) is type(right) and isinstance(left, str | list | tuple):
        return left + right if len(left) + len(right) <= _MAX_ITEMS else MISSING
    return MISSING


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_names(tree: ast.AST) -> dict[str, Any]:
    """Returns the names that are assigned once in the whole program, and to a literal, with their values."""
    values: dict[str, Any] = {}
    stored: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            stored[node.id] = stored.get(node.id, 0) + 1
        elif isinstance(node, ast.arg):
            stored[node.arg] = stored.get(node.arg, 0) + 1
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and (literal := read_literal(value, values)) is not MISSING:
            values[target.id] = literal
    return {name: value for name, value in values.items() if stored.get(name) == 1}


def freeze(value: Any) -> Hashable:
    """Returns a hashable stand-in: equal for equal values, and for a list and a tuple of the same items.

    True and 1 differ, 1 and 1.0 do not.
    """
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list | tuple):
        return ("sequence", tuple(freeze(item) for item in value))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(freeze(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((freeze(key), freeze(item)) for key, item in value.items()))
    return value


def write_literal(value: Any) -> str:
    """Returns repr() of a value, with sets in an order that does not depend on the hash seed."""
    if isinstance(value, set | frozenset):
        items = "{" + ", ".join(sorted(map(write_literal, value))) + "}" if value else ""
        return items if items and isinstance(value, set) else f"{type(value).__name__}({items})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write_literal(key)}: {write_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_literal, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(write_literal, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def weigh(value: Any) -> float:
    """Returns roughly how many bits it takes to guess a value: what equality by chance is unlikely by.

    A truth value or None 1, a number its digits, a text 4 a character, a container 1 and its items.
    """
    if value is None or isinstance(value, bool):
        return 1.0
    if isinstance(value, int):
        return float(abs(value).bit_length())
    if isinstance(value, float):
        return 3.3 * len(repr(value).strip("-0.")) if math.isfinite(value) else 4.0
    if isinstance(value, str | bytes):
        return 4.0 * len(value)
    if isinstance(value, dict):
        return 1.0 + sum(weigh(key) + weigh(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return 1.0 + sum(map(weigh, value))
    return 1.0


def iter_values(value: Any) -> Iterator[Any]:
    """Yields a value and everything in it."""
    yield value
    items: Iterable[Any] = ()
    if isinstance(value, dict):
        items = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        items = value
    for item in items:
        yield from iter_values(item)
