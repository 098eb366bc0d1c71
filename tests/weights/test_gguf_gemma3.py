"""Gemma 3 in GGUF files: tiny ones made from transformers' weights, and the real 270M."""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlvr import errors
from rlvr.policy.config import RopeConfig
from rlvr.policy.transformer import Policy
from rlvr.text.metadata import Fields
from rlvr.weights import gguf, gguf_families, importer, layout

D, H, K, HEAD, F, LAYERS, WINDOW = 32, 4, 2, 6, 40, 3, 5
TOKENS = ["<pad>", "<eos>", "<bos>", "<end_of_turn>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"abc", "ab"]
V = len(TOKENS)
# How transformers names what a file holds, the layer's prefix left out.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def make_metadata(**changes):
    values = {
        "block_count": LAYERS,
        "context_length": 64,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": H,
        "attention.head_count_kv": K,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": WINDOW,
        "rope.freq_base": 1e6,
    } | changes
    return {f"gemma3.{key}": value for key, value in values.items() if value is not None} | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.scores": [float(-i) for i in range(V)],
        "tokenizer.ggml.token_type": [3] * 4 + [6] * 256 + [1] * (V - 260),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def read_config(**changes):
    fields = Fields("f", {"general.architecture": "gemma3"} | make_metadata(**changes))
    return gguf_families.choose_family(fields).read_config(fields, V, True)


def to_gguf(state):
    """Renames, and adds the one that the network of transformers adds to the weight of a norm."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in range(LAYERS):
        names |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in LAYER_NAMES.items()}
    return {
        f"{ours}.weight": state[f"{theirs}.weight"].numpy() + np.float32(ours.endswith("norm"))
        for ours, theirs in names.items()
    }


def compute_logprobs(policy, params, tokens):
    """[B, T, V]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return jax.nn.log_softmax(policy.logits(params, policy.forward(params, tokens, positions).hidden))


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [({}, "default"), ({"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, "linear")],
)
def test_computes_what_transformers_computes(tmp_path, tiny, keys, scaling):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    full = {"rope_type": scaling, "rope_theta": 1e6} | ({"factor": 8.0} if scaling == "linear" else {})
    config = transformers.Gemma3TextConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=LAYERS,
        num_attention_heads=H,
        num_key_value_heads=K,
        head_dim=HEAD,
        query_pre_attn_scalar=HEAD,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForCausalLM(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    path = tmp_path / "tiny.gguf"
    metadata = make_metadata(**{"attention.sliding_window_pattern": 2} | keys)
    tiny.write_gguf(path, metadata, to_gguf(model.state_dict()), "gemma3")
    read = importer.read_weights(path)
    assert read.config.family == "gemma3_text" and read.config.tied_head
    tokens = np.random.default_rng(0).integers(0, V, (2, 24)).astype(np.int32)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens.astype(np.int64))).logits.double().log_softmax(-1).numpy()
    policy = Policy(read.config)
    ours = jax.jit(lambda params: compute_logprobs(policy, params, tokens))(read.params)
    assert theirs.std() > 1.0  # a flat distribution would agree whatever the network does
    np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=0)
    assert read.tokenizer.encode("ab c", add_special_tokens=True) == [2, TOKENS.index("ab"), 260, TOKENS.index("c")]
    assert read.tokenizer.stop_ids == (1, 3) and read.tokenizer.chat_template.startswith("{{ bos_token }}")


def test_five_of_six_layers_have_windows_and_unscaled_rope():
    config = read_config(block_count=13)
    assert config.window_layers == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12) and config.sliding_window == WINDOW
    assert config.rope == RopeConfig(theta=1e6) and config.window_theta == 10_000.0
    assert config.context_length == 64
    scaled = read_config(**{"rope.freq_base": None, "rope.scaling.factor": 8.0, "rope.freq_base_swa": 5e3})
    assert scaled.rope == RopeConfig(theta=1e6, scaling="linear", factor=8.0) and scaled.window_theta == 5e3
    assert read_config(**{"rope.scaling.type": "none", "rope.scaling.factor": 8.0}).rope.scaling == "none"


def test_scores_are_scaled_by_the_head_size_except_in_the_largest():
    sizes = {"embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    sizes |= {"attention.value_length": 128, "attention.head_count_kv": 16}
    assert read_config(**sizes, block_count=48).attention_scale == 128**-0.5
    assert read_config(**sizes, block_count=62).attention_scale == 168**-0.5  # as the 27B's config.json says
    assert read_config(**sizes).embed_scale == pytest.approx(5376**0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.sliding_window": None}, "the field gemma3.attention.sliding_window is missing"),
        ({"final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping=30.0 is not supported"),
        ({"attention.key_length_swa": 4}, "gemma3.attention.key_length_swa=4 is not supported"),
        (
            {"rope.scaling.type": "yarn"},
            "gemma3.rope.scaling.type='yarn' is not supported (accepted: 'none', 'linear')",
        ),
        ({"rope.scaling.factor": -1.0}, "gemma3.rope.scaling.factor=-1.0 must be a positive number"),
        ({"attention.value_length": 8}, "gemma3.attention.value_length=8 is not supported (accepted: 6)"),
        ({"vocab_size": 7}, f"gemma3.vocab_size=7 is not supported (accepted: {V})"),
    ],
)
def test_refuses_metadata_it_cannot_honour(changes, message):
    with pytest.raises(errors.WeightsError) as caught:
        read_config(**changes)
    assert message in str(caught.value)


def test_refuses_tensors_that_do_not_fit(tmp_path, tiny):
    config = dataclasses.replace(read_config(), layers=LAYERS)
    shapes = {t.name: t.shape for t in layout.expand_names(config, gguf_families.GEMMA3_NAMES)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    path = tmp_path / "tiny.gguf"

    def message(tensors):
        tiny.write_gguf(path, make_metadata(), tensors, "gemma3")
        with pytest.raises(errors.WeightsError) as caught:
            gguf.read_gguf(path)
        return str(caught.value)

    lacking = {name: value for name, value in tensors.items() if name != "blk.1.post_ffw_norm.weight"}
    assert "the tensor 'blk.1.post_ffw_norm.weight' of shape [32] is missing" in message(lacking)
    # Only Llama's files scale RoPE by a tensor.
    assert "takes: 'rope_freqs.weight' [3]" in message(tensors | {"rope_freqs.weight": np.ones(3, np.float32)})


@pytest.mark.slow
@pytest.mark.timeout(1800)  # for a busy machine: it takes 300 s of CPU
def test_gemma3_270m_equals_transformers(gemma3_gguf, shared):
    """Log-probs of 20 rows of GSM8K, of one row longer than the window, and the tokenizer on all of them.

    The library reads the file by itself: its names, its norms, its merges.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with gzip.open(shared / "gsm8k" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(20), strict=False)]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    read = importer.read_weights(gemma3_gguf)
    assert layout.count_parameters(read.params) == 268_098_176
    theirs = transformers.AutoTokenizer.from_pretrained(gemma3_gguf.parent, gguf_file=gemma3_gguf.name)
    encoded = [read.tokenizer.encode(text, add_special_tokens=True) for text in texts]
    assert encoded == [theirs(text)["input_ids"] for text in texts]
    assert [read.tokenizer.decode(ids) for ids in encoded] == texts

    model = transformers.AutoModelForCausalLM.from_pretrained(
        gemma3_gguf.parent, gguf_file=gemma3_gguf.name, dtype=torch.float32
    )
    joined = [2, *(token for ids in encoded for token in ids[1:])][:700]
    assert read.config.sliding_window == 512
    policy = Policy(read.config)

    @jax.jit
    def score(params, tokens):
        """Log-prob of every token but the first; never a second array of [T, V]."""
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        logits = policy.logits(params, policy.forward(params, tokens, positions).hidden[0, :-1])
        chosen = jnp.take_along_axis(logits, tokens[0, 1:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    largest = 0.0
    for ids in [*encoded, joined]:
        padded = np.zeros((1, 256 if len(ids) <= 256 else len(joined)), np.int32)
        padded[0, : len(ids)] = ids
        ours = np.asarray(score(read.params, padded))[: len(ids) - 1]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
            expected = logits[range(len(ids) - 1), ids[1:]] - logits.logsumexp(-1)
        largest = max(largest, float(np.abs(ours - expected.numpy()).max()))
    print(f"largest log-prob difference {largest:.2e}")
    assert largest < 2e-4
