"""The tool calls that a completion makes, in any of three syntaxes. Nothing of it is ever evaluated.

    tags      <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>, one or many, with any text around them
    JSON      [{"name": "f", "arguments": {"a": 1}}], or one such object; [{"f": {"a": 1}}] as well
    Python    [f(a=1), g(b="x")], with or without the brackets

JSON and Python may stand in one ``` fence or between `. Arguments as a JSON text ("arguments": "{...}") are read too.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import keyword
import re
import warnings
from collections.abc import Collection, Iterator
from typing import Any

from rlvr.verifiers.json_text import MAX_CHARACTERS, NotJsonError, find_json, iter_fences, parse_json, strip_fence

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ARGUMENTS = ("arguments", "parameters")
# The parser of Python needs about a thousand times the memory of its text.
_MAX_PYTHON = 100_000
_MAX_DEPTH = 100
_MAX_STARTS = 32

# Python's own words cannot be the names of arguments, yet functions of other languages have such: the mark, a letter
# that nobody uses, makes them plain names.
_MARK = "\u01c1"
_KEYWORD = re.compile(rf"(?<![\w.])({'|'.join(keyword.kwlist)})\s*=(?!=)")


class CallSyntaxError(ValueError):
    """A text that is not tool calls; `attempt` says whether it plainly tried to be."""

    def __init__(self, message: str, *, attempt: bool = False) -> None:
        super().__init__(message)
        self.attempt = attempt


@dataclasses.dataclass(frozen=True)
class Call:
    """One call. Arguments are as written: JSON values, and for Python also tuples; a bare name is its own text."""

    name: str
    arguments: dict[str, Any]


def parse_calls(text: str) -> list[Call]:
    """Returns the calls that the text is; none where it is plain text without any, or an empty list.

    With tags, the text around them is prose and ignored. Without, the whole text must be calls to count as such.

    Raises:
        CallSyntaxError: a tag that is not closed or holds no call, or an argument given twice or without a name.
    """
    if _OPEN in text or _CLOSE in text:
        return [call for inside in _split_tags(text) for call in _parse_json_calls(inside, attempt=True)]
    text = strip_fence(text).strip("`").strip()
    for parse in (_parse_json_calls, _parse_python_calls):
        try:
            return parse(text)
        except CallSyntaxError as error:
            if error.attempt:
                raise
    return []


def find_calls(text: str, names: Collection[str]) -> list[Call]:
    """Returns the calls that `parse_calls` finds, else the first that stand anywhere in the text.

    Looked through in this order: tags that hold calls (an unclosed last one ends with the text), fenced blocks, JSON
    in prose, lines that are Python calls, Python calls of one of `names` within a line.
    """
    try:
        if calls := parse_calls(text):
            return calls
    except CallSyntaxError:
        pass
    for candidate in _iter_candidates(text, names):
        if candidate:
            return candidate
    return []


def _iter_candidates(text: str, names: Collection[str]) -> Iterator[list[Call]]:
    tagged = text.split(_OPEN, _MAX_STARTS)[1:]
    yield [call for part in tagged for call in _attempt(part.partition(_CLOSE)[0])]
    yield [call for block in itertools.islice(iter_fences(text), _MAX_STARTS) for call in _attempt(block)]
    found: list[Call] = []
    for value in find_json(text, unique_keys=True):
        try:
            found += _read_json(value)
        except CallSyntaxError:
            continue
    yield found
    lines = [line for line in text.splitlines() if "(" in line][:_MAX_STARTS]
    yield [call for line in lines for call in _attempt(line)]
    yield list(_iter_inline(text, names))


def _iter_inline(text: str, names: Collection[str]) -> Iterator[Call]:
    """Yields calls such as `f(a=1)` inside a sentence: from a known name to the bracket that closes it."""
    if not names or len(text) > _MAX_PYTHON:
        return
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})\(")
    for match in itertools.islice(pattern.finditer(text), _MAX_STARTS):
        if (end := _find_closing(text, match.end())) is not None:
            yield from _attempt(text[match.start() : end])


def _find_closing(text: str, start: int) -> int | None:
    """Returns where the bracket opened just before `start` has closed; quotes hide brackets."""
    depth, quote, i = 1, "", start
    while i < len(text):
        character = text[i]
        if quote:
            if character == "\\":
                i += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return None


def _attempt(text: str) -> list[Call]:
    try:
        return parse_calls(text.strip())
    except CallSyntaxError:
        return []


def _split_tags(text: str) -> list[str]:
    """Returns what each tag holds, if they open and close in turn."""
    insides = []
    before, *rest = text.split(_OPEN)
    if _CLOSE in before:
        raise CallSyntaxError(f"{_CLOSE} without {_OPEN}", attempt=True)
    for part in rest:
        inside, closed, after = part.partition(_CLOSE)
        if not closed:
            raise CallSyntaxError(f"{_OPEN} is not closed", attempt=True)
        if _CLOSE in after:
            raise CallSyntaxError(f"{_CLOSE} without {_OPEN}", attempt=True)
        insides.append(inside)
    return insides


def _parse_json_calls(text: str, attempt: bool = False) -> list[Call]:
    try:
        value = parse_json(text, unique_keys=True)
    except NotJsonError as error:
        raise CallSyntaxError(f"not JSON: {error}", attempt=attempt) from None
    if attempt and not isinstance(value, dict | list):
        raise CallSyntaxError("a tool call must be a JSON object", attempt=True)
    try:
        return _read_json(value)
    except CallSyntaxError as error:
        raise CallSyntaxError(str(error), attempt=attempt or error.attempt) from None


def _read_json(value: Any) -> list[Call]:
    items = value if isinstance(value, list) else [value]
    return [_read_json_call(item) for item in items]


def _read_json_call(item: Any) -> Call:
    """Returns {"name": f, "arguments": {...}} or {f: {...}} as a call."""
    if not isinstance(item, dict):
        raise CallSyntaxError("an item is not an object")
    if isinstance(item.get("name"), str):
        keys = [key for key in _ARGUMENTS if key in item]
        extra = set(item) - {"name", "id", "type", *_ARGUMENTS}
        if len(keys) > 1 or extra:
            raise CallSyntaxError(f"a call has name and arguments, not {', '.join(map(str, item))}", attempt=True)
        name, arguments = item["name"], item[keys[0]] if keys else {}
    elif len(item) == 1 and isinstance(next(iter(item.values())), dict):
        name, arguments = next(iter(item.items()))
    else:
        raise CallSyntaxError("an object is not a call")
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments, unique_keys=True)
        except NotJsonError as error:
            raise CallSyntaxError(f"the arguments of {name[:50]} are not JSON: {error}", attempt=True) from None
    if not isinstance(arguments, dict):
        raise CallSyntaxError(f"the arguments of {name[:50]} are not an object", attempt=True)
    return Call(name, arguments)


def _parse_python_calls(text: str) -> list[Call]:
    if len(text) > min(_MAX_PYTHON, MAX_CHARACTERS):
        raise CallSyntaxError(f"{len(text)} characters are more than the {_MAX_PYTHON} that are read")
    if "(" not in text:
        raise CallSyntaxError("not a call")
    body = _parse_expression(text if text.startswith("[") else f"[{text}]")
    elements = body.elts if isinstance(body, ast.List) else []
    if not elements or not all(isinstance(element, ast.Call) for element in elements):
        raise CallSyntaxError("not a list of calls")
    try:
        return [_read_python_call(element) for element in elements if isinstance(element, ast.Call)]
    except RecursionError:
        raise CallSyntaxError("nested too deep", attempt=True) from None


def _parse_expression(text: str) -> ast.expr:
    """Returns the tree of a Python expression; an argument may be called `from` or `class`."""
    marked = _KEYWORD.sub(rf"\1{_MARK}=", text) if _MARK not in text else text
    for source in (text, marked):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the parser thinks of "\d" in a text
                return ast.parse(source, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            problem = f"not Python: {type(error).__name__}"
            if not isinstance(error, SyntaxError) or marked == text:
                break
    raise CallSyntaxError(problem)


def _read_python_call(node: ast.Call) -> Call:
    name = _read_name(node.func)
    if name is None:
        raise CallSyntaxError("what is called is not a name")
    if node.args:
        raise CallSyntaxError(f"an argument of {name} has no name", attempt=True)
    arguments: dict[str, Any] = {}
    for given in node.keywords:
        if given.arg is None:
            raise CallSyntaxError(f"an argument of {name} is unpacked", attempt=True)
        argument = given.arg.removesuffix(_MARK)
        if argument in arguments:
            raise CallSyntaxError(f"{argument!r} is given twice", attempt=True)
        arguments[argument] = _read_value(given.value)
    return Call(name, arguments)


def _read_name(node: ast.expr) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _read_value(node: ast.expr, depth: int = 0) -> Any:
    """Returns the literal that the node is. Names, dotted names, indexed names and calls are their own text."""
    if depth > _MAX_DEPTH:
        raise CallSyntaxError("nested too deep", attempt=True)
    if isinstance(node, ast.Constant) and not isinstance(node.value, bytes | complex):
        value = "..." if node.value is Ellipsis else node.value
        return value.replace(f"{_MARK}=", "=") if isinstance(value, str) else value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _read_value(node.operand, depth + 1)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        values = [_read_value(element, depth + 1) for element in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict):
        return _read_dict(node, depth)
    if isinstance(node, ast.Call) and node.keywords and not node.args:
        call = _read_python_call(node)
        return {call.name: call.arguments}
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
        return ast.unparse(node)
    raise CallSyntaxError(f"an argument is a {type(node).__name__}, not a literal", attempt=True)


def _read_dict(node: ast.Dict, depth: int) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in zip(node.keys, node.values, strict=True):
        key = None if key_node is None else _read_value(key_node, depth + 1)
        if not isinstance(key, str | int | float | bool) or key in result:
            raise CallSyntaxError("a key of a dictionary is unpacked, no literal, or given twice", attempt=True)
        result[key] = _read_value(value_node, depth + 1)
    return result
