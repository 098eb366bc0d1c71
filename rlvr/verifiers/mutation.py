"""Fresh tests from visible ones: the inputs are varied, and a reference solution says what comes out.

With them a code task that only has visible tests gets hidden ones (`hidden_tests` of the `code` verifier), and with
them a gold score. What is varied stays near what was shown: numbers keep their sign and size, texts their letters,
containers the kinds of their items, for a function may rightly do anything with inputs that it was never meant for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from rlvr import errors
from rlvr.verifiers.cases import Case, read_cases
from rlvr.verifiers.literals import MISSING, freeze, iter_values, write_literal

_ATTEMPTS = 40  # variations tried for each test wanted
_TOLERANCE = 1e-6


def mutate_tests(
    tests: str | Sequence[Any],
    reference: Callable[..., Any],
    entry_point: str,
    *,
    count: int,
    seed: int = 0,
) -> list[str]:
    """Returns assert statements with inputs that no visible test has, and outputs of a reference solution.

    Inputs on which the reference raises, or gives what cannot be written as a literal of the kinds that the visible
    tests expect, are passed over; so are inputs that it changes in place, unless what it returns is a literal all the
    same (it is called with copies). The same arguments give the same tests.

    Args:
        tests: the visible tests; see `cases.read_cases`.
        reference: the function to be imitated. It is called here, in this process: only with code that is trusted.
        entry_point: its name in the tests.
        count: tests wanted.
        seed: another seed gives other tests.

    Returns:
        At most `count` statements; fewer if the inputs do not vary enough.

    Raises:
        DataError: no visible test can be read.
    """
    known = [case for case in read_cases(tests, [entry_point]) if case.expected is not MISSING]
    if not known:
        raise errors.DataError(
            f"tests={tests!r:.80}: no test compares a call of entry_point={entry_point!r} with a literal "
            "(accepted: tests whose arguments and outputs are literals)"
        )
    seen = {freeze(case.arguments) for case in known}
    kinds = {type(case.expected) for case in known}
    draw = random.Random(f"{seed} {entry_point} {[write_literal(list(case)) for case in known]}")
    fresh: list[str] = []
    for attempt in range(_ATTEMPTS * count):
        if len(fresh) == count:
            break
        arguments = mutate_arguments(known, draw, attempt)
        key = freeze(arguments)
        if key in seen:
            continue
        seen.add(key)
        expected = _call(reference, arguments)
        if type(expected) in kinds and _is_literal(expected):
            fresh.append(write_assert(entry_point, arguments, expected))
    return fresh


def mutate_arguments(cases: Sequence[Case], draw: random.Random, attempt: int = 0) -> tuple[Any, ...]:
    """Returns the arguments of a case with one or two things in them changed; the cases take turns.

    What replaces a thing is drawn around it and from the same place in the other cases, so that it stays of a kind
    that the function is meant for.
    """
    case = cases[attempt % len(cases)]
    arguments = list(case.arguments)
    if not arguments:
        return ()
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.randrange(len(arguments))
        others = [other.arguments[place] for other in cases if len(other.arguments) > place]
        arguments[place] = _mutate(arguments[place], others, draw)
    return tuple(arguments)


def _mutate(value: Any, others: Sequence[Any], draw: random.Random) -> Any:
    """Returns a value of the same kind; `others` are what stands in its place elsewhere."""
    alike = [other for other in others if type(other) is type(value)]
    if isinstance(value, bool) or value is None:
        return draw.choice(alike or [value])
    if isinstance(value, int | float):
        return _mutate_number(value, alike, draw)
    if isinstance(value, str):
        return _mutate_text(value, "".join(alike), draw)
    if isinstance(value, list | tuple):
        return type(value)(_mutate_sequence(list(value), [item for other in alike for item in other], draw))
    if isinstance(value, set | frozenset):
        return type(value)(_mutate_sequence(_in_order(value), _in_order(set().union(*alike)), draw))
    if isinstance(value, dict):
        return _mutate_dict(value, [item for other in alike for item in other.items()], draw)
    return value


def _mutate_number(value: Any, alike: Sequence[Any], draw: random.Random) -> Any:
    """Returns a number between the least and the greatest seen, or a little beyond; none changes its sign."""
    low, high = min(alike, default=value), max(alike, default=value)
    margin = max(1, abs(high) // 2)
    floor = 0 if low >= 0 else low - margin
    ceiling = 0 if high < 0 else high + margin
    if 0 < low:
        floor = min(low, 1)
    if isinstance(value, int):
        return draw.randint(int(floor), int(ceiling))
    return round(draw.uniform(float(floor), float(ceiling)), draw.choice((0, 1, 2)))


def _mutate_text(value: str, letters: str, draw: random.Random) -> str:
    """Returns a text of letters that were seen: some replaced, left out, put in, or all shuffled."""
    if not letters:
        return value
    characters = list(value)
    for _ in range(draw.randint(1, 1 + len(characters) // 3)):
        action = draw.choice(("replace", "drop", "insert", "shuffle"))
        if action == "insert" or not characters:
            characters.insert(draw.randint(0, len(characters)), draw.choice(letters))
        elif action == "replace":
            characters[draw.randrange(len(characters))] = draw.choice(letters)
        elif action == "drop":
            del characters[draw.randrange(len(characters))]
        else:
            draw.shuffle(characters)
    return "".join(characters)


def _mutate_sequence(items: list[Any], pool: Sequence[Any], draw: random.Random) -> list[Any]:
    """Returns items changed one by one, left out, put in from those seen, or shuffled."""
    action = draw.choice(("change", "change", "drop", "insert", "shuffle"))
    if not items or action == "insert":
        return [*items, draw.choice(pool)] if pool else items
    if action == "shuffle":
        draw.shuffle(items)
    elif action == "drop" and len(items) > 1:
        del items[draw.randrange(len(items))]
    else:
        place = draw.randrange(len(items))
        items[place] = _mutate(items[place], pool, draw)
    return items


def _mutate_dict(value: dict[Any, Any], pool: Sequence[tuple[Any, Any]], draw: random.Random) -> dict[Any, Any]:
    changed = dict(value)
    action = draw.choice(("change", "change", "rename", "drop", "insert"))
    if not changed or action == "insert":
        return changed | dict([draw.choice(pool)] if pool else [])
    key = draw.choice(list(changed))
    if action == "rename":
        fresh = _mutate(key, [other for other, _ in pool], draw)
        return {fresh if old == key else old: item for old, item in changed.items()}
    if action == "drop" and len(changed) > 1:
        del changed[key]
    else:
        changed[key] = _mutate(changed[key], [item for _, item in pool], draw)
    return changed


def _in_order(items: Any) -> list[Any]:
    """Returns the items of a set in an order that does not depend on the hash seed."""
    return sorted(items, key=write_literal)


def _call(reference: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Returns what the reference gives for copies of the arguments, or `MISSING` if it raises."""
    try:
        return reference(*_copy(arguments))
    except Exception:  # an input that the function is not meant for: there is no right output
        return MISSING


def _copy(value: Any) -> Any:
    """Returns a value that shares nothing changeable with the given one."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return type(value)(map(_copy, value)) if isinstance(value, list | tuple | set) else value


def _is_literal(value: Any) -> bool:
    """Whether repr() writes the value as Python reads it: finite, and of built-in kinds only."""
    plain = (bool, int, str, bytes, type(None), list, tuple, set, dict)
    return all(type(part) in plain or (type(part) is float and abs(part) < 1e300) for part in iter_values(value))


def write_assert(entry_point: str, arguments: tuple[Any, ...], expected: Any) -> str:
    """Returns the assert statement; a float need only be met within 1e-6, relative or absolute."""
    call = f"{entry_point}({', '.join(map(write_literal, arguments))})"
    if isinstance(expected, float):
        return f"assert abs({call} - {expected!r}) <= {_TOLERANCE * max(1.0, abs(expected))!r}"
    return f"assert {call} == {write_literal(expected)}"
