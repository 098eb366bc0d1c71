"""What the policy is trained and evaluated on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from rlvr import errors

_Options = TypeVar("_Options")


@dataclasses.dataclass
class TaskSetConfig:
    """One set of tasks: a part of the training stream, an evaluation set, or both.

    Attributes:
        source: key of `rlvr.data.sources.SOURCES`: "arithmetic", "string_programs", "reasoning_gym",
            "gsm8k" or "jsonl".
        name: label in reports; must differ between sets; "" means the source's name. For reasoning_gym it is
            also the generator's name, unless `options["generator"]` names that.
        weight: share of the training stream, relative to the other sets'; 0 means the set is only evaluated.
            Grain rounds shares down to a hundredth of the smallest one.
        train_size: problems to train on; 0 means all there are, which reasoning_gym and
            string_programs cannot do.
            From files, the first rows are taken.
        eval_size: problems of the evaluation split; 0 means that the set is not evaluated.
        answer_format: key of `rlvr.verifiers.extract.ANSWER_FORMATS`: where an answer must stand to be
            rewarded.
        instruction: appended to every problem, after a line break.
        hint_template: how a problem's hint, where it has one, stands in the prompt of a teacher: a text with {prompt}
            and {hint}.
        system: system turn of every problem; "" means none of our own.
        path: for gsm8k, the folder of train.jsonl and test.jsonl; for jsonl, the folder of train.jsonl and
            eval.jsonl, or one file where only one of the two is needed. Each may end in .gz too.
        options: the source's own options; see the source's module.
    """

    source: str = "arithmetic"
    name: str = ""
    weight: float = 1.0
    train_size: int = 0
    eval_size: int = 0
    answer_format: str = "bare"
    instruction: str = ""
    hint_template: str = "{hint}\n{prompt}"
    system: str = ""
    path: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name under which the set is reported."""
        return self.name or self.source

    def validate(self, field: str) -> None:
        """Raises ConfigError naming what cannot work; `field` is where this set stands in the config.

        Whether the options fit the source is found out when the source is made.
        """
        from rlvr.data import sources, tasks  # they import this module

        errors.check_choice(f"{field}.source", self.source, sources.SOURCES)
        errors.check_choice(f"{field}.answer_format", self.answer_format, tasks.ANSWER_TEMPLATES)
        errors.check_at_least(f"{field}.weight", self.weight, 0)
        if not math.isfinite(self.weight):
            raise errors.ConfigError(f"{field}.weight={self.weight!r} must be finite")
        for size in ("train_size", "eval_size"):
            errors.check_at_least(f"{field}.{size}", getattr(self, size), 0)
        if self.weight == 0 and self.eval_size == 0:
            raise errors.ConfigError(f"{field} ({self.label}) has weight=0 and eval_size=0: it is never used")
        for name in ("{hint}", "{prompt}"):
            if self.hint_template.count(name) != 1:
                raise errors.ConfigError(f"{field}.hint_template={self.hint_template!r} must hold {name} once")
        needs_path = self.source in sources.FILE_SOURCES
        if needs_path and not self.path:
            raise errors.ConfigError(f"{field}.path is empty: {self.source} tasks are read from files")
        if not needs_path and self.path:
            raise errors.ConfigError(f"{field}.path={self.path!r}: {self.source} tasks have no files")


@dataclasses.dataclass
class DataConfig:
    """All sets of tasks, and the order of training.

    Attributes:
        tasks: the sets.
        seed: decides the order of the training stream and nothing else: which problems there are, and on
            which side of the split, is the same for every seed, so that the seeds of a grid are comparable.
        pass_rates: file of how often the starting policy was right on each training problem
            (`launch.evaluate --pass_rates`), "" for none. It must know every problem.
        pass_rate_low, pass_rate_high: problems whose rate is outside of [low, high] are left out. Rates are noisy: a
            problem that failed 8 times of 8 has, at 95 %, a rate of up to 0.31.
    """

    tasks: tuple[TaskSetConfig, ...] = ()
    seed: int = 0
    pass_rates: str = ""
    pass_rate_low: float = 0.0
    pass_rate_high: float = 1.0

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work."""
        errors.check_at_least("data.seed", self.seed, 0)
        errors.check_between("data.pass_rate_low", self.pass_rate_low, 0.0, 1.0)
        errors.check_between("data.pass_rate_high", self.pass_rate_high, self.pass_rate_low, 1.0)
        if not self.pass_rates and (self.pass_rate_low, self.pass_rate_high) != (0.0, 1.0):
            raise errors.ConfigError(
                f"data.pass_rate_low={self.pass_rate_low} and data.pass_rate_high={self.pass_rate_high} choose by pass "
                "rates, but data.pass_rates is empty: name the file"
            )
        if not self.tasks:
            raise errors.ConfigError("data.tasks is empty: at least one task set is needed")
        seen: dict[str, int] = {}
        for i, task_set in enumerate(self.tasks):
            task_set.validate(f"data.tasks[{i}]")
            if task_set.label in seen:
                raise errors.ConfigError(
                    f"data.tasks[{i}].name: the label {task_set.label!r} is already that of "
                    f"data.tasks[{seen[task_set.label]}]; labels must differ"
                )
            seen[task_set.label] = i


def parse_options(options_class: type[_Options], options: Mapping[str, Any], field: str) -> _Options:
    """Returns the options dataclass filled in.

    Raises:
        ConfigError: a name that it does not have, or a value that is not of the type of the default.
    """
    defaults = {option.name: option.default for option in dataclasses.fields(options_class)}  # type: ignore[arg-type]
    check_options(options, defaults, field)
    for name, value in options.items():
        check_type(f"{field}.options[{name!r}]", value, type(defaults[name]))
    return options_class(**options)


def check_type(field: str, value: Any, wanted: type) -> None:
    """Raises ConfigError unless the value is one of bool, int, float (then finite), str, or tuple (of texts)."""
    words = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}
    if wanted is tuple:
        fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    elif wanted is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    if not fits:
        raise errors.ConfigError(f"{field}={value!r} must be {words.get(wanted, 'a list of texts')}")


def check_options(options: Mapping[str, Any], known: Iterable[str], field: str) -> None:
    """Raises ConfigError for an option whose name is not among `known`."""
    known = sorted(known)
    for name in options:
        if name not in known:
            raise errors.ConfigError(
                f"{field}.options[{name!r}] is not known{errors.nearest(name, known)} "
                f"(accepted: {', '.join(known) or 'none'})"
            )
