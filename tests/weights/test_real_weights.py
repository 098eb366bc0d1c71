"""Real weights, exported and loaded by transformers, on real text."""

import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr.policy.transformer import Policy
from rlvr.weights import exporter, importer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROWS, LENGTH = 20, 384


@pytest.mark.slow
def test_smollm2_on_gsm8k(real_gguf: Path, shared: Path, tmp_path: Path) -> None:
    read = importer.read_weights(real_gguf)
    exporter.export_policy(tmp_path / "out", read.config, read.params, read.tokenizer)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with gzip.open(shared / "gsm8k" / "test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(ROWS), strict=False)]
    policy = Policy(read.config)

    @jax.jit
    def logprobs(params: dict, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(LENGTH, dtype=jnp.int32)[None]
        hidden = policy.forward(params, tokens, positions).hidden
        return jax.nn.log_softmax(policy.logits(params, hidden)[0, :-1])

    worst, tokens_seen = 0.0, 0
    for row in rows:
        text = f"{row['question']}\n{row['answer']}"
        ids = read.tokenizer.encode(text)[:LENGTH]
        assert ids == their_tokenizer(text, add_special_tokens=False)["input_ids"][:LENGTH]
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(ids)] = ids
        ours = np.asarray(logprobs(read.params, padded))[np.arange(len(ids) - 1), ids[1:]]
        with torch.no_grad():
            theirs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], -1).numpy()
        worst = max(worst, np.abs(ours - theirs[np.arange(len(ids) - 1), ids[1:]]).max())
        tokens_seen += len(ids) - 1
    print(f"{tokens_seen} tokens of {len(rows)} rows: max abs log-prob difference {worst:.2e}")
    assert len(rows) == ROWS and worst <= 2e-4
