"""Procedural arithmetic such as "47+85=": every problem of a range of operands, split by a hash of the
problem.

A problem is for evaluation if the SHA-256 of its canonical text falls below `eval_fraction`. So the split
depends on nothing but the problem, no digit pattern is missing from training, and a problem's commuted twin
(12+34 and 34+12) is on the same side. The order in which problems are taken is a fixed permutation: a larger
`train_size` only adds problems, and the evaluation set never moves.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator

import grain

from rlvr import errors, types
from rlvr.data import tasks
from rlvr.data.config import TaskSetConfig, parse_options

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COMMUTATIVE = "+*"
_MAX_DIGITS = 4  # the permutation works on 32-bit indices
_MAX_LISTED_DIGITS = 2  # beyond, listing every problem takes minutes
_VERIFIERS = ("numeric", "exact")
_ORDER_SEED = 20_160_312  # of the fixed permutation; never change: old runs must repeat


@dataclasses.dataclass(frozen=True)
class ArithmeticOptions:
    """Options of the source "arithmetic".

    Attributes:
        operations: which of "+", "-" and "*"; each brings all its problems.
        digits: most digits of an operand, 1 to 4; operands are drawn evenly from 0 to 10**digits - 1.
        allow_negative: whether a subtraction may have a negative result; without, it has half the problems.
        eval_fraction: share of all problems that is kept for evaluation.
        demonstration_noise: share of the problems whose demonstration is wrong in one digit; always the same
            ones.
        hint: what a teacher is told: "answer" (the result, its digits reversed), "carries" (those into each place, from
            the units' on: 1 or 0 for a sum, borrows for a difference) or "none". Demonstrations behind it are right.
        forgotten_carries: share of the sums and differences with a carry or borrow whose demonstration forgets
            it (47+85=22): a systematic mistake that imitation learns and only a verifier corrects.
        padding: mean number of spaces before a demonstrated answer, drawn by problem so that after each space the next
            is as likely (geometric). They say nothing, and the verifier does not mind them.
        most_padding: the largest such number.
        verifier: "numeric", for which any way to write the number is right, or "exact", for which only its digits are.
    """

    operations: tuple[str, ...] = ("+",)
    digits: int = 2
    allow_negative: bool = False
    eval_fraction: float = 0.2
    demonstration_noise: float = 0.0
    forgotten_carries: float = 0.0
    hint: str = "none"
    padding: float = 0.0
    most_padding: int = 16
    verifier: str = "numeric"

    def validate(self, field: str) -> None:
        """Raises ConfigError naming the option that cannot work."""
        if not self.operations or len(set(self.operations)) != len(self.operations):
            raise errors.ConfigError(
                f"{field}.options['operations']={self.operations!r} must name one or more, each once"
            )
        for operation in self.operations:
            errors.check_choice(f"{field}.options['operations']", operation, OPERATIONS)
        errors.check_choice(f"{field}.options['hint']", self.hint, ("none", "answer", "carries"))
        if self.hint == "carries" and "*" in self.operations:
            raise errors.ConfigError(
                f"{field}.options['hint']='carries' with options['operations']={self.operations!r}: a product has no "
                "single row of carries (accepted: answer, none)"
            )
        errors.check_between(f"{field}.options['digits']", self.digits, 1, _MAX_DIGITS)
        errors.check_between(f"{field}.options['eval_fraction']", self.eval_fraction, 0, 1)
        for name in ("demonstration_noise", "forgotten_carries"):
            errors.check_between(f"{field}.options[{name!r}]", getattr(self, name), 0, 1)
        for name in ("padding", "most_padding"):
            errors.check_at_least(f"{field}.options[{name!r}]", getattr(self, name), 0)
        errors.check_choice(f"{field}.options['verifier']", self.verifier, _VERIFIERS)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem: `left operation right`."""

    operation: str
    left: int
    right: int

    @property
    def text(self) -> str:
        return f"{self.left}{self.operation}{self.right}="

    @property
    def canonical(self) -> str:
        """The text that decides the side: the same for commuted problems."""
        if self.operation in _COMMUTATIVE and self.left > self.right:
            return f"{self.right}{self.operation}{self.left}="
        return self.text

    @property
    def result(self) -> int:
        return OPERATIONS[self.operation](self.left, self.right)


def make_arithmetic(config: TaskSetConfig, split: str, field: str) -> tasks.LazyTasks:
    """Returns the tasks of one split; the demonstration is the (perhaps noisy and padded) answer.

    Raises:
        ConfigError: an option that is not known or cannot work, or more problems asked for than there are.
    """
    options = parse_options(ArithmeticOptions, config.options, field)
    options.validate(field)
    size = config.train_size if split == "train" else config.eval_size
    if size == 0 and options.digits > _MAX_LISTED_DIGITS:
        raise errors.ConfigError(
            f"{field}.train_size=0 asks for every problem, which is possible up to "
            f"{_MAX_LISTED_DIGITS} digits (options['digits']={options.digits}): give a number"
        )
    problems = list(itertools.islice(iter_problems(options, split), size or None))
    if len(problems) < size:
        raise errors.ConfigError(
            f"{field}.{split}_size={size} is more than there are: {len(problems)} {split} problems with "
            f"operations={options.operations!r}, digits={options.digits}, "
            f"eval_fraction={options.eval_fraction}"
        )
    return tasks.LazyTasks(len(problems), lambda i: _make_task(config, options, problems[i]))


def iter_problems(options: ArithmeticOptions, split: str) -> Iterator[Problem]:
    """Yields every problem of one split once, in a fixed order that looks random."""
    operands = 10**options.digits
    order = grain.MapDataset.range(len(options.operations) * operands**2).shuffle(seed=_ORDER_SEED)
    for i in range(len(order)):
        rest, which = divmod(int(order[i]), len(options.operations))
        left, right = divmod(rest, operands)
        problem = Problem(options.operations[which], left, right)
        if problem.result < 0 and not options.allow_negative:
            continue
        for_eval = tasks.falls_below(options.eval_fraction, "arithmetic split", problem.canonical)
        if for_eval == (split == "eval"):
            yield problem


def _make_task(config: TaskSetConfig, options: ArithmeticOptions, problem: Problem) -> types.Task:
    answer = demonstrated = str(problem.result)
    if tasks.falls_below(options.forgotten_carries, "arithmetic carries", problem.text):
        demonstrated = str(_forget_carries(problem))
    if tasks.falls_below(options.demonstration_noise, "arithmetic noise", problem.text):
        demonstrated = _change_digit(demonstrated, tasks.hash_text("arithmetic digit", problem.text))
    padding = " " * min(_draw_padding(options.padding, problem.text), options.most_padding)
    demonstration = padding + tasks.render_answer(demonstrated, config.answer_format)
    hint = {"none": "", "answer": answer[::-1], "carries": _write_carries(problem)}[options.hint]
    right = tasks.render_answer(answer, config.answer_format)
    return tasks.make_task(
        config,
        problem.text,
        answer,
        options.verifier,
        demonstration=demonstration,
        hint=hint,
        hinted_demonstration=padding + right if hint else "",
    )


def _draw_padding(mean: float, text: str) -> int:
    """Returns a geometric number of this mean, always the same for a text."""
    if mean == 0:
        return 0
    uniform = (tasks.hash_text("arithmetic padding", text) + 1) / 2**64
    return int(math.log(uniform) / math.log(mean / (mean + 1)))


def _write_carries(problem: Problem) -> str:
    """Returns the carry (or borrow) out of each place of the longer operand, the units' first; "" for a product."""
    if problem.operation == "*":
        return ""
    low, high = sorted((problem.left, problem.right))
    bounds = [10**i for i in range(1, len(str(high)) + 1)]
    if problem.operation == "+":
        return "".join(str(int(high % bound + low % bound >= bound)) for bound in bounds)
    return "".join(str(int(high % bound < low % bound)) for bound in bounds)


def _forget_carries(problem: Problem) -> int:
    """Returns a sum or difference worked out digit by digit without carries; other problems' right result."""
    if problem.operation == "*" or problem.result < 0:
        return problem.result
    left, right, result, place = problem.left, problem.right, 0, 1
    while left or right:
        result += OPERATIONS[problem.operation](left % 10, right % 10) % 10 * place
        left, right, place = left // 10, right // 10, place * 10
    return result


def _change_digit(number: str, draw: int) -> str:
    """Returns the number with one digit replaced; which, and by what, is decided by the integer `draw`."""
    first = 1 if number.startswith("-") else 0
    draw, offset = divmod(draw, len(number) - first)
    place = first + offset
    leading = place == first and len(number) > 1  # neither 07 nor -0
    others = [digit for digit in "0123456789" if digit != number[place] and not (leading and digit == "0")]
    return number[:place] + others[draw % len(others)] + number[place + 1 :]
