"""What is reported of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlvr.algo.advantages import SPREAD_TOLERANCE
from rlvr.algo.kl import k3
from rlvr.evaluation import correct, part_means
from rlvr.learner.batch import Row
from rlvr.rollout.collect import Collected, Episode
from rlvr.types import STATUSES


def rollout_metrics(collected: Collected, rewards: np.ndarray, valid: np.ndarray, group_size: int) -> dict[str, float]:
    """Returns the metrics of one step's samples; rewards and valid are [P * G].

    Accuracies and parts are means over the samples that have them: an unscorable one is none of them. The same holds
    for groups and their masked samples. rollout/tokens are all that were sampled, also in groups that were dropped.
    rollout/surprisal is the mean of -log p of the sampled tokens, in nats: in expectation the entropy of what they were
    drawn from. It is over all samples, the update's rollout/entropy over the sequences it ran (without those whose
    advantage is zero, unless another term reaches them). accuracy/gap is lenient less strict accuracy: answers that are
    right and stand elsewhere than they were asked for.
    """
    episodes = collected.episodes
    lengths = np.array([len(e.completion.tokens) for e in episodes])
    strict, lenient = correct(episodes)
    statuses = [e.verdict.status for e in episodes]
    lowest = np.where(valid, rewards, np.inf).reshape(-1, group_size).min(axis=1)
    highest = np.where(valid, rewards, -np.inf).reshape(-1, group_size).max(axis=1)
    flat = (lowest <= highest) & (highest - lowest <= SPREAD_TOLERANCE)  # a wholly masked group is not
    kept = rewards[valid] if valid.any() else np.zeros(1)
    right, wrong = strict == 1.0, strict == 0.0
    metrics = {
        "reward/mean": np.mean(kept),
        "reward/std": np.std(kept),
        "accuracy/strict": np.mean(strict[right | wrong]) if (right | wrong).any() else np.nan,
        "accuracy/lenient": np.mean(lenient[right | wrong]) if (right | wrong).any() else np.nan,
        "accuracy/gap": np.mean((lenient - strict)[right | wrong]) if (right | wrong).any() else np.nan,
        "rollout/tokens_mean": np.mean(lengths),
        "rollout/tokens_mean_right": np.mean(lengths[right]) if right.any() else np.nan,
        "rollout/tokens_mean_wrong": np.mean(lengths[wrong]) if wrong.any() else np.nan,
        "rollout/surprisal": -np.mean(np.concatenate([e.completion.logprobs for e in episodes])),
        "rollout/tokens": collected.engine.tokens,
        "rollout/tokens_per_s": collected.engine.tokens / max(collected.decode_s, 1e-9),
        "rollout/occupancy": collected.engine.occupancy,
        "rollout/cache_gb": collected.engine.most_pages * collected.engine.page_bytes / 1e9,
        "rollout/truncated": np.mean([e.completion.stop_reason == "length" for e in episodes]),
        "groups/all_correct": np.mean(flat & (lowest >= 1.0)),
        "groups/all_wrong": np.mean(flat & (lowest < 1.0)),
        "verify/masked": np.sum(~valid),
        "verify/seconds_max": np.max([e.verdict.seconds for e in episodes]),
        **{f"verdict/{status}": statuses.count(status) for status in STATUSES},
        **part_means(episodes),
    }
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}


def warm_start_metrics(learned: Mapping[str, float]) -> dict[str, float]:
    """Returns those of an update's metrics that mean something of demonstrations, which nobody sampled."""
    kept = ("loss/", "optimizer/", "moe/")
    names = {"loss/policy": "loss/supervised"}
    return {names.get(name, name): value for name, value in learned.items() if name.startswith(kept)}


def mean_kl(rows: Sequence[Row], reference: Sequence[np.ndarray]) -> float:
    """Returns the k3 estimate of KL(policy || reference) over the sampled tokens, nats a token."""
    x = np.concatenate([row.old_logprobs for row in rows]) - np.concatenate(list(reference))
    return float(np.mean(k3(x)))


def sample_rows(episodes: Sequence[Episode], advantages: np.ndarray) -> list[dict[str, Any]]:
    """Returns the best and the worst episode of a step by advantage, as rows of `samples.jsonl`."""
    chosen = sorted({int(np.argmax(advantages)), int(np.argmin(advantages))})
    return [describe_episode(episodes[i], float(advantages[i])) for i in chosen]


def describe_episode(episode: Episode, advantage: float | None = None) -> dict[str, Any]:
    """Returns an episode as a JSON row."""
    verdict = episode.verdict
    return {
        "task": episode.task.task,
        "prompt_id": episode.task.prompt_id,
        "sample": episode.completion.request.sample,
        "prompt": episode.task.prompt,
        "completion": episode.text,
        "answer": episode.task.answer,
        "score": verdict.score,
        "status": verdict.status,
        "detail": verdict.detail,
        "parts": dict(verdict.parts),
        "tokens": len(episode.completion.tokens),
        "stop_reason": episode.completion.stop_reason,
        "advantage": advantage,
    }
