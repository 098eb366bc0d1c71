"""transformers 5.23 `generate` and TRL 1.16 `GRPOTrainer`, torch 2.13, on the CPU.

What is given to them, so that the comparison is with their best: float32 weights, scaled-dot-product attention, the
growing cache, inference mode, and no filter of the sampling (top_k is 50 by default); no end id in `rollout` and
`tail`, where each static batch is told the longest length in it and stops there; in GRPO a least length forbids the end
id, bf16 and gradient checkpointing (both on by default) are off, because both make it slower here, all rows are sampled
in one batch, and `micro_rows` rows are a pass.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jobs
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from launch.benches import workload

PAD, END = 0, 1  # below the ids that prompts are made of


def make_model(shape: workload.Shape, length: int) -> LlamaForCausalLM:
    """Returns the model with random float32 weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query_heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        intermediate_size=shape.hidden,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def sample(model: LlamaForCausalLM, prompts: Any, new_tokens: int) -> None:
    """Samples one batch, each sequence to exactly `new_tokens`."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            pad_token_id=PAD,
            eos_token_id=None,
        )
    assert out.shape == (len(prompts), len(prompts[0]) + new_tokens), out.shape


def rollout(arguments: Namespace, shape: workload.Shape) -> dict[str, Any]:
    """One static batch; see `jobs`."""
    new = arguments.new_tokens
    model = make_model(shape, arguments.prompt_tokens + new).eval()
    prompts = workload.make_prompts(arguments.rows, arguments.prompt_tokens, shape.vocab_size)
    seconds = []
    for _ in range(1 + arguments.repeats):
        began = time.perf_counter()
        sample(model, prompts, new)
        seconds.append(time.perf_counter() - began)
    return {
        "tokens_per_s": arguments.rows * new * arguments.repeats / sum(seconds[1:]),
        "seconds": seconds[1:],
        "first_s": seconds[0],
    }


def tail(arguments: Namespace, shape: workload.Shape) -> dict[str, Any]:
    """Static batches of a long tail; see `jobs`."""
    model = make_model(shape, arguments.prompt_tokens + arguments.longest).eval()
    prompts = workload.make_prompts(arguments.completions, arguments.prompt_tokens, shape.vocab_size)
    batches = jobs.tail_batches(arguments)
    seconds = []
    for i, batch in enumerate([[1] * arguments.rows, *batches]):  # the first warms up
        start = max(i - 1, 0) * arguments.rows
        began = time.perf_counter()
        sample(model, prompts[start : start + len(batch)], max(batch))
        seconds.append(time.perf_counter() - began)
    return jobs.tail_result(arguments, sum(seconds[1:]), seconds[0])


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose text is the ids themselves, in digits."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)}, unk_token=str(PAD)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=str(PAD), eos_token=str(END), clean_up_tokenization_spaces=False
    )


class Clock(TrainerCallback):
    """Notes when each optimizer step is done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(time.perf_counter())


def step(arguments: Namespace, shape: workload.Shape) -> dict[str, Any]:
    """GRPO steps; see `jobs`."""
    rows = arguments.prompts * arguments.samples
    if rows % arguments.micro_rows:
        raise SystemExit(f"--micro_rows={arguments.micro_rows} must divide --prompts * --samples = {rows}")
    prompts = workload.make_prompts(arguments.prompts * arguments.steps, arguments.prompt_tokens, shape.vocab_size)
    seen: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        seen.append(len(completions))
        assert all(len(ids) == arguments.new_tokens for ids in completion_ids)
        return [workload.dummy_reward(text) for text in completions]

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=arguments.micro_rows,
            gradient_accumulation_steps=rows // arguments.micro_rows,
            num_generations=arguments.samples,
            max_completion_length=arguments.new_tokens,
            generation_kwargs={"min_new_tokens": arguments.new_tokens},
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            num_iterations=1,
            learning_rate=1e-5,
            max_steps=arguments.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=make_model(shape, arguments.prompt_tokens + arguments.new_tokens + 1),
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, prompt)) for prompt in prompts]}),
            processing_class=make_tokenizer(shape.vocab_size),
            callbacks=[clock],
        )
        trainer.train()
    assert seen == [rows] * arguments.steps, seen
    return jobs.step_result(clock.times)


if __name__ == "__main__":
    jobs.main("trl", __doc__, {"rollout": rollout, "tail": tail, "step": step})
