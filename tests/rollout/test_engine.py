"""The slot engine: what is sampled depends on the request alone, and equals what the learner will recompute."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import Mesh

from rlvr import errors
from rlvr.learner.logprobs import row_logprobs
from rlvr.rollout.engine import Engine, EngineConfig, Interrupted
from rlvr.rollout.sampling import sample
from rlvr.types import Completion, Request
from tests.rollout.filters import at_temperature

STOP_IDS = tuple(range(2, 97, 8))
KEY = jax.random.key(5)
SLOTS, NEW = 4, 10
Engines = Callable[..., Engine]
Tiny = Callable[[str], Any]


def make_requests() -> list[Request]:
    """7 prompts of 1 to 12 tokens, two samples each: over three times the slots, both buckets in turn."""
    rng = np.random.default_rng(0)
    lengths = [3, 12, 1, 5, 6, 9, 4]
    prompts = [tuple(rng.integers(0, 97, n).tolist()) for n in lengths]
    return [Request(2 * p + s, 1000 + p, s, prompt) for p, prompt in enumerate(prompts) for s in range(2)]


REQUESTS = make_requests()


def by_identity(completions: list[Completion]) -> dict[tuple[int, int], Completion]:
    return {(c.request.prompt_id, c.request.sample): c for c in completions}


def assert_same(a: list[Completion], b: list[Completion], tolerance: float = 0.0) -> None:
    """Completions of one identity have the same tokens, and the same log-probs up to the tolerance."""
    first, second = by_identity(a), by_identity(b)
    shared = first.keys() & second.keys()
    assert shared
    for identity in shared:
        x, y = first[identity], second[identity]
        np.testing.assert_array_equal(x.tokens, y.tokens)
        np.testing.assert_allclose(x.logprobs, y.logprobs, rtol=0, atol=tolerance)
        np.testing.assert_equal(x.choices, y.choices)
        assert x.stop_reason == y.stop_reason


@pytest.fixture
def run(engine_of: Engines, tiny_policy: Tiny, one_device: Mesh) -> Callable[..., list[Completion]]:
    def generate(
        kind: str, requests: list[Request], *, slots: int = SLOTS, temperature: float = 1.0, **options: Any
    ) -> list[Completion]:
        params = tiny_policy(kind)[1]
        key = options.pop("key", KEY)
        return engine_of(kind, slots).generate(params, requests, key, temperature=temperature, **options)

    return generate


@pytest.mark.parametrize("kind", ["dense", "mixed"])
def test_batching_changes_no_bit_of_a_sample(run: Any, kind: str) -> None:
    base = run(kind, REQUESTS)
    assert [c.request for c in base] == REQUESTS
    assert {c.stop_reason for c in base} == {"stop", "length"}  # slots are refilled at different times
    order = np.random.default_rng(1).permutation(len(REQUESTS))
    assert_same(base, run(kind, REQUESTS[::-1]))
    assert_same(base, run(kind, [REQUESTS[i] for i in order]))
    assert_same(base, run(kind, [REQUESTS[9]]))
    strangers = [Request(100 + i, 7 + i, 0, (i, i + 1, i + 2)) for i in range(9)]
    assert_same(base, run(kind, [*strangers, REQUESTS[4], REQUESTS[2]]))


def test_the_number_of_slots_changes_no_token(run: Any) -> None:
    assert_same(run("mixed", REQUESTS), run("mixed", REQUESTS, slots=7), tolerance=1e-5)


@pytest.mark.parametrize("kind", ["dense", "mixed"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_recorded_logprobs_are_the_learners(run: Any, tiny_policy: Tiny, kind: str, temperature: float) -> None:
    policy, params = tiny_policy(kind)
    completions = run(kind, REQUESTS, temperature=temperature)
    lengths = np.array([len(c.tokens) for c in completions])
    assert len(set(lengths.tolist())) >= 4
    tokens = np.zeros((len(REQUESTS), 24), np.int32)
    scored = np.zeros((len(REQUESTS), NEW), np.int32)
    for i, c in enumerate(completions):
        row = [*c.request.prompt, *c.tokens]
        tokens[i, : len(row)] = row
        scored[i, : lengths[i]] = len(c.request.prompt) + np.arange(lengths[i])
    total = np.array([len(c.request.prompt) for c in completions]) + lengths
    recompute = jax.jit(lambda p, *rows: row_logprobs(policy, p, *rows, jnp.float32(temperature), 4)[0])
    again = recompute(params, tokens, total, scored)
    gap = max(np.max(np.abs(again[i, :n] - completions[i].logprobs)) for i, n in enumerate(lengths))
    assert gap <= 2e-5
    assert np.std(np.concatenate([c.logprobs for c in completions])) > 0.5


def test_recorded_experts_are_those_of_the_full_forward(run: Any, tiny_policy: Tiny) -> None:
    policy, params = tiny_policy("mixed")
    assert run("dense", REQUESTS[:1])[0].choices is None
    forward = jax.jit(lambda row, positions: policy.forward(params, row, positions).choices)
    for c in run("mixed", REQUESTS):
        row = np.array([*c.request.prompt, *c.tokens], np.int32)
        padded = np.zeros((1, 24), np.int32)
        padded[0, : len(row)] = row
        live = np.asarray(forward(padded, np.arange(24, dtype=np.int32)[None]))[0, : len(row)]
        assert c.choices is not None and c.choices.shape == (len(row), 1, 2)
        np.testing.assert_array_equal(c.choices[:-1], live[:-1])  # prompt and completion
        assert np.all(c.choices[-1] == -1)  # sampled, and never run


def test_tokens_are_those_drawn_from_the_full_forward(run: Any, tiny_policy: Tiny) -> None:
    policy, params = tiny_policy("mixed")
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), (7, 24))
    forward = jax.jit(lambda p, rows: policy.logits(p, policy.forward(p, rows, positions).hidden))

    def logits_before(completions: list[Completion]) -> list[np.ndarray]:
        rows = np.zeros((7, 24), np.int32)
        for i, c in enumerate(completions):
            rows[i, : len(c.request.prompt) + len(c.tokens)] = [*c.request.prompt, *c.tokens]
        logits = np.asarray(forward(params, rows))
        return [logits[i, len(c.request.prompt) - 1 :][: len(c.tokens)] for i, c in enumerate(completions)]

    greedy = run("mixed", REQUESTS[::2], temperature=0.0)
    for c, logits in zip(greedy, logits_before(greedy), strict=True):
        np.testing.assert_array_equal(c.tokens, np.argmax(logits, axis=-1))
        expected = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
        np.testing.assert_allclose(c.logprobs, expected[np.arange(len(c.tokens)), c.tokens], atol=2e-5)
    assert_same(greedy, run("mixed", REQUESTS[::2], temperature=0.0, key=jax.random.key(1)))

    # The key of a draw is fold_in of the call's with prompt_id, sample and the index within the completion.
    drawn = run("mixed", REQUESTS[1::2], temperature=0.9)
    for c, logits in zip(drawn, logits_before(drawn), strict=True):
        key = jax.random.fold_in(jax.random.fold_in(KEY, c.request.prompt_id), c.request.sample)
        keys = jnp.broadcast_to(key, (len(c.tokens),))
        drawn_again = sample(jnp.asarray(logits), keys, jnp.arange(len(c.tokens)), at_temperature(0.9))
        np.testing.assert_array_equal(c.tokens, drawn_again.tokens)


def test_stop_tokens_end_and_belong_to_the_completion(run: Any) -> None:
    for c in run("dense", REQUESTS):
        assert 1 <= len(c.tokens) <= NEW and len(c.tokens) == len(c.logprobs)
        assert c.tokens.dtype == np.int32 and c.logprobs.dtype == np.float32
        assert not np.isin(c.tokens[:-1], STOP_IDS).any()
        assert (c.stop_reason == "stop") == (c.tokens[-1] in STOP_IDS)
        assert c.stop_reason == "stop" or len(c.tokens) == NEW
        assert np.all(c.logprobs <= 0)


@pytest.mark.parametrize("budget", [1, 4])
def test_a_smaller_budget_gives_prefixes(run: Any, budget: int) -> None:
    for short, long in zip(run("dense", REQUESTS, max_tokens=budget), run("dense", REQUESTS), strict=True):
        np.testing.assert_array_equal(short.tokens, long.tokens[:budget])
        np.testing.assert_array_equal(short.logprobs, long.logprobs[:budget])
        assert short.stop_reason == ("stop" if short.tokens[-1] in STOP_IDS else "length")


def test_samples_prompts_and_keys_draw_apart(run: Any) -> None:
    prompt = (8, 9, 10)
    same = [
        Request(0, 1, 0, prompt),
        Request(1, 1, 1, prompt),
        Request(2, 2, 0, prompt),
        Request(3, 2**32 - 1, 0, prompt),
    ]
    completions = [c for key in (KEY, jax.random.key(6)) for c in run("dense", same, key=key, temperature=3.0)]
    assert len({tuple(c.tokens.tolist()) for c in completions}) == 8


def test_finished_ones_are_handed_out_while_others_decode(
    run: Any, engine_of: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("dense", SLOTS)
    dispatches = 0
    original = engine._decode

    def count(*args: Any) -> Any:
        nonlocal dispatches
        dispatches += 1
        return original(*args)

    monkeypatch.setattr(engine, "_decode", count)
    seen: list[tuple[int, int]] = []
    completions = run("dense", REQUESTS, on_completion=lambda c: seen.append((c.request.index, dispatches)))
    assert sorted(index for index, _ in seen) == list(range(len(REQUESTS)))  # each once
    assert [c.request.index for c in completions] == list(range(len(REQUESTS)))
    when = dict(seen)
    # Ten tokens take four dispatches of three: a completion is handed out right after the one that ended it.
    assert min(when.values()) <= 4 < dispatches
    assert len(set(when.values())) > 2


def test_a_group_shares_its_prefill_and_each_bucket_is_compiled_once(
    run: Any, engine_of: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("dense", SLOTS)
    original, calls = engine._prefill, []

    def count(params: Any, tokens: jax.Array) -> Any:
        calls.append(np.asarray(tokens))
        return original(params, tokens)

    monkeypatch.setattr(engine, "_prefill", count)
    group = [Request(i, 1, i, (8, 9, 10)) for i in range(4)]
    run("dense", group)
    assert len(calls) == 1
    np.testing.assert_array_equal(calls[0], [[8, 9, 10, 0, 0], [0] * 5])
    calls.clear()
    run("dense", [*group[:2], *(Request(2 + i, 2, i, (4, 4)) for i in range(2))])
    assert len(calls) == 1  # two prompts, prefill_rows=2
    calls.clear()
    run("dense", REQUESTS)
    assert {call.shape for call in calls} == {(2, 5), (2, 12)}
    assert original._cache_size() == 2


def test_only_the_buckets_in_use_are_compiled(tiny_policy: Tiny, one_device: Mesh) -> None:
    policy, params = tiny_policy("shallow")
    config = EngineConfig(slots=2, max_prompt_tokens=12, max_new_tokens=2, prefill_rows=1, prompt_buckets=(2, 5))
    engine = Engine(policy, config, (), one_device)
    engine.generate(params, [Request(i, i, 0, (1,) * n) for i, n in enumerate((3, 4, 5))], KEY, temperature=1.0)
    assert engine._prefill._cache_size() == 1


def test_interruption_keeps_nothing(run: Any) -> None:
    answers = iter([False, True])
    seen: list[Completion] = []
    with pytest.raises(Interrupted):
        run("dense", REQUESTS, should_stop=lambda: next(answers), on_completion=seen.append)
    assert len(seen) < len(REQUESTS)
    assert len(run("dense", REQUESTS)) == len(REQUESTS)  # and the engine is as good as new


def test_no_requests_no_completions(run: Any) -> None:
    assert run("dense", []) == []


@pytest.mark.parametrize(
    ("prompt", "words"), [((), r"request 1 has 0 tokens; accepted: 1 to max_prompt_tokens=12"), ((5,) * 13, "has 13")]
)
def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(
    run: Any, prompt: tuple[int, ...], words: str
) -> None:
    seen: list[Completion] = []
    with pytest.raises(errors.DataError, match=words):
        run("dense", [REQUESTS[0], Request(1, 1, 0, prompt)], on_completion=seen.append)
    assert not seen


@pytest.mark.parametrize("budget", [0, NEW + 1])
def test_a_budget_out_of_range_is_refused(run: Any, budget: int) -> None:
    with pytest.raises(errors.ConfigError, match=f"max_tokens={budget}"):
        run("dense", REQUESTS, max_tokens=budget)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slots": 0}, "engine.slots=0"),
        ({"decode_steps": 0}, "engine.decode_steps=0"),
        ({"prompt_buckets": (65,)}, "engine.prompt_buckets=65"),
    ],
)
def test_config_names_the_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        EngineConfig(**fields).validate("engine")
