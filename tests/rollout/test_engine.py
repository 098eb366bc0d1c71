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
from rlvr.learner.batch import Row
from rlvr.learner.scoring import Layout, make_scorer
from rlvr.policy.transformer import Policy
from rlvr.rollout import steps
from rlvr.rollout.config import EngineConfig
from rlvr.rollout.engine import Engine, Interrupted
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
@pytest.mark.parametrize(("temperature", "filters"), [(0.7, {}), (1.0, {}), (0.7, {"top_k": 9, "top_p": 0.9})])
def test_recorded_logprobs_are_the_learners(
    run: Any, tiny_policy: Tiny, one_device: Mesh, kind: str, temperature: float, filters: dict[str, Any]
) -> None:
    policy, params = tiny_policy(kind)
    completions = run(kind, REQUESTS, temperature=temperature, **filters)
    lengths = np.array([len(c.tokens) for c in completions])
    assert len(set(lengths.tolist())) >= 4
    rows = [
        Row(c.request.prompt, c.tokens, c.logprobs, 0.0, i // 2, support=c.support) for i, c in enumerate(completions)
    ]
    score = make_scorer(policy, Layout(48, 96, one_device), temperature=temperature, chunk=16)

    def gap(rows: list[Row]) -> float:
        return max(np.max(np.abs(a - row.old_logprobs)) for a, row in zip(score(params, rows), rows, strict=True))

    assert gap(rows) <= 2e-5
    if filters:  # over all tokens it is another distribution
        assert gap([row._replace(support=None) for row in rows]) > 0.1
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


def test_a_group_shares_its_prefill(run: Any, engine_of: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_only_the_buckets_in_use_are_compiled_and_once(
    tiny_policy: Tiny, one_device: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, params = tiny_policy("shallow")
    config = EngineConfig(slots=2, max_prompt_tokens=12, max_new_tokens=2, prefill_rows=1, prompt_buckets=(2, 5))
    engine = Engine(policy, config, (), one_device)
    prefill, traced = steps.prefill, []

    def count(policy: Policy, params: Any, tokens: jax.Array) -> Any:
        traced.append(tokens.shape)
        return prefill(policy, params, tokens)

    monkeypatch.setattr(steps, "prefill", count)
    for lengths in ((3, 4, 5), (5, 3), (2, 9)):
        requests = [Request(i, i, 0, (1,) * n) for i, n in enumerate(lengths)]
        engine.generate(params, requests, KEY, temperature=1.0)
    assert traced == [(1, 5), (1, 2), (1, 12)]


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


@pytest.fixture
def special(tiny_policy: Tiny, one_device: Mesh) -> Callable[..., tuple[Engine, Any]]:
    """Returns an engine of the one-layer policy with given sizes, and its parameters."""

    def make(stop_strings: tuple[str, ...] = (), stop_ids: tuple[int, ...] = STOP_IDS, **sizes: Any) -> Any:
        policy, params = tiny_policy("shallow")
        defaults = {"slots": 4, "max_prompt_tokens": 12, "max_new_tokens": 10, "prefill_rows": 2, "decode_steps": 3}
        config = EngineConfig(**{**defaults, **sizes})
        return Engine(policy, config, stop_ids, one_device, stop_strings=stop_strings, decode_text=spell), params

    return make


def spell(tokens: Any) -> str:
    """Each id is two letters, so that texts run over the boundaries of tokens."""
    return "".join(chr(97 + t % 26) + chr(97 + t // 26) for t in tokens)


def test_pages_and_their_want_change_no_bit(special: Any) -> None:
    roomy, params = special()
    base = roomy.generate(params, REQUESTS, KEY, temperature=1.0)
    assert roomy.stats.evictions == 0 and roomy.stats.tokens == sum(len(c.tokens) for c in base)
    for page_tokens, cache_tokens in ((4, 32), (3, 24), (64, 0), (1, 40)):
        tight, _ = special(page_tokens=page_tokens, cache_tokens=cache_tokens)
        # A page is a block of the running softmax: another size is another order of summation.
        again = tight.generate(params, REQUESTS, KEY, temperature=1.0)
        assert_same(base, again, tolerance=0.0 if page_tokens == 64 else 1e-5)
        if cache_tokens == 32:
            assert tight.stats.evictions > 0 and tight.stats.most_pages <= 8
            wide, _ = special(page_tokens=page_tokens)
            assert_same(again, wide.generate(params, REQUESTS, KEY, temperature=1.0))


def test_fewer_rows_at_the_end_change_no_bit(special: Any) -> None:
    whole, params = special(slots=16)
    base = whole.generate(params, REQUESTS, KEY, temperature=1.0)
    shrinking, _ = special(slots=16, tail_rows=(8, 4))
    assert_same(base, shrinking.generate(params, REQUESTS, KEY, temperature=1.0))
    # Whichever of them this backend has the same bits for; and were it the other ones as well:
    shrinking.tiers = (16, 8, 4)
    assert_same(base, shrinking.generate(params, REQUESTS, KEY, temperature=1.0), tolerance=1e-5)
    assert shrinking.stats.row_steps < whole.stats.row_steps and shrinking.stats.tokens == whole.stats.tokens
    assert shrinking.stats.occupancy > whole.stats.occupancy


def test_rows_whose_bits_differ_are_not_used(special: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, params = special(slots=8, tail_rows=(4,))
    probe = engine._probe
    monkeypatch.setattr(engine, "_probe", lambda *args: tuple(x + (args[2] == 4) for x in probe(*args)))
    engine.generate(params, REQUESTS[:2], KEY, temperature=1.0)
    assert engine.tiers == (8,)


def test_requests_have_budgets_and_seeds_of_their_own(special: Any) -> None:
    engine, params = special(stop_ids=())
    prompt = (8, 9, 10)
    requests = [
        Request(i, 1, 0, prompt, max_tokens=n, seed=s) for i, (n, s) in enumerate([(3, 7), (None, 7), (9, None)])
    ]
    short, long, other = engine.generate(params, requests, KEY, temperature=2.0, max_tokens=8)
    assert [len(c.tokens) for c in (short, long, other)] == [3, 8, 9]
    np.testing.assert_array_equal(short.tokens, long.tokens[:3])
    assert not np.array_equal(long.tokens, other.tokens[:8])
    again = engine.generate(params, requests, jax.random.key(77), temperature=2.0, max_tokens=8)
    np.testing.assert_array_equal(again[1].tokens, long.tokens)  # a seed of its own: whatever the call's key
    assert not np.array_equal(again[2].tokens, other.tokens)
    with pytest.raises(errors.ConfigError, match="max_tokens of request 0=11"):
        engine.generate(params, [Request(0, 1, 0, prompt, max_tokens=11)], KEY, temperature=1.0)


@pytest.mark.parametrize("decode_steps", [1, 3, 10])
def test_a_stop_string_ends_a_sequence_across_tokens_and_dispatches(special: Any, decode_steps: int) -> None:
    free, params = special(stop_ids=(), decode_steps=decode_steps)
    base = free.generate(params, REQUESTS, KEY, temperature=1.0)
    # The second letter of one token and the first of the next, of the fourth pair of a completion.
    stops = (spell(base[1].tokens[3:5])[1:3], "never this")
    engine, _ = special(stop_strings=stops, stop_ids=(), decode_steps=decode_steps)
    ended = 0
    for whole, cut in zip(base, engine.generate(params, REQUESTS, KEY, temperature=1.0), strict=True):
        counts = [n for n in range(1, 11) if stops[0] in spell(whole.tokens[:n])]
        want = counts[0] if counts else 10
        np.testing.assert_array_equal(cut.tokens, whole.tokens[:want])
        np.testing.assert_array_equal(cut.logprobs, whole.logprobs[:want])
        assert cut.stop_reason == ("stop" if counts else "length")
        ended += bool(counts)
    assert ended >= 1
    with pytest.raises(errors.ConfigError, match="empty text"):
        special(stop_strings=("",))


def test_a_bias_moves_the_draw_and_its_logprob(special: Any) -> None:
    engine, params = special(stop_ids=())
    forbidden = {t: -np.inf for t in range(97) if t % 2}
    completions = engine.generate(params, REQUESTS, KEY, temperature=1.0, logit_bias=forbidden)
    tokens = np.concatenate([c.tokens for c in completions])
    assert np.all(tokens % 2 == 0) and len(set(tokens.tolist())) > 10
    nearly = engine.generate(params, REQUESTS, KEY, temperature=1.0, logit_bias={4: 50.0})
    assert all(np.all(c.tokens == 4) and np.all(c.logprobs > -1e-5) for c in nearly)
    with pytest.raises(errors.ConfigError, match="logit_bias=97"):
        engine.generate(params, REQUESTS, KEY, temperature=1.0, logit_bias={97: 1.0})


def test_what_float32_and_int32_cannot_hold(special: Any) -> None:
    engine, params = special()
    with pytest.raises(errors.ConfigError, match="temperature=1e-09 must be 0, which is greedy, or at least 1e-06"):
        engine.generate(params, REQUESTS, KEY, temperature=1e-9)
    assert engine._make_sampling(1.0, 2**40, 1.0, 0.0, None)[0].top_k == 97  # all of the vocabulary


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.9}])
def test_filters_leave_a_support_that_tells_what_could_be_drawn(special: Any, filters: dict[str, Any]) -> None:
    engine, params = special(stop_ids=())
    for c in engine.generate(params, REQUESTS, KEY, temperature=1.0, **filters):
        assert c.support is not None and c.support.shape == (len(c.tokens), 13) and c.support.dtype == np.uint8
        support = np.unpackbits(c.support, axis=-1)
        assert np.all(support[np.arange(len(c.tokens)), c.tokens] == 1) and np.all(support[:, 97:] == 0)
        if "top_k" in filters:
            assert np.all(support.sum(-1) <= filters["top_k"])
    assert engine.generate(params, REQUESTS[:1], KEY, temperature=1.0)[0].support is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slots": 0}, "engine.slots=0"),
        ({"decode_steps": 0}, "engine.decode_steps=0"),
        ({"prompt_buckets": (65,)}, "engine.prompt_buckets=65"),
        ({"tail_rows": (64,)}, "engine.tail_rows=64"),
        ({"cache_tokens": 64}, "engine.cache_tokens=64 .*128"),
        ({"weights": "whole"}, "engine.weights='whole'"),
        ({"dtype": "float16"}, "engine.dtype='float16'"),
    ],
)
def test_config_names_the_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        EngineConfig(**fields).validate("engine")
