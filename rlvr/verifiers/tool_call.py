"""Whether a completion makes the tool calls that were wanted, or none where none fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import payloads
from rlvr.verifiers.call_literals import LANGUAGES, guess_language
from rlvr.verifiers.call_syntax import Call, CallSyntaxError, find_calls, parse_calls
from rlvr.verifiers.call_values import find_type, match_call

_TRUTH = "a list of {name: {argument: [accepted values]}}, or null where no call is right"


def verify_tool_call(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Right if the calls of the response (what follows the last `</think>`) are the wanted ones, in any order.

    As many calls must be made as are wanted, and each must match another one of them: `call_values` has the rules,
    `call_syntax` the three ways to write calls. Strict reads only `<tool_call>` tags (text around them is ignored) or
    a response that is nothing but calls; lenient also calls that stand in prose.

    Where no call is right, 1 is for a response without any, and there strict is the wider reading: a call in the
    middle of prose, or a broken `<tool_call>`, is an attempt and earns nothing (lenient lets it pass).

    Payload:
        functions: what could be called, [{"name", "parameters": {"properties", "required"}}]; OpenAI's wrapping
            {"type": "function", "function": {...}} is taken off.
        ground_truth: a list of {name: {argument: [accepted values]}}, "" accepted where the argument may be left out;
            null or [] where no call is right.
        any_call: true with ground_truth null where any call of the functions will do (BFCL's relevance rows).
        language: "python", "java" or "javascript": whose literals stand in texts; guessed from the type names if
            absent.

    Raises:
        DataError: a field that is missing or cannot be used.
    """
    functions = _read_functions(payload)
    wanted = _read_truth(payload, functions)
    any_call = payloads.read_flag(payload, "any_call")
    if any_call and wanted:
        raise payloads.make_error("any_call", True, "only with ground_truth null")
    names = _collect_types(functions.values())
    language = payloads.read_choice(payload, "language", LANGUAGES, guess_language(names))
    response = payloads.find_response(completion)
    if response is None:
        return types.Verdict(0.0, "unparsed", "the reasoning was never closed")
    problem = ""
    calls: list[Call] = []
    try:
        calls = parse_calls(response)
    except CallSyntaxError as error:
        problem = str(error)
    anywhere = find_calls(response, functions)
    if not wanted and not any_call:
        return _judge_silence(problem, calls, anywhere)

    def judge(calls: Sequence[Call]) -> str:
        if any_call:
            return _find_stranger(calls, functions)
        return _find_mismatch(calls, wanted, functions, language)

    strict_fault = problem or judge(calls)
    lenient_fault = judge(anywhere) if strict_fault else ""
    unparsed = bool(problem) or not calls
    status = "correct" if not strict_fault else "unparsed" if unparsed else "wrong"
    parts = {"strict": float(not strict_fault), "lenient": float(not lenient_fault)}
    return types.Verdict(parts["strict"], status, strict_fault or "as wanted", parts=parts)


def _judge_silence(problem: str, calls: Sequence[Call], anywhere: Sequence[Call]) -> types.Verdict:
    """The verdict where no call is right."""
    made = [call.name for call in (*calls, *anywhere)]
    strict = float(not problem and not made)
    parts = {"strict": strict, "lenient": float(not calls)}
    detail = "no call, as wanted" if strict else f"no call is right, but: {problem or made[0][:60] + ' is called'}"
    return types.Verdict(strict, "correct" if strict else "wrong", detail, parts=parts)


def _find_stranger(calls: Sequence[Call], functions: Mapping[str, Any]) -> str:
    unknown = [call.name for call in calls if call.name not in functions]
    if unknown:
        return f"{unknown[0][:60]} is not one of the functions"
    return "" if calls else "no call is made"


def _find_mismatch(
    calls: Sequence[Call],
    wanted: Sequence[tuple[str, Mapping[str, Any]]],
    functions: Mapping[str, Any],
    language: str,
) -> str:
    """Returns why the calls are not the wanted ones one to one, "" if they are."""
    if len(calls) != len(wanted):
        return f"{len(calls)} calls are made, {len(wanted)} are wanted"
    fits: list[list[int]] = []
    for name, answer in wanted:
        faults = [match_call(call, functions[name], answer, language) for call in calls]
        fits.append([i for i, fault in enumerate(faults) if not fault])
        if not fits[-1]:
            return min(faults, key=lambda fault: "is called, not" in fault)
    return "" if _can_pair(fits) else "two of the wanted calls are met by one call only"


def _can_pair(fits: Sequence[Sequence[int]]) -> bool:
    """Whether each row can have a number of its own among those it fits (augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for i in fits[row]:
            if i not in tried:
                tried.add(i)
                if i not in owner or place(owner[i], tried):
                    owner[i] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


def _read_functions(payload: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    accepted = "a list of {name, parameters: {properties, required}}"
    listed = payloads.read_present(payload, "functions", accepted)
    if not isinstance(listed, list):
        raise payloads.make_error("functions", listed, accepted)
    functions: dict[str, Mapping[str, Any]] = {}
    for item in listed:
        item = item.get("function", item) if isinstance(item, dict) else item
        parameters = item.get("parameters") or {} if isinstance(item, dict) else None
        properties = parameters.get("properties") or {} if isinstance(parameters, dict) else None
        if (
            not isinstance(parameters, dict)
            or not isinstance(item.get("name"), str)
            or not isinstance(required := parameters.get("required") or [], list)
            or not all(isinstance(each, str) for each in required)
            or not isinstance(properties, dict)
            or not all(isinstance(each, dict) for each in properties.values())
        ):
            raise payloads.make_error("functions", item, accepted)
        functions[item["name"]] = item
    return functions


def _read_truth(
    payload: Mapping[str, Any], functions: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    truth = payloads.read_present(payload, "ground_truth", _TRUTH)
    if truth is None:
        return []
    if not isinstance(truth, list):
        raise payloads.make_error("ground_truth", truth, _TRUTH)
    wanted: list[tuple[str, Mapping[str, Any]]] = []
    for item in truth:
        name, answer = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else ("", None)
        if not isinstance(answer, dict) or not all(isinstance(accepted, list) for accepted in answer.values()):
            raise payloads.make_error("ground_truth", item, _TRUTH)
        if name not in functions:
            hint = errors.nearest(str(name), functions)
            raise payloads.make_error("ground_truth", name, f"a name among the functions: {', '.join(functions)}", hint)
        for argument in answer:
            if schema := (functions[name].get("parameters") or {}).get("properties", {}).get(argument):
                find_type(schema)
        wanted.append((name, answer))
    return wanted


def _collect_types(functions: Any) -> set[str]:
    properties = [(function.get("parameters") or {}).get("properties") or {} for function in functions]
    return {str(schema.get("type")) for each in properties for schema in each.values()}
