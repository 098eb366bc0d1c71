"""Values written as source text of Java or JavaScript, where a function's parameters have those languages' types.

BFCL asks for every argument of such functions as a text, `new int[]{1, 2}` or `{"a": true}`, and compares what it
says. A text that is not a literal of the wanted type stays the text it is. Values that are no texts are taken as they
are, so a call written in JSON need not know of any of this.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# A literal that is longer, or nested deeper, stays a text.
_MAX_CHARACTERS = 20_000
_MAX_DEPTH = 50

_EXPONENT = r"(?:[eE][+-]?\d+)?"
_NUMBERS = {
    "java": {
        **dict.fromkeys(("byte", "short", "integer", "int"), re.compile(r"(-?\d+)")),
        "long": re.compile(r"(-?\d+)[lL]"),
        "float": re.compile(rf"(-?\d+(?:\.\d+)?{_EXPONENT})[fF]"),
        "double": re.compile(rf"(-?\d+(?:\.\d+)?{_EXPONENT})"),
    },
    "javascript": {
        "integer": re.compile(r"(-?\d+)"),
        "float": re.compile(r"(-?\d+(?:\.\d+)?)"),
        "Bigint": re.compile(r"(-?\d+)n"),
    },
}
_FRACTIONAL = ("float", "double")
_PLAIN_NUMBER = re.compile(rf"-?\d+(?P<fraction>\.\d+)?{_EXPONENT}")
_LISTS = ("array", "Array", "ArrayList", "list", "Queue", "Stack", "Set")
_DICTS = ("dict", "object", "HashMap", "Hashtable")

# How each language writes a list: what stands around the elements.
_LIST_FORMS = {
    "java": (
        re.compile(r"new\s+[\w.]+(?:\[\])+\s*\{(?P<items>.*)\}", re.DOTALL),
        re.compile(r"new\s+\w+<[^(){}]*>\s*\(\s*(?:Arrays\.asList|List\.of)\((?P<items>.*)\)\s*\)", re.DOTALL),
        re.compile(r"(?:Arrays\.asList|List\.of)\((?P<items>.*)\)", re.DOTALL),
        re.compile(r"new\s+\w+<[^(){}]*>\s*\((?P<items>)\)"),
        re.compile(r"\{(?P<items>.*)\}", re.DOTALL),
    ),
    "javascript": (
        re.compile(r"\[(?P<items>.*)\]", re.DOTALL),
        re.compile(r"new\s+Array\((?P<items>.*)\)", re.DOTALL),
    ),
}
_JAVA_BLOCK = re.compile(r"new\s+\w+<[^(){}]*>\s*\(\s*\)\s*\{\s*\{(?P<body>.*)\}\s*\}", re.DOTALL)
_JAVA_EMPTY = re.compile(r"new\s+\w+<[^(){}]*>\s*\(\s*\)")
_JAVA_STATEMENT = re.compile(r"(?:add|put)\((?P<items>.*)\)", re.DOTALL)
_JS_OBJECT = re.compile(r"\{(?P<items>.*)\}", re.DOTALL)


def read_python(text: str, schema: Mapping[str, Any]) -> Any:
    """Returns the text: a value of Python or JSON is what it is."""
    return text


def read_java(text: str, schema: Mapping[str, Any]) -> Any:
    """Returns what the text says as a literal of the schema's Java type, or the text."""
    return _read(text, schema, "java", 0) if len(text) <= _MAX_CHARACTERS else text


def read_javascript(text: str, schema: Mapping[str, Any]) -> Any:
    """Returns what the text says as a literal of the schema's JavaScript type, or the text."""
    return _read(text, schema, "javascript", 0) if len(text) <= _MAX_CHARACTERS else text


LANGUAGES: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "python": read_python,
    "java": read_java,
    "javascript": read_javascript,
}

_MARKS = {
    "javascript": {"Bigint", "Boolean"},
    "java": {"byte", "short", "long", "double", "char", "ArrayList", "Array", "HashMap", "Hashtable", "Queue", "Stack"},
}


def guess_language(types: set[str]) -> str:
    """Returns the language whose type names these are: a key of `LANGUAGES`."""
    for language, marks in _MARKS.items():
        if types & marks:
            return language
    return "javascript" if "String" in types else "python"  # a String is read alike in both


def _read(text: str, schema: Mapping[str, Any], language: str, depth: int) -> Any:
    name, stripped = schema.get("type"), text.strip()
    if depth > _MAX_DEPTH or not isinstance(name, str):
        return text
    if (number := _NUMBERS[language].get(name)) is not None:
        match = number.fullmatch(stripped)
        return text if match is None else (float if name in _FRACTIONAL else int)(match.group(1))
    if name in ("boolean", "Boolean"):
        return {"true": True, "false": False}.get(stripped, text)
    if name in _LISTS:
        items = _split_list(stripped, language)
        inner = schema.get("items")
        if items is None:
            return text
        return [_read_item(item, inner if isinstance(inner, Mapping) else {}, language, depth + 1) for item in items]
    if name in _DICTS:
        pairs = _split_dict(stripped, language)
        return text if pairs is None else {key: _read_loose(value, language, depth + 1) for key, value in pairs}
    return _unquote(stripped) if name in ("String", "string", "char") else text


def _read_item(text: str, schema: Mapping[str, Any], language: str, depth: int) -> Any:
    typed = schema.get("type") not in (None, "any", "String", "string", "char")
    return _read(text, schema, language, depth) if typed else _read_loose(text, language, depth)


def _read_loose(text: str, language: str, depth: int) -> Any:
    """Returns what a literal of undeclared type says."""
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if (match := _PLAIN_NUMBER.fullmatch(text)) is not None:
        return int(text) if match["fraction"] is None and text.lstrip("-").isdecimal() else float(text)
    if depth > _MAX_DEPTH or text[:1] in "\"'":
        return _unquote(text)
    if language == "javascript" and text.startswith("{"):
        return _read(text, {"type": "dict"}, language, depth)
    if text.startswith(("[", "new ", "Arrays.asList", "List.of")):
        return _read(text, {"type": "array"}, language, depth)
    return text


def _split_list(text: str, language: str) -> list[str] | None:
    if language == "java" and (block := _JAVA_BLOCK.fullmatch(text)) is not None:
        return [match["items"].strip() for match in _iter_statements(block["body"])]
    for form in _LIST_FORMS[language]:
        if (match := form.fullmatch(text)) is not None:
            return list(_split(match["items"], ","))
    return None


def _split_dict(text: str, language: str) -> list[tuple[str, str]] | None:
    if language == "java":
        if (block := _JAVA_BLOCK.fullmatch(text)) is not None:
            halves = [list(_split(match["items"], ",")) for match in _iter_statements(block["body"])]
            return [(_unquote(half[0]), half[1]) for half in halves if len(half) == 2]
        return [] if _JAVA_EMPTY.fullmatch(text) else None
    if (match := _JS_OBJECT.fullmatch(text)) is None:
        return None
    entries = [entry.partition(":") if _is_bare(entry) else _partition(entry) for entry in _split(match["items"], ",")]
    return [(_unquote(key.strip()), value.strip() or key.strip()) for key, _, value in entries]


def _iter_statements(body: str) -> Iterator[re.Match[str]]:
    for statement in _split(body, ";"):
        if (match := _JAVA_STATEMENT.fullmatch(statement)) is not None:
            yield match


def _is_bare(entry: str) -> bool:
    return entry.lstrip()[:1] not in "\"'"


def _partition(entry: str) -> tuple[str, str, str]:
    """Parts `"a: b": value` behind its quoted key."""
    entry = entry.strip()
    end = entry.find(entry[0], 1)
    return entry[: end + 1], ":", entry[end + 1 :].partition(":")[2]


def _split(text: str, separator: str) -> Iterator[str]:
    """Yields the parts between separators that stand outside quotes and brackets; blank parts are left out."""
    depth, quote, start = 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[i - 1] != "\\" else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == separator and depth == 0:
            if text[start:i].strip():
                yield text[start:i].strip()
            start = i + 1
    if text[start:].strip():
        yield text[start:].strip()


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
