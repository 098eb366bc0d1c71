"""Whether one call is one of the accepted ones, by the rules of the Berkeley function-calling leaderboard (BFCL v4).

An answer is {argument: [accepted values]}; "" among them says that the argument may be left out unless it is required.
Where nothing else is accepted, nothing is to be said: an empty value, or no argument. The types of a function's
parameters are BFCL's own names (and Java's and JavaScript's there) or JSON Schema's.

Types are strict: 1 is no text, true no number, 1.0 no integer. But an integer does for a float, also in a list, a tuple
of Python and a list do for a "tuple", and a value of the accepted values' own type always does (BFCL calls it a
variable). Texts are equal without case, spaces and ",./-_*^", and with ' for "; also in lists and as values of
dictionaries, but not deeper.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlvr import errors
from rlvr.verifiers.call_literals import LANGUAGES
from rlvr.verifiers.call_syntax import Call

_PYTHON_TYPES: dict[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
    "number": float, "object": dict, "null": type(None), "bool": bool, "list": list, "str": str, "int": int,
    "String": str, "Boolean": bool, "Bigint": int, "byte": int, "short": int, "long": int, "double": float,
    "char": str, "Array": list, "ArrayList": list, "Set": list, "Queue": list, "Stack": list, "HashMap": dict,
    "Hashtable": dict, "Any": str,
}  # fmt: skip
_NESTING = ("array", "tuple", "list", "Array", "ArrayList")
_IGNORED = re.compile(r"[ ,./\-_*^]")


def match_call(call: Call, function: Mapping[str, Any], answer: Mapping[str, Any], language: str) -> str:
    """Returns what is wrong with a call of `function`, "" if it is one that `answer` accepts.

    Args:
        call: what was called.
        function: its name and parameters ("properties" and "required").
        answer: argument -> accepted values.
        language: a key of `LANGUAGES`: how texts are read where a type of that language is wanted.

    Raises:
        DataError: a type that is none of BFCL's or JSON Schema's.
    """
    name = function["name"]
    if call.name != name:
        return f"{call.name[:60]} is called, not {name}"
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") or {}
    for argument in parameters.get("required") or ():
        if argument not in call.arguments and any(each != "" for each in answer.get(argument, [None])):
            return f"{name} lacks the required {argument}"
    for argument, value in call.arguments.items():
        if argument not in answer:
            return f"{name} has no {argument[:60]}, or none is expected"
        accepted = answer[argument]
        if not _accepts(value, properties.get(argument, {}), accepted, language):
            return f"{argument}={_shorten(value)} of {name} is none of {_shorten(accepted)}"
    for argument, accepted in answer.items():
        if argument not in call.arguments and argument in properties and accepted and "" not in accepted:
            return f"{name} lacks {argument}, which may not be left out"
    return ""


def find_type(schema: Mapping[str, Any]) -> type:
    """Returns the Python type of a parameter. Raises DataError for an unknown one."""
    name = schema.get("type") or "any"
    if isinstance(name, list):  # JSON Schema's union: the first that is not null; the accepted values say the rest
        name = next((each for each in name if each != "null"), "null")
    if not isinstance(name, str) or name not in _PYTHON_TYPES:
        hint = errors.nearest(str(name), _PYTHON_TYPES)
        raise errors.DataError(f"functions: type={name!r} is not known{hint} (accepted: {', '.join(_PYTHON_TYPES)})")
    return _PYTHON_TYPES[name]


def _accepts(value: Any, schema: Mapping[str, Any], accepted: Sequence[Any], language: str) -> bool:
    if not accepted:
        return value in ("", [], (), {})
    wanted = find_type(schema)
    nests = schema.get("type") in _NESTING and isinstance(schema.get("items"), Mapping)
    inner = find_type(schema["items"]) if nests and schema["items"].get("type") not in ("any", "Any", None) else None
    if isinstance(value, str):
        value = LANGUAGES[language](value, schema)
    if isinstance(value, tuple) and schema.get("type") == "tuple":
        value = list(value)
    value = [_widen(item, float) for item in value] if inner is float and type(value) is list else _widen(value, wanted)
    own = next((type(each) for each in accepted if each != ""), None)
    if type(value) is wanted:
        if inner is not None and not _accepts_items(value, inner, accepted):
            return False
        variable = own not in (None, wanted)
    elif own is not None and type(value) is own:
        variable = True
    else:
        return False
    if variable or wanted in (int, float, bool, type(None)):
        return value in accepted
    if wanted is str:
        return _plain(value) in [_plain(each) for each in accepted if isinstance(each, str)]
    if wanted is dict:
        return any(_matches_dict(value, each) for each in accepted if isinstance(each, dict))
    if inner is dict:
        return any(_matches_dicts(value, each) for each in accepted if isinstance(each, list))
    return _plain_items(value) in [_plain_items(each) for each in accepted if isinstance(each, list)] or (
        not value and "" in accepted
    )


def _widen(value: Any, wanted: type) -> Any:
    """An integer where a float is wanted becomes one, if it fits."""
    if wanted is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return value
    return value


def _accepts_items(value: Any, inner: type, accepted: Sequence[Any]) -> bool:
    """Each item has the type that is declared, or that of the items of one of the accepted lists."""
    for each in accepted:
        own = next((type(item) for item in each if item != ""), None) if isinstance(each, list) else None
        if not isinstance(each, list) or all(type(item) in (inner, own) for item in value):
            return True
    return False


def _matches_dict(value: Any, answer: Any) -> bool:
    """An accepted dictionary is itself {key: [accepted values]}, "" among them for a key that may be left out."""
    if not isinstance(value, dict) or not isinstance(answer, dict):
        return value == answer
    if any(key not in answer for key in value):
        return False
    for key, accepted in answer.items():
        accepted = accepted if isinstance(accepted, list) else [accepted]
        if key not in value:
            if "" not in accepted:
                return False
        elif not any(_matches_entry(value[key], each) for each in accepted):
            return False
    return True


def _matches_entry(value: Any, each: Any) -> bool:
    if isinstance(value, str) and isinstance(each, str):
        return _plain(value) == _plain(each)
    if isinstance(value, dict) and isinstance(each, dict):
        return value == each or _matches_dict(value, each)
    return bool(value == each)


def _matches_dicts(value: list[Any], answer: list[Any]) -> bool:
    return len(value) == len(answer) and all(map(_matches_dict, value, answer))


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _plain_items(items: list[Any]) -> list[Any]:
    return [_plain(item) if isinstance(item, str) else item for item in items]


def _shorten(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."
