"""The value of an expression's tree, exact while it is rational, and never larger than can be handled at once.

Rational values are `Fraction`; all others mpmath numbers of 100 digits. A power, factorial or fraction whose
result would be too large raises `TooLarge` before it is computed. So the time of an evaluation is bounded by the
size of its tree, and the same tree always has the same value.
"""

from __future__ import annotations

import fractions
import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath

from rlvr.verifiers.expression import Tree

Value = Any  # Fraction, or a number of `_CONTEXT`

_CONTEXT = mpmath.mp.clone()
_CONTEXT.dps = 100
# Relative: values closer than this are equal; a sum this much smaller than its terms is rounding, that is, zero.
_EQUAL, _NOISE = _CONTEXT.mpf(10) ** -50, _CONTEXT.mpf(10) ** -80
_MAX_BITS = 24_000  # of exact numerators and denominators: beyond, 100 digits must do
_MAX_LOG2 = 1 << 20  # of any value's size
_MAX_FACTORIAL = 2_500


class TooLarge(ArithmeticError):
    """A value that is not worth computing."""


class Undefined(ArithmeticError):
    """No value: a division by zero, a logarithm of zero, infinity less infinity."""


def evaluate(tree: Tree, values: Mapping[str, Value], *, real: bool = False) -> Value:
    """Returns the value of a tree under an assignment of its symbols.

    Args:
        tree: as `expression.parse` makes it.
        values: a value for every symbol of the tree.
        real: whether a complex value on the way counts as none, for branches of roots and logarithms differ there.

    Raises:
        TooLarge: a value on the way has more than a million binary places.
        Undefined: there is no value.
    """
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind == "symbol":
        return values[tree[1]]
    if kind == "constant":
        return _constants()[tree[1]]
    if kind == "based":
        return fractions.Fraction(int(tree[1], tree[2]))
    operands = [evaluate(operand, values, real=real) for operand in tree[1:]]
    try:
        result = _OPERATIONS[kind](*operands)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Undefined(str(error)) from error
    result = _settle(result)
    if real and not is_real(result):
        raise Undefined("a complex value")
    return result


def symbols(tree: Tree) -> set[str]:
    """Returns the names of the symbols in a tree."""
    if tree[0] == "symbol":
        return {tree[1]}
    return set().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


def is_far(trial: int) -> bool:
    """Whether a trial's numbers are so large that a power of them may be `TooLarge`."""
    return trial % 3 == 2


def sample(names: set[str], trial: int) -> dict[str, Value]:
    """Returns a rational number for every symbol, the same for the same name and trial.

    In the trials 0 and 1 all are positive; in later ones about half are negative, each by its own. Most lie between
    1/2 and 3, those of a far trial between 10 and 60: what is alike near zero need not be so further out.
    """
    values: dict[str, Value] = {}
    for name in names:
        seed = int.from_bytes(hashlib.sha256(f"{trial} {name}".encode()).digest()[:8], "big")
        value = fractions.Fraction(1, 2) + fractions.Fraction(seed % 9_973, 3_989)
        value *= 20 if is_far(trial) else 1
        values[name] = -value if trial > 1 and seed >> 32 & 1 else value
    return values


def same(one: Value, other: Value) -> bool:
    """Whether two values are equal, exactly or to 50 digits."""
    if isinstance(one, fractions.Fraction) and isinstance(other, fractions.Fraction):
        return one == other
    one, other = _inexact(one), _inexact(other)
    if one == other:
        return True
    if not (_CONTEXT.isfinite(one) and _CONTEXT.isfinite(other)):
        return False
    return bool(abs(one - other) <= _EQUAL * max(abs(one), abs(other)))


def ratio(one: Value, other: Value) -> Value:
    """Returns one / other. Raises Undefined where other is zero."""
    return _divide(one, other)


def to_fraction(value: Value) -> fractions.Fraction:
    """Returns a real, finite value as the fraction it is in binary."""
    if isinstance(value, fractions.Fraction):
        return value
    if not _CONTEXT.isfinite(value):
        raise Undefined("an infinite value")
    sign, mantissa, exponent, _ = value._mpf_
    if abs(exponent) > _MAX_BITS:
        raise TooLarge("a value far from one")
    return fractions.Fraction(-mantissa if sign else mantissa) * fractions.Fraction(2) ** exponent


def is_real(value: Value) -> bool:
    return isinstance(value, fractions.Fraction) or not _CONTEXT.im(value)


def _constants() -> dict[str, Value]:
    return {"pi": +_CONTEXT.pi, "e": +_CONTEXT.e, "i": _CONTEXT.mpc(0, 1), "infinity": _CONTEXT.inf}


def _inexact(value: Value) -> Value:
    if isinstance(value, fractions.Fraction):
        return _CONTEXT.mpf(value.numerator) / value.denominator
    return value


def _settle(value: Value) -> Value:
    """Keeps a value within the limits: a long fraction becomes inexact, a complex without imaginary part real."""
    if isinstance(value, fractions.Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) <= _MAX_BITS:
            return value
        return _inexact(value)
    if _CONTEXT.isnan(value):
        raise Undefined("not a number")
    if isinstance(value, _CONTEXT.mpc):
        real, imaginary = value.real, value.imag
        if abs(imaginary) <= _NOISE * abs(real):
            value = real
        elif abs(real) <= _NOISE * abs(imaginary):
            value = _CONTEXT.mpc(0, imaginary)
    if value and _CONTEXT.isfinite(value) and abs(_CONTEXT.mag(value)) > _MAX_LOG2:
        raise TooLarge("a value of more than a million binary places")
    return value


def _add(one: Value, other: Value) -> Value:
    if isinstance(one, fractions.Fraction) and isinstance(other, fractions.Fraction):
        return _settle(one + other)
    one, other = _inexact(one), _inexact(other)
    total = one + other
    cancelled = _CONTEXT.isfinite(total) and abs(total) <= _NOISE * max(abs(one), abs(other))
    return fractions.Fraction(0) if cancelled else total


def _multiply(one: Value, other: Value) -> Value:
    exact = isinstance(one, fractions.Fraction) and isinstance(other, fractions.Fraction)
    return _settle(one * other if exact else _inexact(one) * _inexact(other))


def _divide(one: Value, other: Value) -> Value:
    if not other:
        raise Undefined("division by zero")
    exact = isinstance(one, fractions.Fraction) and isinstance(other, fractions.Fraction)
    return one / other if exact else _inexact(one) / _inexact(other)


def _power(base: Value, exponent: Value) -> Value:
    if not base:
        if not is_real(exponent) or exponent <= 0:
            raise Undefined("a power of zero")
        return fractions.Fraction(0)
    if isinstance(base, fractions.Fraction) and isinstance(exponent, fractions.Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
        if bits <= _MAX_BITS:
            return base**exponent.numerator
    base, exponent = _inexact(base), _inexact(exponent)
    if not (_CONTEXT.isfinite(base) and _CONTEXT.isfinite(exponent)):
        raise Undefined("a power of infinity")
    if abs(exponent) * (abs(_CONTEXT.mag(base)) + 1) > _MAX_LOG2:
        raise TooLarge("a power of more than a million binary places")
    return base**exponent


def _root(radicand: Value, index: Value) -> Value:
    if not isinstance(index, fractions.Fraction) or index.denominator != 1 or not 1 <= index <= 10_000:
        return _power(radicand, _divide(fractions.Fraction(1), index))
    if isinstance(radicand, fractions.Fraction):
        negative_odd = radicand < 0 and index % 2
        magnitude = abs(radicand) if negative_odd else radicand
        exact = _exact_root(magnitude, index.numerator) if magnitude >= 0 else None
        root = exact if exact is not None else _power(magnitude, 1 / index)
        return -root if negative_odd else root
    if is_real(radicand) and radicand < 0 and index % 2:
        return -_power(-radicand, 1 / index)
    return _power(radicand, 1 / index)


def _exact_root(value: fractions.Fraction, index: int) -> fractions.Fraction | None:
    parts = []
    for part in (value.numerator, value.denominator):
        root = math.isqrt(part) if index == 2 else round(part ** (1 / index)) if part.bit_length() < 1000 else -1
        if root < 0 or root**index != part:
            return None
        parts.append(root)
    return fractions.Fraction(*parts)


def _factorial(value: Value) -> Value:
    if not is_real(value) or not -_MAX_FACTORIAL <= value <= _MAX_FACTORIAL:
        raise TooLarge("a factorial of more than 2500")
    if isinstance(value, fractions.Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined("a factorial of a negative number")
        return fractions.Fraction(math.factorial(value.numerator))
    return _CONTEXT.gamma(_inexact(value) + 1)


def _binomial(top: Value, bottom: Value) -> Value:
    whole = all(isinstance(v, fractions.Fraction) and v.denominator == 1 and v >= 0 for v in (top, bottom))
    if whole and min(bottom, top - bottom) <= _MAX_FACTORIAL and top < 10**6:
        return fractions.Fraction(math.comb(int(top), int(bottom)))
    return _divide(_factorial(top), _multiply(_factorial(bottom), _factorial(_add(top, -bottom))))


def _function(name: str, *, periodic: bool = False) -> Callable[[Value], Value]:
    """Returns a function of mpmath, for arguments that are not too large for it."""

    def apply(value: Value) -> Value:
        value = _inexact(value)
        if not _CONTEXT.isfinite(value):
            raise Undefined(f"{name} of infinity")
        if _CONTEXT.mag(value) > 18:  # |value| > 2**18: e to that is too large, and no answer has such an angle
            raise TooLarge(f"{name} of a large number")
        result = getattr(_CONTEXT, name)(value)
        return fractions.Fraction(0) if periodic and abs(result) < _NOISE else result

    return apply


def _logarithm(value: Value) -> Value:
    if not value:
        raise Undefined("a logarithm of zero")
    return fractions.Fraction(0) if value == 1 else _CONTEXT.log(_inexact(value))


def _round_down(value: Value) -> Value:
    if not is_real(value) or not abs(value) < 10**50:
        raise TooLarge("the floor of a large number")
    return fractions.Fraction(
        math.floor(value) if isinstance(value, fractions.Fraction) else int(_CONTEXT.floor(value))
    )


_TEN = fractions.Fraction(10)
_OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": lambda *terms: functools.reduce(_add, terms),
    "negate": lambda value: -value,
    "multiply": lambda *factors: functools.reduce(_multiply, factors),
    "invert": lambda value: _divide(fractions.Fraction(1), value),
    "divide": _divide,
    "fraction": _divide,
    "power": _power,
    "root": _root,
    "factorial": _factorial,
    "binomial": _binomial,
    "abs": abs,
    "floor": _round_down,
    "ceiling": lambda value: -_round_down(-value),
    "degrees": lambda value: _multiply(value, _CONTEXT.pi / 180),
    "ln": _logarithm,
    "log": _logarithm,
    "lg": lambda value: _divide(_logarithm(value), _logarithm(_TEN)),
    "log_base": lambda value, base: _divide(_logarithm(value), _logarithm(base)),
    "exp": _function("exp"),
    **{name: _function(name, periodic=True) for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    **{f"{name}h": _function(f"{name}h") for name in ("sin", "cos", "tan")},
    **{f"arc{name}": _function(f"a{name}") for name in ("sin", "cos", "tan")},
}
