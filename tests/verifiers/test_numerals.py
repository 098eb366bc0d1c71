"""The reading of numbers, exactly, with what may stand around them."""

import fractions

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr.verifiers import numerals


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" -1,234.50 ", fractions.Fraction(-2469, 2)),
        ("+.5", fractions.Fraction(1, 2)),
        ("$18", 18),
        ("-$18.00", -18),
        ("\\$-18", -18),
        ("$18$", 18),
        ("\u22127", -7),
        ("50%", 50),
        ("50\\%", 50),
        ("3 / 4", fractions.Fraction(3, 4)),
        ("-\\frac{3}{4}", fractions.Fraction(-3, 4)),
        ("1{,}000", 1000),
        ("18.", 18),
        ("2e3", 2000),
        ("0.1", fractions.Fraction(1, 10)),
        ("1,23", None),
        ("1.234,5", None),
        ("--5", None),
        ("-$-5", None),
        ("3/0", None),
        ("1e99999", None),
        ("1 2", None),
        ("nan", None),
        ("inf", None),
        ("\u0664\u0662", 42),  # Arabic-Indic digits
        ("\uff14\uff12", 42),  # wide ones
        ("2\u00bd", fractions.Fraction(5, 2)),
        ("2 3/4", fractions.Fraction(11, 4)),
        ("2\\frac34", fractions.Fraction(11, 4)),
        ("2 7/4", None),  # no mixed number
        ("\\frac1{72}", fractions.Fraction(1, 72)),
        ("1 000", 1000),
        ("10\\,000", 10_000),
        ("11,\\! 111,\\! 111", 11_111_111),
        ("11, 111", None),
        ("1.2 \\times 10^{-3}", fractions.Fraction(12, 10_000)),
        ("10^5", 100_000),
        ("10^{10^{10}}", None),
        ("5 million", 5_000_000),
        ("\x1b[1m42\x1b[0m", 42),
        ("4\x002", None),
        ("18 is wrong", None),
        ("18 or 19", None),
        ("5x", None),
        ("3 pi", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_numbers(text, value):
    quantity = numerals.parse_quantity(text)
    assert (None if quantity is None else quantity.value) == value


@pytest.mark.parametrize(
    ("text", "unit", "percent"),
    [
        ("18 dollars", "dollars", False),
        ("$18", "dollar", False),
        ("1,000.99\u20ac", "euro", False),
        ("50\\%", "", True),
        ("28 percent", "", True),
        ("90^\\circ", "degree", False),
        ("15\\mbox{ cm}^2", "cm", False),
        ("100 \\text{ square units}", "square units", False),
        ("45 miles per hour", "miles per hour", False),
        ("9\\text{ a.m.}", "am", False),
        ("12 apples", "apples", False),
        ("5 m", "m", False),
    ],
)
def test_what_stands_around_a_number(text, unit, percent):
    quantity = numerals.parse_quantity(text)
    assert (quantity.unit, quantity.percent) == (unit, percent)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("50\\%", "0.5", True),
        ("50", "50%", True),
        ("0.5", "50%", True),
        ("0.5%", "50%", False),
        ("50", "0.5", False),
        ("5.4 cents", "$5.4", False),
        ("5 km", "5 m", False),
        ("5 km", "5 kilometers", True),
        ("5 km", "5", True),
        ("5 apples", "5 pears", True),  # no units that are known
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("1/3", "0.333334", False),
        ("2/3", "0.666666", True),
        ("2/3", "0.666667", True),
        ("2/3", "0.666668", False),
        ("0.666667", "2/3", True),
        ("7/8", "0.875001", False),
        ("0.000001", "0.0000011", False),
    ],
)
def test_equality_of_quantities(gold, answer, same):
    assert numerals.equal(numerals.parse_quantity(gold), numerals.parse_quantity(answer)) is same


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_written_numbers_are_read_back(digits, places):
    value = fractions.Fraction(digits, 10**places)
    sign, plain = ("-" if value < 0 else ""), f"{abs(digits) // 10**places:,}"
    decimals = f".{abs(digits) % 10**places:0{places}d}" if places else ""
    written = f"{sign}{plain}{decimals}"
    assert numerals.parse_quantity(written).value == value
    found = numerals.find_last_number(f"There were 12 of 5 kinds, so it is {written}, I believe.")
    assert numerals.parse_quantity(found).value == value
