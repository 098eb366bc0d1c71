"""From the text of one expression, in LaTeX or plain notation, to a tree: a parser that cannot hang.

One pass without backtracking; length, depth and number of nodes are bounded, so that a hostile text costs no more
than a long one. A tree is a tuple (kind, ...): ("number", Fraction), ("symbol", name), ("constant", name),
("based", digits, base), or (operation, tree, ...), of which "add" and "multiply" take any number of trees. What the
grammar does not know raises `ParseError`.
"""

from __future__ import annotations

import fractions
import re
from typing import Any, NoReturn

from rlvr.verifiers import latex

Tree = tuple[Any, ...]

_MAX_CHARACTERS, _MAX_DEPTH, _MAX_NODES = 1500, 40, 1200

_TOKEN = re.compile(
    r"(?P<number>\d*\.\d*\\overline\s*\{\s*\d+\s*\}|(?:\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"|(?P<command>\\[A-Za-z]+|\\.)|(?P<word>[A-Za-z]+)|(?P<sign>[-+*/^_!|(){}\[\]%,'])|(?P<space>\s+)",
    re.ASCII | re.DOTALL,
)
_PLAIN_NAMES = (
    "infinity",
    *sorted(latex.FUNCTIONS, key=len, reverse=True),
    "theta",
    "alpha",
    "beta",
    "pi",
    "inf",
    "oo",
)
_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".split()
)
_CONSTANTS = {"pi": "pi", "infty": "infinity", "infinity": "infinity", "inf": "infinity", "oo": "infinity"}
_ENDS = {"(": ")", "[": "]", "{": "}", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_OPAQUE = ("f", "g", "h")  # f(x) names a value; x(y + 1) is a product


class ParseError(ValueError):
    """The text is no expression that this parser knows."""


def parse(text: str) -> Tree:
    """Returns the tree of a tidied text. Raises ParseError."""
    if len(text) > _MAX_CHARACTERS:
        raise ParseError(f"an expression of {len(text)} characters")
    parser = _Parser(_tokenise(text))
    tree = parser.read_sum(0)
    if parser.here < len(parser.tokens):
        parser.fail()
    return tree


def _tokenise(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ParseError(f"unknown character {text[position]!r}")
        position = match.end()
        if match["word"]:
            tokens += _cut_word(match["word"])
        elif not match["space"]:
            tokens.append(match[0])
    return tokens


def _cut_word(word: str) -> list[str]:
    """Cuts a run of letters: names of functions and constants become commands, other letters are symbols."""
    tokens: list[str] = []
    i = 0
    while i < len(word):
        name = next((name for name in _PLAIN_NAMES if word.startswith(name, i)), None)
        if name:
            tokens.append("\\" + name)
        else:
            tokens.append(word[i])
        i += len(name or word[i])
    return tokens


def is_number(token: str) -> bool:
    return token[:1].isdigit() or (token[:1] == "." and len(token) > 1)


class _Parser:
    """Recursive descent with one token of lookahead; `level` is the depth of the recursion."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.here, self.nodes = tokens, 0, 0
        self.bars = 0  # open |...|: a bar then closes

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.here + ahead] if self.here + ahead < len(self.tokens) else ""

    def fail(self) -> NoReturn:
        raise ParseError(f"unexpected {self.peek() or 'end'!r}")

    def take(self, token: str = "") -> str:
        found = self.peek()
        if not found or (token and found != token):
            self.fail()
        self.here += 1
        return found

    def node(self, *parts: Any) -> Tree:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise ParseError(f"more than {_MAX_NODES} operations")
        return parts

    def descend(self, level: int) -> None:
        if level > _MAX_DEPTH:
            raise ParseError(f"nested deeper than {_MAX_DEPTH}")

    def take_signs(self) -> str:
        """Takes a run of + and -, and returns the one sign it amounts to."""
        sign = "+"
        while self.peek() in ("+", "-"):
            sign = "+" if self.take() == sign else "-"
        return sign

    def negate(self, sign: str, tree: Tree) -> Tree:
        return tree if sign == "+" else self.node("negate", tree)

    def read_sum(self, level: int) -> Tree:
        self.descend(level)
        terms = [self.read_product(level)]
        while self.peek() in ("+", "-"):
            sign = self.take()
            terms.append(self.negate(sign, self.read_product(level)))
        return terms[0] if len(terms) == 1 else self.node("add", *terms)

    def read_product(self, level: int) -> Tree:
        """Reads factors: those after a slash are inverted, left to right (1/2x is x/2)."""
        signs = self.take_signs()
        factors = [self.read_power(level)]
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                sign = self.take_signs()
                factor = self.read_power(level)
                factors.append(self.negate(sign, self.node("invert", factor) if token == "/" else factor))
            elif self.starts_factor():
                self.read_beside(factors, level)
            else:
                return self.negate(signs, factors[0] if len(factors) == 1 else self.node("multiply", *factors))

    def starts_factor(self) -> bool:
        """Whether the next token begins a factor that stands beside the last one without a sign."""
        token = self.peek()
        if token == "|":
            return not self.bars
        return bool(token) and (
            token[0].isalnum()
            or is_number(token)
            or token in ("(", "[", "{", "\\lfloor", "\\lceil")
            or (token[0] == "\\" and token[1:] in _BESIDE)
        )

    def read_beside(self, factors: list[Tree], level: int) -> None:
        """Reads a factor without a sign: the fraction of a mixed number after a numeral, else one of a product."""
        if is_number(self.peek()):
            self.fail()  # "2 3" is no product
        direct = self.peek() == "\\frac"  # 2(1/2) is a product
        factor = self.read_power(level)
        whole_and_part = (
            direct
            and factors[-1][0] == "number"
            and factor[0] == "fraction"
            and all(part[0] == "number" and part[1].denominator == 1 for part in (factors[-1], *factor[1:]))
            and factor[1][1] < factor[2][1]
        )
        if whole_and_part:
            factors[-1] = self.node("add", factors[-1], factor)
        else:
            factors.append(factor)

    def read_power(self, level: int) -> Tree:
        self.descend(level)
        tree = self.read_atom(level)
        for _ in range(_MAX_DEPTH):
            token = self.peek()
            if token == "!":
                self.take()
                tree = self.node("factorial", tree)
            elif token == "%":
                self.take()
                tree = self.node("divide", tree, ("number", fractions.Fraction(100)))
            elif token == "^":
                self.take()
                if self.is_degree():
                    tree = self.node("degrees", tree)
                else:
                    tree = self.node("power", tree, self.read_script(level + 1))
            else:
                return tree
        self.fail()

    def is_degree(self) -> bool:
        for tokens in (("\\circ",), ("{", "\\circ", "}")):
            if tuple(self.tokens[self.here : self.here + len(tokens)]) == tokens:
                self.here += len(tokens)
                return True
        return False

    def read_script(self, level: int) -> Tree:
        """Reads what stands after ^: a group, or a signed atom (a plain 2^-3), in which 2^3^2 is 2^(3^2)."""
        self.descend(level)
        if self.peek() in ("+", "-"):
            return self.negate(self.take(), self.read_power(level))
        tree = self.read_atom(level)
        if self.peek() == "^":
            self.take()
            tree = self.node("power", tree, self.read_script(level + 1))
        return tree

    def read_atom(self, level: int) -> Tree:
        self.descend(level)
        token = self.take()
        if is_number(token):
            return self.read_number(token)
        if token in _ENDS:
            return self.read_group(token, level)
        if token.isalpha():
            return self.read_symbol(token, level)
        if token[0] == "\\":
            return self.read_command(token[1:], level)
        self.here -= 1
        self.fail()

    def read_number(self, token: str) -> Tree:
        if "\\" in token:
            return self.node("number", _read_repeating(token))
        digits = token.replace(" ", "")
        if self.peek() == "_":
            self.take()
            base = self.read_digits()
            if base != "10":
                if not 2 <= int(base) <= 36 or "." in digits or any(int(digit, 36) >= int(base) for digit in digits):
                    raise ParseError(f"{digits} is no number in base {base}")
                return self.node("based", digits, int(base))
        return self.node("number", fractions.Fraction(digits))

    def read_digits(self) -> str:
        token = self.take()
        if token == "{":
            token = self.take()
            self.take("}")
        elif is_number(token) and len(token) > 1:
            raise ParseError("a subscript of two digits needs braces")
        if not token.isdigit() or len(token) > 2:
            raise ParseError(f"no base {token!r}")
        return token

    def read_group(self, opening: str, level: int) -> Tree:
        outer, self.bars = self.bars, int(opening == "|")
        tree = self.read_sum(level + 1)
        self.take(_ENDS[opening])
        self.bars = outer
        if opening == "|":
            return self.node("abs", tree)
        if opening == "\\lfloor":
            return self.node("floor", tree)
        return self.node("ceiling", tree) if opening == "\\lceil" else tree

    def read_symbol(self, letter: str, level: int) -> Tree:
        if self.peek() == "'":
            raise ParseError("derivatives are not read")
        if letter in ("e", "i") and self.peek() != "_":
            return self.node("constant", letter)
        name = letter
        if self.peek() == "_":
            self.take()
            name += "_" + self.read_verbatim()
        if name[0] in _OPAQUE and self.peek() == "(":
            name += self.read_verbatim()
        return self.node("symbol", name)

    def read_verbatim(self) -> str:
        """Reads one token or one bracketed run of tokens as a name."""
        tokens = [self.take()]
        if tokens[0] in ("{", "("):
            depth = 1
            while depth:
                tokens.append(self.take())
                depth += {"{": 1, "(": 1, "}": -1, ")": -1}.get(tokens[-1], 0)
            if tokens[0] == "{":
                tokens = tokens[1:-1]
        return "".join(tokens)

    def read_command(self, name: str, level: int) -> Tree:
        if name in _CONSTANTS:
            return self.node("constant", _CONSTANTS[name])
        if name in _GREEK:
            return self.read_symbol("\\" + name, level)
        if name == "frac":
            return self.node("fraction", self.read_argument(level), self.read_argument(level))
        if name == "binom":
            return self.node("binomial", self.read_argument(level), self.read_argument(level))
        if name == "sqrt":
            return self.read_root(level)
        if name in _UNARY:
            return self.read_function(name, level)
        self.here -= 1
        self.fail()

    def read_argument(self, level: int) -> Tree:
        """Reads a LaTeX argument: a group, or one digit or atom (\\frac12)."""
        token = self.peek()
        if is_number(token) and len(token) > 1 and token.isdigit():
            self.tokens[self.here] = token[1:]
            return self.node("number", fractions.Fraction(token[0]))
        return self.read_atom(level + 1)

    def read_root(self, level: int) -> Tree:
        index: Tree = ("number", fractions.Fraction(2))
        if self.peek() == "[":
            index = self.read_group(self.take(), level)
        return self.node("root", self.read_argument(level), index)

    def read_function(self, name: str, level: int) -> Tree:
        base: Tree | None = None
        power: Tree | None = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                power = self.read_script(level + 1)
            else:
                base = self.read_argument(level)
        if self.peek() in ("(", "[", "{"):
            argument = self.read_group(self.take(), level)
        else:
            argument = self.read_bare_argument(level)
        tree = self.node(name, argument) if base is None else self.node("log_base", argument, base)
        if base is not None and name != "log":
            raise ParseError(f"\\{name} has no base")
        if power is None:
            return tree
        if power == ("negate", ("number", fractions.Fraction(1))) and name in ("sin", "cos", "tan"):
            return self.node("arc" + name, argument)
        return self.node("power", tree, power)

    def read_bare_argument(self, level: int) -> Tree:
        """Reads the argument of "sin 2x": factors side by side, up to a sign or another function."""
        sign = self.take() if self.peek() in ("+", "-") else "+"
        factors = [self.read_power(level + 1)]
        while self.starts_factor() and self.peek()[1:] not in _UNARY and self.peek() not in ("(", "["):
            self.read_beside(factors, level + 1)
        return self.negate(sign, factors[0] if len(factors) == 1 else self.node("multiply", *factors))


_UNARY = frozenset("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp".split())
_BESIDE = _UNARY | _GREEK | _CONSTANTS.keys() | {"frac", "binom", "sqrt"}


def _read_repeating(token: str) -> fractions.Fraction:
    """Returns the value of 0.1\\overline{36}."""
    start, period = token.rstrip("} ").split("\\overline")
    whole, _, fixed = start.partition(".")
    period = period.lstrip("{ ")
    scale = 10 ** len(fixed)
    repeating = fractions.Fraction(int(period), (10 ** len(period) - 1) * scale)
    return fractions.Fraction(int(whole + fixed or "0"), scale) + repeating
