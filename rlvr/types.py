"""The plain records that travel between the rooms. Imports nothing but numpy: verifier workers load this file.

Dimension letters, used in every shape comment and einsum of the project:

    B rows          G group size        T tokens of a row     C sampled tokens of a row
    D model width   H query heads       K key/value heads     h head size
    E experts       k experts a token   F hidden width        V vocabulary
    S cache slots   L cache length      N flattened tokens
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# A timeout is not a wrong answer, and a verifier that failed is not a wrong answer: each is counted apart.
STATUSES = ("correct", "wrong", "unparsed", "timeout", "error", "refused")

# A part of a verdict whose name begins so says whether a sign of hacking was found, 1 or 0; see `rlvr.verifiers.audit`.
AUDIT_PREFIX = "audit/"


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        prompt_id: 32-bit hash of the task's name and problem text; part of every sampling key.
        task: name under which results are reported, e.g. "addition" or "gsm8k".
        prompt: what the policy is asked (the user turn where the policy has a chat template).
        answer: the reference answer as text.
        verifier: key of `rlvr.verifiers.base.VERIFIERS`.
        system: system turn; "" means none of our own (the chat template may add its default).
        demonstration: a completion to imitate in a warm start; "" where there is none.
        payload: whatever else the verifier needs; must survive JSON.
        hinted_prompt: the prompt with privileged information, which a teacher may see and the policy that is evaluated
            never does; "" where there is none.
        hinted_demonstration: a completion to imitate behind it in a warm start.
    """

    prompt_id: int
    task: str
    prompt: str
    answer: str
    verifier: str
    system: str = ""
    demonstration: str = ""
    payload: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hinted_prompt: str = ""
    hinted_demonstration: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion.

    Attributes:
        score: the reward under strict extraction, finite; None exactly where `status` is "error": nothing is known
            of the completion then, and that is not 0.
        status: one of `STATUSES`.
        detail: a short reason for people.
        seconds: wall-clock seconds of the verification.
        parts: named components, None where unscorable; always has "strict" and "lenient" (score if the answer is
            searched for anywhere), which are None exactly where `score` is. "gold" is what a held-out judgement says
            (such as hidden tests), which no reward may depend on.
    """

    score: float | None
    status: str
    detail: str = ""
    seconds: float = 0.0
    parts: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to sample.

    Attributes:
        index: position in the list of requests of this call; completions are matched by it.
        prompt_id: see `Task`; part of the sampling key.
        sample: which of the G samples of the prompt; part of the sampling key.
        prompt: token ids, at least one.
        max_tokens: budget of sampled tokens; None for that of the call.
        seed: takes the place of the call's key in this request's own; None for none.
    """

    index: int
    prompt_id: int
    sample: int
    prompt: tuple[int, ...]
    max_tokens: int | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled sequence, as token ids: text is for people and verifiers, and is never encoded again.

    Attributes:
        request: what was asked for.
        tokens: [C] int32 sampled ids, the stop token included where one was sampled.
        logprobs: [C] float32 log-probability of each id under the distribution it was drawn from.
        stop_reason: "stop" (a stop token or string) or "length" (the budget ran out).
        choices: [P + C, mixture layers, k] int16 experts that each token of prompt and completion went to, or None
            for a dense policy. The last token was sampled and never run: its entries are -1.
        support: [C, V / 8] uint8, a bit (the highest of a byte first) for each token that could have been drawn, or
            None if all could: training must leave out the same ones, or its ratios are those of another distribution.
    """

    request: Request
    tokens: np.ndarray
    logprobs: np.ndarray
    stop_reason: str
    choices: np.ndarray | None = None
    support: np.ndarray | None = None
