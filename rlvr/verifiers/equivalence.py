"""Whether two mathematical answers are the same.

Decided in this order, each step cheaper than the next: the texts are equal; both are quantities (exact rational
numbers with percent, currency, units); both have the same structure, part by part; two expressions have the same
value, exactly or to 50 digits, at fixed values of their symbols. Only where the gold answer has no structure that
`answers` knows, or the answer is a sum or product of matrices, math-verify is asked (`symbolic`), if both are small.

The comparison is not symmetric in one thing: the gold answer says what is asked. Where it is an equation that is no
plain assignment, the answer must be an equation too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rlvr.verifiers import answers, evaluation, expression, latex, numerals, symbolic, units
from rlvr.verifiers.answers import Answer

_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_POSITIVE_TRIALS, _TRIALS = 2, 12
_DECIMAL_COMMA = re.compile(r"([-+]?(?![1-9]\d{0,2},\d{3}$)\d+),(\d+)")  # but 3,100 is no decimal
_LIST_OF_DIGITS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+")
_ONE_LETTER_UNIT = re.compile(r"\d\s*[A-Za-z]")


def equal(gold: str, answer: str) -> bool:
    """Whether an answer is the gold answer. Both are as written: LaTeX or plain, without a box around."""
    if gold == answer:
        return True
    gold_quantity, answer_quantity = _read_gold_quantity(gold), numerals.parse_quantity(answer)
    if gold_quantity is not None and answer_quantity is not None:
        return numerals.equal(gold_quantity, answer_quantity) or _equal_in_another_reading(gold, answer)
    if max(len(gold), len(answer)) > answers.MAX_CHARACTERS:
        return False
    one, other = answers.parse(gold), answers.parse(answer)
    if not one.text or not other.text:  # nothing but marks and punctuation
        return False
    return _same(one, other) or _equal_in_another_reading(gold, answer) or _equal_symbolically(one, other)


def _read_gold_quantity(gold: str) -> numerals.Quantity | None:
    """A gold answer "5m" is a product; only behind a gold number can the m of an answer be metres."""
    return None if _ONE_LETTER_UNIT.fullmatch(gold.strip("$ ")) else numerals.parse_quantity(gold)


def _equal_in_another_reading(gold: str, answer: str) -> bool:
    """Commas: 3,100 is a number but may be two, and 1,5 is two numbers but may be a decimal."""
    gold, answer = latex.tidy(gold), latex.tidy(answer)
    if _LIST_OF_DIGITS.fullmatch(gold) and "," in answer:
        return _same(answers.parse(gold.replace(",", ", ")), answers.parse(answer))
    texts = [_DECIMAL_COMMA.sub(r"\1.\2", text) if _DECIMAL_COMMA.fullmatch(text) else text for text in (gold, answer)]
    if texts == [gold, answer]:
        return False
    quantities = [numerals.parse_quantity(text) for text in texts]
    return None not in quantities and numerals.equal(*quantities)  # type: ignore[arg-type]


def _equal_symbolically(gold: Answer, answer: Answer) -> bool:
    """Asks math-verify about what has no structure here: sums of matrices, and golds that `answers` cannot read.

    Never about lists and tuples: it reads -(1, 2) and 3(1, 2) as (1, 2).
    """
    if answer.kind == "words" or "verbatim" not in (gold.kind, answer.kind):
        return False
    if gold.kind == "matrix":
        return "\\begin" in answer.text and symbolic.equal(gold.text, answer.text)
    return gold.kind == "verbatim" and "," not in gold.text + answer.text and symbolic.equal(gold.text, answer.text)


def _same(gold: Answer, answer: Answer) -> bool:
    if gold.text == answer.text:
        return True
    if "words" in (gold.kind, answer.kind):
        return answers.words(gold) == answers.words(answer)
    if gold.kind == "relation" and answer.kind == "relation":
        return _same_relation(gold, answer)
    if gold.kind == "relation":
        return _relation_equals(gold, answer, gold_is_relation=True)
    if answer.kind == "relation":
        return _relation_equals(answer, gold, gold_is_relation=False)
    if gold.kind == answer.kind == "expression":
        return _same_expression(gold, answer)
    return _same_compound(gold, answer)


def _same_compound(gold: Answer, answer: Answer) -> bool:
    kinds = {gold.kind, answer.kind}
    if kinds <= {"list", "set"} or kinds <= {"list", "union"}:
        found = answer.items
        if len(found) > len(gold.items):  # what is listed twice is listed
            found = tuple({item.text: item for item in found}.values())
        return _same_in_any_order(gold.items, found, _same)
    if kinds == {"tuple"}:
        return gold.marks == answer.marks and _same_in_order(gold.items, answer.items)
    if kinds == {"tuple", "list"}:  # brackets left out, or put around a list
        return _same_in_order(gold.items, answer.items)
    if kinds in ({"matrix"}, {"ratio"}):
        return _same_in_order(gold.items, answer.items)
    if kinds == {"matrix", "tuple"}:  # [[1, 2], [3, 4]]
        rows = gold.items if gold.kind == "tuple" else answer.items
        return all(row.kind == "tuple" for row in rows) and _same_in_order(gold.items, answer.items)
    if answer.kind == "list":  # one answer in several forms
        return all(_same(gold, item) for item in answer.items)
    single = gold if gold.kind == "set" else answer
    if single.kind == "set" and len(single.items) == 1:
        return _same(single.items[0], answer) if single is gold else _same(gold, single.items[0])
    return False


def _same_in_order(gold: Sequence[Answer], answer: Sequence[Answer]) -> bool:
    return len(gold) == len(answer) and all(map(_same, gold, answer))


def _same_in_any_order(gold: Sequence[Any], answer: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    """Whether the items match one to one. Equality is taken as transitive: the first match of each is kept."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        match = next((i for i, other in enumerate(left) if same(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def _same_expression(gold: Answer, answer: Answer) -> bool:
    if gold.unit and answer.unit and units.contradict(gold.unit, answer.unit):
        return False
    if gold.quantity is not None and answer.quantity is not None:
        return numerals.equal(gold.quantity, answer.quantity)
    assert gold.tree is not None and answer.tree is not None
    if "based" in (gold.tree[0], answer.tree[0]):
        return gold.tree == answer.tree
    decimals = [side.quantity for side in (gold, answer) if side.quantity is not None]
    return same_value(gold.tree, answer.tree) or any(
        _rounds_value(tree, decimal) for tree in (gold.tree, answer.tree) for decimal in decimals
    )


def same_value(one: expression.Tree, other: expression.Tree) -> bool:
    """Whether two trees have the same value wherever both have one, at fixed values of their symbols."""
    return _agree([one], [other], lambda left, right: evaluation.same(left[0], right[0]))


def _agree(
    one: Sequence[expression.Tree],
    other: Sequence[expression.Tree],
    compare: Callable[[list[evaluation.Value], list[evaluation.Value]], bool],
) -> bool:
    """Evaluates both lists of trees at every trial; whether all comparisons, and at least one, come out true."""
    names = set().union(*(evaluation.symbols(tree) for tree in (*one, *other)))
    compared = 0
    for trial in range(_TRIALS if names else 1):
        signed = trial >= _POSITIVE_TRIALS
        values = evaluation.sample(names, trial)
        sides = []
        for trees in (one, other):
            try:
                sides.append([evaluation.evaluate(tree, values, real=signed) for tree in trees])
            except evaluation.Undefined:
                sides.append([])
            except evaluation.TooLarge:
                if not evaluation.is_far(trial):
                    return False
                sides.append([])
        if all(sides):
            compared += 1
            if not compare(*sides):
                return False
        elif any(sides) and not signed:
            return False
    return compared > 0


def _rounds_value(tree: expression.Tree, decimal: numerals.Quantity) -> bool:
    """Whether a decimal of enough places rounds or truncates the value of a tree without symbols."""
    if decimal.places is None or evaluation.symbols(tree):
        return False
    try:
        value = evaluation.evaluate(tree, {})
        return evaluation.is_real(value) and numerals.rounds(evaluation.to_fraction(value), decimal)
    except (evaluation.TooLarge, evaluation.Undefined):
        return False


# Relations


def _same_relation(gold: Answer, answer: Answer) -> bool:
    if gold.marks[0] == answer.marks[0] == "\\in":
        return _same_in_order(gold.items, answer.items)
    if _is_assignment(gold) and _is_assignment(answer):
        return _same(gold.items[0], answer.items[0]) and _same(_last_side(gold), _last_side(answer))
    wanted, found = _pair_up(gold), _pair_up(answer)
    if wanted is not None and found is not None and _same_in_any_order(wanted, found, _same_pair):
        return True
    (symbol, wanted_set), (other_symbol, found_set) = _as_membership(gold), _as_membership(answer)
    if wanted_set is None or found_set is None:
        return False
    return _same(symbol, other_symbol) and _same(wanted_set, found_set)


def _as_membership(relation: Answer) -> tuple[Answer, Answer | None]:
    """Returns a symbol and the set in which a relation has it: x < 5 says that x is in (-oo, 5)."""
    if relation.marks == ("\\in",):
        return relation.items[0], relation.items[1]
    return _find_symbol(relation), _as_interval(relation)


def _find_symbol(relation: Answer) -> Answer:
    """Returns the side of an inequality that an interval would be about."""
    middle = relation.items[1]
    return middle if len(relation.items) == 3 or _is_symbol(middle) else relation.items[0]


def _relation_equals(relation: Answer, other: Answer, *, gold_is_relation: bool) -> bool:
    """Compares a relation with what is none: x = 5 with 5, x < 5 with an interval, x in S with S."""
    if relation.marks[0] == "\\in" and len(relation.items) == 2:
        return _same(relation.items[1], other)
    if set(relation.marks) <= {"=", "\\approx"}:
        if gold_is_relation and not _is_assignment(relation):
            return False
        return _same(_last_side(relation), other) if gold_is_relation else _same(other, _last_side(relation))
    interval = _as_interval(relation)
    return interval is not None and (_same(interval, other) or _same(other, interval))


def _is_assignment(relation: Answer) -> bool:
    """Whether it gives a name, a value of a function or a tuple of names its value."""
    if not set(relation.marks) <= {"=", "\\approx"}:
        return False
    named = relation.items[0]
    return all(_is_name(part) for part in (named.items if named.kind in ("tuple", "ratio") else (named,)))


def _is_name(side: Answer) -> bool:
    """Whether it stands for something to be found: x, AB, |AB|, AB/CD, words."""
    if side.tree is None:
        return side.kind in ("words", "verbatim") and not any(map(str.isdigit, side.text))
    return _is_product_of_symbols(side.tree)


def _is_product_of_symbols(tree: expression.Tree) -> bool:
    if tree[0] in ("multiply", "fraction", "invert", "abs"):
        return all(_is_product_of_symbols(part) for part in tree[1:])
    return tree[0] == "symbol"


def _last_side(relation: Answer) -> Answer:
    """Returns the last side before an approximation; of "x ≈ 11" that is 11."""
    exact = relation.items
    if "\\approx" in relation.marks[1:]:
        exact = exact[: relation.marks.index("\\approx", 1) + 1]
    return exact[-1]


def _pair_up(relation: Answer) -> list[tuple[Answer, str, Answer]] | None:
    """Returns a chain as relations of two sides, none of which points to the right; None where a sign does not fit."""
    pairs = []
    for left, sign, right in zip(relation.items, relation.marks, relation.items[1:], strict=False):
        if left.kind != "expression" or right.kind != "expression":
            return None
        if sign in (">", "\\ge"):
            left, sign, right = right, _FLIPPED[sign], left
        if sign not in ("=", "<", "\\le", "\\ne"):
            return None
        pairs.append((left, sign, right))
    return pairs


def _same_pair(gold: tuple[Answer, str, Answer], answer: tuple[Answer, str, Answer]) -> bool:
    """Whether left - right of both are the same up to a factor, which has to be positive for an inequality."""
    if gold[1] != answer[1]:
        return False
    wanted, found = (("add", left.tree, ("negate", right.tree)) for left, _, right in (gold, answer))
    ratios: list[evaluation.Value] = []

    def proportional(one: list[evaluation.Value], other: list[evaluation.Value]) -> bool:
        if not one[0] or not other[0]:
            return not one[0] and not other[0]
        ratios.append(evaluation.ratio(one[0], other[0]))
        if gold[1] in ("<", "\\le") and not (evaluation.is_real(ratios[-1]) and ratios[-1] > 0):
            return False
        return evaluation.same(ratios[0], ratios[-1])

    return _agree([wanted], [found], proportional) and bool(ratios)


def _as_interval(relation: Answer) -> Answer | None:
    """Returns the interval of a chain around one symbol: x < 5 is (-oo, 5), and so is 5 > x."""
    if not set(relation.marks) <= _FLIPPED.keys() or len(relation.items) > 3:
        return None
    sides, signs = list(relation.items), list(relation.marks)
    if signs[0] in (">", "\\ge"):
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    if any(sign in (">", "\\ge") for sign in signs):
        return None
    about = _find_symbol(relation)
    if not _is_symbol(about):
        return None
    middle = sides.index(about)
    low, opening = (sides[0], signs[0]) if middle else (answers.parse("-\\infty"), "<")
    high, closing = (sides[-1], signs[-1]) if middle < len(sides) - 1 else (answers.parse("\\infty"), "<")
    marks = ("[" if opening == "\\le" else "(", "]" if closing == "\\le" else ")")
    return Answer("tuple", f"{marks[0]}{low.text},{high.text}{marks[1]}", (low, high), marks)


def _is_symbol(side: Answer) -> bool:
    return side.tree is not None and side.tree[0] == "symbol"
