"""From which arm (a task set, a bin of difficulty) the next prompts come: bandits, as pure functions of JSON states.

A step draws its prompts by one state; what their verdicts said of each arm makes the next. The policy changes, and with
it what the arms are worth: estimates forget, by a constant step size or a discount of what was counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv

from rlvr import errors
from rlvr.algo import multitask

ARMS = ("task", "bin", "prompt")
SIGNALS = ("accuracy", "variance", "abs_advantage", "progress")

State = Mapping[str, Any]


@dataclasses.dataclass
class CurriculumConfig:
    """Where the prompts of the RL come from.

    Attributes:
        sampler: "mixture": the task sets interleaved by their weights, without chance. "weights" and "uniform": arms
            drawn by the weights of the task sets, or evenly. Or a bandit: a key of `PROBABILITIES` or `CHOICES`, or
            "mopps", for prompts.
        arm: what is drawn: a "task" set, a "bin" of `data.pass_rates`, or ("mopps") a "prompt".
        bins: of equal width in [0, 1]; those without any prompt are no arms.
        signal: what an arm earns, by its groups of the step, in [0, 1]: "accuracy"; "variance", the mean of 4 p (1 - p)
            over groups with success rate p; "abs_advantage", the mean |A| of GRPO's advantages of the scores; or
            "progress", the change |accuracy - what was known of it|, of which much is noise where groups are few.
            Raw accuracy draws the easiest arm.
        step_size: of `value` and of the known accuracy, x <- (1 - step_size) x + step_size * (the step's).
        temperature: of "sec".
        epsilon: of "epsilon_greedy", the share that is drawn evenly.
        bonus: of "ucb", the factor of sqrt(2 ln t / n).
        learning_rate: eta of "exp3", a step; of the weights of "multitask_grpo", an AdamW step.
        discount: what is left a step of counts and sums ("ucb", "thompson", "exp3", rates of groups without a spread),
            and a pull of a prompt's counts ("mopps": towards its prior). 1 forgets nothing: a bandit then freezes.
        level: lambda of "multitask_grpo": what a task's accuracy counts beside its improvement. Small: tasks that do
            not improve gain weight; large: those that are worst.
        improvement_clip: bound of the improvement of "multitask_grpo".
        min_probability: of every arm that is open.
        warmup_steps: RL steps in which all open arms are drawn evenly.
        keep_shares: with `rollout.dynamic_rounds`, the groups that are learned from are to have the shares that were
            drawn, although arms have unequal rates of groups that are all right or all wrong; see
            `rlvr.algo.multitask`.
        retire_at: > 0: a prompt of which at least this share of a group is right is not drawn again (ScaleRL,
            2510.13786; 0.9 there) until all of its arm are.
        stages: labels of task sets that are opened one after the other; the others are open from the start.
        stage_accuracy, stage_steps: the next stage begins when the running accuracy of the set that was opened last is
            at least this, or after so many RL steps; 0: not for that.
    """

    sampler: str = "mixture"
    arm: str = "task"
    bins: int = 4
    signal: str = "abs_advantage"
    step_size: float = 0.5
    temperature: float = 0.2
    epsilon: float = 0.1
    bonus: float = 1.0
    learning_rate: float = 0.025
    discount: float = 1.0
    level: float = 0.25
    improvement_clip: float = 0.1
    min_probability: float = 0.0
    warmup_steps: int = 0
    keep_shares: bool = False
    retire_at: float = 0.0
    stages: tuple[str, ...] = ()
    stage_accuracy: float = 0.0
    stage_steps: int = 0

    def validate(self, dynamic: bool) -> None:
        """Raises ConfigError naming the field that cannot work; `dynamic` is whether there is dynamic sampling."""
        errors.check_choice("curriculum.sampler", self.sampler, ("mixture", *PROBABILITIES, *CHOICES, "mopps"))
        errors.check_choice("curriculum.arm", self.arm, ARMS)
        errors.check_choice("curriculum.signal", self.signal, SIGNALS)
        for name in ("step_size", "epsilon", "discount", "min_probability", "retire_at", "improvement_clip"):
            errors.check_between(f"curriculum.{name}", getattr(self, name), 0.0, 1.0)
        for name in ("bonus", "learning_rate", "level", "warmup_steps"):
            errors.check_at_least(f"curriculum.{name}", getattr(self, name), 0)
        errors.check_at_least("curriculum.temperature", self.temperature, 1e-3)
        errors.check_at_least("curriculum.bins", self.bins, 1)
        own = f"curriculum.sampler={self.sampler!r}"
        if (self.sampler == "mopps") != (self.arm == "prompt"):
            raise errors.ConfigError(
                f"{own} with curriculum.arm={self.arm!r}: 'mopps' draws prompts, the others do not"
            )
        if self.arm == "bin" and self.sampler in ("mixture", "weights"):
            raise errors.ConfigError(f"{own} goes by the weights of task sets, but curriculum.arm='bin'")
        if self.sampler == "thompson" and self.signal not in _UTILITIES:
            raise errors.ConfigError(
                f"{own} draws success rates, of which curriculum.signal={self.signal!r} is no function (accepted: "
                f"{', '.join(_UTILITIES)})"
            )
        if self.keep_shares and (not dynamic or self.sampler not in PROBABILITIES):
            raise errors.ConfigError(
                f"curriculum.keep_shares=True keeps what dynamic sampling changes (rollout.dynamic_rounds > 0), for "
                f"samplers with probabilities ({', '.join(PROBABILITIES)}), not {own}"
            )
        if self.sampler == "mopps" and self.retire_at:
            raise errors.ConfigError(
                f"curriculum.retire_at={self.retire_at}: {own} looks for half-known prompts anyway"
            )
        errors.check_between("curriculum.stage_accuracy", self.stage_accuracy, 0.0, 1.0)
        errors.check_at_least("curriculum.stage_steps", self.stage_steps, 0)
        if bool(self.stages) != bool(self.stage_accuracy or self.stage_steps):
            raise errors.ConfigError(
                f"curriculum.stages={self.stages} with stage_accuracy={self.stage_accuracy} and "
                f"stage_steps={self.stage_steps}: the sets and when they are opened go together"
            )
        if self.stages and (self.arm != "task" or self.sampler == "mixture"):
            raise errors.ConfigError(f"curriculum.stages open task sets, but {own} with arm={self.arm!r} draws no sets")


class Feedback(NamedTuple):
    """What the groups of a step said of each arm, all [K].

    Attributes:
        groups: sampled; where there are none, nothing is known of the arm.
        mixed: of these, with right and wrong samples.
        right, wrong: samples.
        signal: mean of the groups, in [0, 1]; anything where there are none.
    """

    groups: np.ndarray
    mixed: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    signal: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """[K]; 0 where nothing is known."""
        return self.right / np.maximum(self.right + self.wrong, 1)


def start(arms: int) -> dict[str, Any]:
    """Returns the state at the start of the RL, of JSON values.

    `value` and `accuracy` are running means, None before an arm was first seen; `groups`, `mixed`, `total` (of the
    signal), `right` and `wrong` are discounted sums; `gains` is EXP3's; `weights` Multi-Task GRPO's.
    """
    sums = {name: [0.0] * arms for name in ("groups", "mixed", "total", "right", "wrong", "gains")}
    unknown: dict[str, list[float | None]] = {name: [None] * arms for name in ("value", "accuracy")}
    return {"step": 0, **unknown, **sums, "weights": multitask.start(arms)}


def observe(config: CurriculumConfig, state: State, feedback: Feedback, drawn: Sequence[float]) -> dict[str, Any]:
    """Returns the state after a step.

    Args:
        drawn: [K] probabilities by which the step's prompts were drawn; 0 for an arm that was closed, and all 0 for
            samplers without.
    """
    seen = feedback.groups > 0
    known = seen & (feedback.right + feedback.wrong > 0)
    signal = np.where(seen, feedback.signal, 0.0)
    new: dict[str, Any] = {"step": state["step"] + 1}
    new["value"] = _average(state["value"], signal, seen, config.step_size)
    new["accuracy"] = _average(state["accuracy"], feedback.accuracy, known, config.step_size)
    fresh = {
        "groups": feedback.groups,
        "mixed": feedback.mixed,
        "total": signal * feedback.groups,
        "right": feedback.right,
        "wrong": feedback.wrong,
    }
    for name, values in fresh.items():
        new[name] = [float(x) for x in config.discount * np.array(state[name]) + values]
    new["gains"] = state["gains"]
    if config.sampler == "exp3" and any(drawn):
        new["gains"] = [float(x) for x in config.discount * np.array(state["gains"]) + estimate_gains(feedback, drawn)]
    new["weights"] = state["weights"]
    if config.sampler == "multitask_grpo":
        options = {"level": config.level, "clip": config.improvement_clip, "learning_rate": config.learning_rate}
        new["weights"] = multitask.update(state["weights"], feedback.accuracy, known, **options)
    return new


def estimate_gains(feedback: Feedback, drawn: Sequence[float]) -> np.ndarray:
    """Returns EXP3's estimate [K] of what each arm earns, 1 - (m / n) (1 - x) / P for m of n groups with mean x.

    It is unbiased, and its variance is small where P is (Lattimore and Szepesvari, chapter 11). An arm that was closed
    gets the mean of the others.
    """
    probabilities = np.asarray(drawn, np.float64)
    share = feedback.groups / max(feedback.groups.sum(), 1)
    missed = 1.0 - np.where(feedback.groups > 0, feedback.signal, 1.0)
    gains = 1.0 - share * missed / np.where(probabilities > 0, probabilities, 1.0)
    return np.where(probabilities > 0, gains, gains[probabilities > 0].mean())


def _average(before: Sequence[float | None], now: np.ndarray, seen: np.ndarray, step: float) -> list[float | None]:
    """Returns the running means; what is first seen is taken as it is."""
    pairs = zip(before, now, seen, strict=True)
    return [(float(x) if old is None else float((1 - step) * old + step * x)) if s else old for old, x, s in pairs]


def _uniform(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    return np.ones(len(weights))


def _by_weight(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    return weights


def _epsilon_greedy(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    """Best arms share 1 - epsilon, and all of them epsilon; an arm not yet seen is best."""
    value = np.array([np.inf if x is None else x for x in state["value"]])
    best = value == value[weights > 0].max()
    best &= weights > 0
    return config.epsilon / (weights > 0).sum() + (1 - config.epsilon) * best / best.sum()


def _exp3(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    return _softmax(config.learning_rate * np.array(state["gains"]))


def _sec(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    """SEC (2505.14970): softmax of the running mean of the signal, which starts at 0."""
    return _softmax(np.array([x or 0.0 for x in state["value"]]) / config.temperature)


def _multitask_grpo(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    return _softmax(np.array(state["weights"]["logits"]))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


# Each takes the config, the state and the task sets' weights [K], 0 for an arm that is closed; what it gives closed
# arms is taken from them afterwards.
PROBABILITIES: dict[str, Callable[[CurriculumConfig, State, np.ndarray], np.ndarray]] = {
    "uniform": _uniform,
    "weights": _by_weight,
    "epsilon_greedy": _epsilon_greedy,
    "exp3": _exp3,
    "sec": _sec,
    "multitask_grpo": _multitask_grpo,
}


def compute_probabilities(config: CurriculumConfig, state: State, weights: np.ndarray) -> np.ndarray:
    """Returns the probabilities [K] of the arms in a step, warm-up and floor included; zeros for "ucb" and "thompson".

    Args:
        weights: [K] of the arms; 0 for one that is closed.

    Raises:
        ConfigError: the floor is more than an even share.
    """
    opened = weights > 0
    floor = config.min_probability
    if floor * opened.sum() > 1:
        raise errors.ConfigError(
            f"curriculum.min_probability={floor} for each of {opened.sum()} arms is more than 1: at most "
            f"{1 / opened.sum():.3g} is accepted"
        )
    if state["step"] < config.warmup_steps or len(weights) == 1:  # the mixture is one arm, and so are prompts
        return opened / opened.sum()
    if config.sampler in CHOICES:
        return np.zeros(len(weights))
    raw = np.where(opened, PROBABILITIES[config.sampler](config, state, weights), 0.0)
    own = raw / raw.sum() if raw.sum() > 0 else opened / opened.sum()
    return np.where(opened, floor + (1 - floor * opened.sum()) * own, 0.0)


def choose_arms(config: CurriculumConfig, state: State, weights: np.ndarray, uniforms: np.ndarray) -> list[int]:
    """Returns the arms [n] of n prompts, drawn from `uniforms` [n, K + 1] in [0, 1)."""
    probabilities = compute_probabilities(config, state, weights)
    if probabilities.any():
        return invert(probabilities, uniforms[:, 0])
    opened = np.flatnonzero(weights > 0)
    arms = CHOICES[config.sampler](config, state, opened, uniforms[:, 1:])
    evenly = config.min_probability * len(opened)  # the floor: this share is drawn so
    even = [int(opened[int(u / evenly * len(opened))]) if u < evenly else -1 for u in uniforms[:, 0]]
    return [arm if forced < 0 else forced for arm, forced in zip(arms, even, strict=True)]


def invert(probabilities: np.ndarray, uniforms: np.ndarray) -> list[int]:
    """Returns the arm that each uniform [n] falls on."""
    edges = np.cumsum(probabilities)
    places = np.searchsorted(edges / edges[-1], uniforms, side="right")
    return [int(place) for place in np.minimum(places, np.flatnonzero(probabilities)[-1])]


def _choose_ucb(config: CurriculumConfig, state: State, opened: np.ndarray, uniforms: np.ndarray) -> list[int]:
    """UCB1 (Auer et al., 2002): mean + bonus sqrt(2 ln t / n). A prompt counts for the next ones once it is drawn."""
    pulls, total = np.array(state["groups"])[opened], np.array(state["total"])[opened]
    means = np.divide(total, pulls, out=np.zeros_like(total), where=pulls > 0)
    arms = []
    for _ in uniforms:
        spread = np.sqrt(2 * np.log(max(pulls.sum(), 1.0)) / np.maximum(pulls, 1e-12))
        best = int(np.argmax(np.where(pulls > 0, means + config.bonus * spread, np.inf)))
        pulls[best] += 1
        arms.append(int(opened[best]))
    return arms


_UTILITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": lambda p: p,
    "variance": lambda p: 4 * p * (1 - p),
}


def _choose_thompson(config: CurriculumConfig, state: State, opened: np.ndarray, uniforms: np.ndarray) -> list[int]:
    """Thompson sampling: each prompt draws a success rate of every arm from its Beta(1 + right, 1 + wrong)."""
    right, wrong = np.array(state["right"])[opened], np.array(state["wrong"])[opened]
    rates = betaincinv(1 + right[None, :], 1 + wrong[None, :], uniforms[:, opened])
    return [int(opened[best]) for best in np.argmax(_UTILITIES[config.signal](rates), axis=1)]


# Each takes the config, the state, the indices of the open arms and uniforms [n, K]; it has no probabilities.
CHOICES: dict[str, Callable[[CurriculumConfig, State, np.ndarray, np.ndarray], list[int]]] = {
    "ucb": _choose_ucb,
    "thompson": _choose_thompson,
}


def choose_prompts(counts: np.ndarray, uniforms: np.ndarray, number: int) -> list[int]:
    """Returns `number` prompts by MoPPS (2507.04632): those whose drawn success rates are closest to a half.

    Args:
        counts: [N, 2] alpha and beta of each prompt's Beta distribution.
        uniforms: [N]; NaN for a prompt that is not to be drawn.
    """
    distance = (betaincinv(counts[:, 0], counts[:, 1], uniforms) - 0.5) ** 2
    return [int(i) for i in np.argsort(distance, kind="stable")[:number] if np.isfinite(distance[i])]


def update_counts(counts: Sequence[float], right: float, wrong: float, discount: float) -> list[float]:
    """Returns alpha and beta of a prompt after a group: d alpha + (1 - d) + right, and the same of beta and wrong."""
    alpha, beta = counts
    return [discount * alpha + 1 - discount + right, discount * beta + 1 - discount + wrong]
