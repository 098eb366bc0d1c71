"""Collection: what reaches the verifiers with each completion."""

from concurrent.futures import Future

import numpy as np

from rlvr import types
from rlvr.rollout.collect import Collector
from rlvr.rollout.config import EngineStats


class Engine:
    """Answers each request with as many tokens as its sample number, plus one."""

    stats = EngineStats()

    def generate(self, params, requests, key, *, on_completion, **options):
        completions = []
        for request in requests:
            tokens = np.arange(request.sample + 1, dtype=np.int32)
            completions.append(types.Completion(request, tokens, np.zeros(len(tokens), np.float32), "stop"))
            on_completion(completions[-1])
        return completions


class Tokenizer:
    chat_template = None

    def decode(self, tokens):
        return f"{len(tokens)} tokens of ten letters"

    def encode(self, text):
        return [1]


class Pool:
    def submit(self, task, completion, tokens=None):
        future = Future()
        future.set_result(types.Verdict(float(tokens), "correct", completion))
        return future


def test_verifiers_hear_how_many_tokens_were_sampled(monkeypatch):
    monkeypatch.setattr("rlvr.rollout.collect.encode_task", lambda tokenizer, task, hinted: [1])
    tasks = [types.Task(i, "t", "p", "", "overlong") for i in range(2)]
    collected = Collector(Engine(), Tokenizer(), Pool()).collect({}, tasks, None, samples=3, temperature=1.0)
    assert [episode.verdict.score for episode in collected.episodes] == [1, 2, 3, 1, 2, 3]
    assert collected.episodes[2].text == "3 tokens of ten letters"


def test_a_task_that_comes_twice_is_sampled_anew(monkeypatch):
    """Its samples have further numbers: with the same ones they would be the same tokens."""
    monkeypatch.setattr("rlvr.rollout.collect.encode_task", lambda tokenizer, task, hinted: [1])
    tasks = [types.Task(i, "t", "p", "", "overlong") for i in (7, 8, 7)]
    collected = Collector(Engine(), Tokenizer(), Pool()).collect({}, tasks, None, samples=2, temperature=1.0)
    numbers = [(e.completion.request.prompt_id, e.completion.request.sample) for e in collected.episodes]
    assert numbers == [(7, 0), (7, 1), (8, 0), (8, 1), (7, 2), (7, 3)]
    assert [e.completion.request.index for e in collected.episodes] == list(range(6))
