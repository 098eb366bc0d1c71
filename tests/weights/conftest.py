"""Tiny weight files, written by the reference writers."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
D, H, K, HEAD, F, LAYERS = 32, 4, 2, 6, 40, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and then they're 12 times 34 is 408",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\r\n",
    "naïve café, Straße 7, 日本語 and ٣٤ and x² — 3.14159!!  \t end",
] * 4

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(pre: str) -> tokenizers.Tokenizer:
    """Trains a small tokenizer with the pre-tokenizer of SmolLM or Llama 3: what a GGUF file is made from."""
    backend = tokenizers.Tokenizer(models.BPE())
    if pre == "smollm":
        cut = [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)]
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
        cut = [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cut)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    return backend


def make_weights(seed: int, vocab: int) -> dict[str, np.ndarray]:
    """Random weights under their Hugging Face names, in Hugging Face layout."""
    rng = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (vocab, D),
        "model.norm.weight": (D,),
        "lm_head.weight": (vocab, D),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (D,),
            layer + "self_attn.q_proj.weight": (H * HEAD, D),
            layer + "self_attn.k_proj.weight": (K * HEAD, D),
            layer + "self_attn.v_proj.weight": (K * HEAD, D),
            layer + "self_attn.o_proj.weight": (D, H * HEAD),
            layer + "post_attention_layernorm.weight": (D,),
            layer + "mlp.gate_proj.weight": (F, D),
            layer + "mlp.up_proj.weight": (F, D),
            layer + "mlp.down_proj.weight": (D, F),
        }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


GGUF_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "lm_head.": "output.",
    "model.layers.": "blk.",
    "input_layernorm.": "attn_norm.",
    "self_attn.q_proj.": "attn_q.",
    "self_attn.k_proj.": "attn_k.",
    "self_attn.v_proj.": "attn_v.",
    "self_attn.o_proj.": "attn_output.",
    "post_attention_layernorm.": "ffn_norm.",
    "mlp.gate_proj.": "ffn_gate.",
    "mlp.up_proj.": "ffn_up.",
    "mlp.down_proj.": "ffn_down.",
}


def to_gguf(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames, and interleaves the halves of every query and key head, row by row."""
    out = {}
    for name, value in weights.items():
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)
        if ".attn_q." in name or ".attn_k." in name:
            rows = []
            for head in range(value.shape[0] // HEAD):
                for j in range(HEAD // 2):
                    rows += [value[head * HEAD + j], value[head * HEAD + j + HEAD // 2]]
            value = np.stack(rows)
        out[name] = value
    return out


def default_metadata(pre: str = "smollm") -> dict:
    """The metadata of the tiny file, tokenizer included."""
    backend = train_tokenizer(pre)
    vocab = backend.get_vocab()
    merges = [" ".join(m) for m in json.loads(backend.to_str())["model"]["merges"]]
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 64,
        "llama.embedding_length": D,
        "llama.feed_forward_length": F,
        "llama.attention.head_count": H,
        "llama.attention.head_count_kv": K,
        "llama.attention.key_length": HEAD,
        "llama.attention.value_length": HEAD,
        "llama.rope.dimension_count": HEAD,
        "llama.rope.freq_base": 5000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in SPECIALS else 1 for t in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(path: Path, metadata: dict, tensors: dict, arch: str = "llama", quantized: dict | None = None):
    """Writes one file; `quantized` maps a tensor's name to its type."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string("general.name", "tiny")
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    for name, value in tensors.items():
        kind = (quantized or {}).get(name)
        if kind is None:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Tiny:
    """The parts of a tiny policy and the writers, for tests to change one thing and write."""

    dims = (D, H, K, HEAD, F, LAYERS)
    make_weights = staticmethod(make_weights)
    to_gguf = staticmethod(to_gguf)
    write_gguf = staticmethod(write_gguf)
    train_tokenizer = staticmethod(train_tokenizer)
    default_metadata = staticmethod(default_metadata)

    def __init__(self, folder: Path, metadata: dict):
        self.path = folder / "tiny.gguf"
        self.metadata = dict(metadata)
        self.vocab = len(metadata["tokenizer.ggml.tokens"])
        self.weights = make_weights(0, self.vocab)
        self.tensors = to_gguf(self.weights)

    def write(self, arch: str = "llama", quantized: dict | None = None) -> Path:
        write_gguf(self.path, self.metadata, self.tensors, arch, quantized)
        return self.path


@pytest.fixture(scope="session")
def tiny_metadata() -> dict:
    return default_metadata()


@pytest.fixture
def tiny(tmp_path, tiny_metadata) -> Tiny:
    return Tiny(tmp_path, tiny_metadata)


def fetched(variable: str, pattern: str, script: str) -> Path:
    """The file that an environment variable names or that a script left in weights/; the test is skipped without."""
    named = os.environ.get(variable)
    found = [Path(named)] if named else sorted(ROOT.glob(f"weights/**/{pattern}"))
    if not found:
        pytest.skip(f"no {pattern}: run scripts/{script} or set {variable}")
    return found[0]


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct."""
    return fetched("RLVR_SMOLLM2", "SmolLM2-135M-Instruct*.gguf", "fetch_smollm2.sh")


@pytest.fixture(scope="session")
def gemma3_gguf() -> Path:
    """Gemma 3 270M."""
    return fetched("RLVR_GEMMA3", "gemma-3-270m*.gguf", "fetch_gemma3.sh")
