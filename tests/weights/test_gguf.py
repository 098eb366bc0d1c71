import dataclasses
import itertools
import struct
import unicodedata

import gguf as gguf_package
import numpy as np
import pytest

from rlvr import errors
from rlvr.policy.config import PolicyConfig, RopeConfig
from rlvr.text import chat
from rlvr.weights import gguf, gguf_families, importer, layout

Q8_0, Q4_1 = gguf_package.GGMLQuantizationType.Q8_0, gguf_package.GGMLQuantizationType.Q4_1


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def test_reads_config_and_values(tiny):
    d, h, k, head, f, n = tiny.dims
    read = gguf.read_gguf(tiny.write())
    assert read.config == PolicyConfig(
        family="llama",
        vocab_size=tiny.vocab,
        dim=d,
        layers=n,
        context_length=64,
        query_heads=h,
        kv_heads=k,
        head_size=head,
        hidden=f,
        tied_head=False,
        rope=RopeConfig(theta=5000.0),
        norm_epsilon=1e-5,
    )
    assert read.stored_types == ("F32",)
    w = tiny.weights
    np.testing.assert_array_equal(read.params["embed"]["table"], w["model.embed_tokens.weight"])
    np.testing.assert_array_equal(read.params["head"]["kernel"], w["lm_head.weight"].T)
    np.testing.assert_array_equal(read.params["final_norm"]["scale"], w["model.norm.weight"])
    for i in range(n):
        ours, theirs = read.params[f"layer_{i}"], f"model.layers.{i}."
        x = np.random.default_rng(1).normal(size=d).astype(np.float32)
        heads = np.random.default_rng(2).normal(size=(h, head)).astype(np.float32)
        for name, count in (("q", h), ("k", k), ("v", k)):
            kernel = ours["attention"][{"q": "query", "k": "key", "v": "value"}[name]]
            assert kernel.shape == (d, count, head)
            expected = (w[theirs + f"self_attn.{name}_proj.weight"] @ x).reshape(count, head)
            np.testing.assert_allclose(np.einsum("d,dnh->nh", x, kernel), expected, rtol=1e-4, atol=1e-4)
        out = np.einsum("nh,nhd->d", heads, ours["attention"]["out"])
        np.testing.assert_allclose(out, w[theirs + "self_attn.o_proj.weight"] @ heads.reshape(-1), rtol=1e-4, atol=1e-4)
        for name in ("gate", "up", "down"):
            np.testing.assert_array_equal(ours["mlp"][name], w[theirs + f"mlp.{name}_proj.weight"].T)
        np.testing.assert_array_equal(ours["attention_norm"]["scale"], w[theirs + "input_layernorm.weight"])
        np.testing.assert_array_equal(ours["mlp_norm"]["scale"], w[theirs + "post_attention_layernorm.weight"])
    for path, value in leaves(read.params):
        assert value.dtype == np.float32 and value.flags.owndata and value.flags.c_contiguous, path


def test_deinterleaved_rows_give_the_same_scores_under_half_split_rope():
    """Interleaved RoPE on the stored rows and half-split RoPE on ours score every pair of positions alike."""
    head, d, rng = 8, 5, np.random.default_rng(0)
    stored = {name: rng.normal(size=(2 * head, d)) for name in "qk"}
    ours = {name: gguf.deinterleave(rows, head) for name, rows in stored.items()}
    x = rng.normal(size=d)
    angles = 100.0 ** (-np.arange(head // 2) / (head // 2))

    def interleaved(v, position):
        turned = (v[..., 0::2] + 1j * v[..., 1::2]) * np.exp(1j * position * angles)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(v.shape)

    def half_split(v, position):
        turned = (v[..., : head // 2] + 1j * v[..., head // 2 :]) * np.exp(1j * position * angles)
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def scores(rows, rope, p, q):
        query, key = ((rows[n] @ x).reshape(2, head) for n in "qk")
        return (rope(query, p) * rope(key, q)).sum(-1)

    for p, q in ((0, 0), (3, 1), (17, 5)):
        expected = scores(stored, interleaved, p, q)
        np.testing.assert_allclose(scores(ours, half_split, p, q), expected, rtol=1e-10)
    assert not np.allclose(scores(stored, half_split, 3, 1), scores(stored, interleaved, 3, 1))


def test_quantized_tensors_are_dequantized_in_place(tiny):
    plain = dict(leaves(gguf.read_gguf(tiny.write()).params))
    read = gguf.read_gguf(tiny.write(quantized={"blk.0.attn_k.weight": Q8_0, "blk.1.ffn_up.weight": Q4_1}))
    assert read.stored_types == ("F32", "Q4_1", "Q8_0")
    # Values are within 4 or so: the steps of the two formats are 4/127 and 8/15, the error half a step.
    tolerance = {"layer_0/attention/key": 0.02, "layer_1/mlp/up": 0.3}
    for path, value in leaves(read.params):
        gap = np.abs(value - plain[path]).max()
        assert (0 < gap < tolerance[path]) if path in tolerance else gap == 0, path


def test_head_is_tied_where_the_file_has_no_output_tensor(tiny):
    del tiny.tensors["output.weight"]
    read = gguf.read_gguf(tiny.write())
    assert read.config.tied_head and "head" not in read.params


def test_optional_keys_have_the_defaults_of_the_format(tiny):
    for key in ("llama.rope.freq_base", "llama.rope.dimension_count"):
        del tiny.metadata[key]
    tiny.metadata["llama.rope.scaling.type"] = "none"
    assert gguf.read_gguf(tiny.write()).config.rope.theta == 10_000.0


def llama3_factors(factor, theta, head_size, **changes):
    """What llama.cpp's converter writes for a Llama 3.1 policy, from the library's own frequencies: [h/2]."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": 8192}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} | changes
    config = transformers.LlamaConfig(head_dim=head_size, rope_parameters=rope)
    initialise = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    scaled, magnitude = initialise(config, torch.device("cpu"))
    assert magnitude == 1.0
    plain = theta ** (-np.arange(0, head_size, 2) / head_size)
    return (plain / scaled.double().numpy()).astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])  # Llama 3.1 and 3.2
def test_rope_factors_give_the_scaling_of_llama3(tiny, factor):
    tiny.metadata["llama.rope.freq_base"] = 500_000.0
    tiny.tensors["rope_freqs.weight"] = llama3_factors(factor, 500_000.0, 6)
    read = gguf.read_gguf(tiny.write())
    expected = RopeConfig(theta=500_000.0, scaling="llama3", factor=factor, original_length=8192)
    assert read.config.rope == expected
    # The real head size has pairs of all three kinds: left alone, blended, and slowed by the whole factor.
    factors = llama3_factors(factor, 500_000.0, 128)
    assert np.sum((factors > 1.01) & (factors < 0.99 * factor)) > 3
    config = dataclasses.replace(read.config, head_size=128, rope=RopeConfig(theta=500_000.0))
    assert gguf_families.read_rope_factors("f", factors, config) == expected


def test_rope_factors_of_one_mean_no_scaling(tiny):
    tiny.tensors["rope_freqs.weight"] = np.ones(3, np.float32)
    assert gguf.read_gguf(tiny.write()).config.rope == RopeConfig(theta=5000.0)


@pytest.mark.parametrize(
    "changes", [{"original_max_position_embeddings": 4096}, {"low_freq_factor": 1.01}, {"high_freq_factor": 3.9}]
)
def test_refuses_other_rope_factors(tiny, changes):
    config = PolicyConfig(head_size=128, rope=RopeConfig(theta=500_000.0))
    with pytest.raises(
        errors.WeightsError, match=r"f: the tensor 'rope_freqs.weight' \[64\], 1 to 8, is not supported"
    ):
        gguf_families.read_rope_factors("f", llama3_factors(8.0, 500_000.0, 128, **changes), config)
    for bad in (np.nan, 0.0, -1.0):
        tiny.tensors["rope_freqs.weight"] = np.array([1.0, 1.0, bad], np.float32)
        with pytest.raises(errors.WeightsError, match=r"rope_freqs\.weight"):
            gguf.read_gguf(tiny.write())
    tiny.metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    tiny.tensors["rope_freqs.weight"] = np.array([1.0, 1.0, 8.0], np.float32)
    with pytest.raises(errors.WeightsError, match="RoPE is scaled twice"):
        gguf.read_gguf(tiny.write())


def test_linear_scaling_is_read_with_and_without_its_type(tiny):
    tiny.metadata["llama.rope.scaling.factor"] = 4.0
    expected = RopeConfig(theta=5000.0, scaling="linear", factor=4.0)
    assert gguf.read_gguf(tiny.write()).config.rope == expected
    tiny.metadata["llama.rope.scaling.type"] = "linear"
    assert gguf.read_gguf(tiny.write()).config.rope == expected


def test_a_type_that_cannot_be_read_is_refused_by_the_name_of_the_tensor(tiny):
    name = "blk.1.attn_k.weight"
    whole = tiny.write().read_bytes()
    # In the header: the name, the number of dimensions, the dimensions, the type.
    at = whole.index(name.encode()) + len(name) + 4 + 2 * 8
    assert whole[at : at + 4] == bytes(4)  # F32
    for kind, message in (
        (99, f"the tensor '{name}' has the unknown type 99 (accepted: those of ggml up to "),
        (26, f"the tensor '{name}' has type I32, which cannot be read"),
    ):
        tiny.path.write_bytes(whole[:at] + struct.pack("<I", kind) + whole[at + 4 :])
        with pytest.raises(errors.WeightsError) as caught:
            gguf.read_gguf(tiny.path)
        assert f"{tiny.path}: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "llama.rope.scaling.type",
            "yarn",
            "llama.rope.scaling.type='yarn' is not supported (accepted: 'none', 'linear')",
        ),
        (
            "llama.rope.scaling.original_context_length",
            8192,
            "llama.rope.scaling.original_context_length=8192 is not supported",
        ),
        ("llama.attention.sliding_window", 16, "llama.attention.sliding_window=16 is not supported"),
        ("llama.expert_count", 8, "llama.expert_count=8 is not supported (accepted: 0)"),
        ("llama.rope.dimension_count", 4, "llama.rope.dimension_count=4 is not supported (accepted: 6)"),
        ("llama.vocab_size", 7, "llama.vocab_size=7 is not supported"),
        ("llama.block_count", None, "the field llama.block_count is missing"),
        ("llama.attention.head_count_kv", [2, 1], "llama.attention.head_count_kv=[2, 1] must be a positive"),
        ("llama.attention.head_count_kv", 3, "policy.query_heads=4 is not a multiple of policy.kv_heads=3"),
        ("llama.block_count", 3, "the tensor 'blk.2.attn_norm.weight' of shape [32] is missing"),
        (
            "llama.block_count",
            1,
            "tensors that no parameter of this policy takes: 'blk.1.attn_k.weight' [12, 32]",
        ),
        (
            "llama.feed_forward_length",
            44,
            "the tensor 'blk.0.ffn_gate.weight' has shape [40, 32]; the metadata asks for [44, 32]",
        ),
        ("split.count", 2, "split.count=2 is not supported"),
        (
            "tokenizer.ggml.pre",
            "qwen2",
            "tokenizer.ggml.pre='qwen2' is not a known pre-tokenizer (accepted: smollm",
        ),
        ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model='bert' is not supported"),
    ],
)
def test_refuses_metadata_it_cannot_honour(tiny, key, value, message):
    tiny.metadata[key] = value
    if value is None:
        del tiny.metadata[key]
    path = tiny.write()
    with pytest.raises(errors.WeightsError) as caught:
        importer.read_weights(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_refuses_another_architecture(tiny):
    with pytest.raises(errors.WeightsError, match=r"general.architecture='gemma2' .*accepted: llama, gemma3"):
        gguf.read_gguf(tiny.write(arch="gemma2"))


def test_refuses_tensors_that_do_not_fit(tiny):
    def message():
        with pytest.raises(errors.WeightsError) as caught:
            gguf.read_gguf(tiny.write())
        return str(caught.value)

    whole = dict(tiny.tensors)
    del tiny.tensors["blk.1.attn_v.weight"]
    assert "the tensor 'blk.1.attn_v.weight' of shape [12, 32] is missing" in message()
    del tiny.tensors["token_embd.weight"]
    assert "'token_embd.weight' is missing" in message()
    tiny.tensors = whole | {"blk.0.attn_q.bias": np.zeros(24, np.float32)}
    assert "takes: 'blk.0.attn_q.bias' [24]" in message()
    tiny.tensors = whole | {"rope_freqs.weight": np.ones(4, np.float32)}
    assert "takes: 'rope_freqs.weight' [4]" in message()
    spoiled = whole["blk.0.ffn_down.weight"].copy()
    spoiled[3, 5] = np.nan
    tiny.tensors = whole | {"blk.0.ffn_down.weight": spoiled}
    assert "'blk.0.ffn_down.weight' holds NaN or infinity" in message()


def test_every_truncation_is_refused_by_name(tiny):
    whole = tiny.write().read_bytes()
    for size in [0, 3, 4, 8, 20, *np.linspace(24, len(whole) - 64, 40, dtype=int)]:
        tiny.path.write_bytes(whole[:size])
        with pytest.raises(errors.WeightsError, match=r"tiny\.gguf: (not a GGUF file|truncated or corrupt)"):
            gguf.read_gguf(tiny.path)


def test_refuses_paths_without_weights(tmp_path, tiny):
    with pytest.raises(errors.WeightsError, match="absent: no such file or folder"):
        importer.read_weights(tmp_path / "absent")
    with pytest.raises(errors.WeightsError, match=r"exactly one \.gguf file, found neither"):
        importer.read_weights(tmp_path)
    tiny.write()
    assert importer.read_weights(tmp_path).config.dim == 32
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(errors.WeightsError, match=r"found 2 \.gguf files \(other.gguf, tiny.gguf\)"):
        importer.read_weights(tmp_path)


def test_refuses_more_tokens_than_rows(tiny):
    tiny.tensors["token_embd.weight"] = tiny.tensors["token_embd.weight"][:-1]
    tiny.tensors["output.weight"] = tiny.tensors["output.weight"][:-1]
    with pytest.raises(errors.WeightsError, match=f"has {tiny.vocab} ids, but .* only {tiny.vocab - 1} rows"):
        importer.read_weights(tiny.write())


TEXTS = [
    "Hello world",
    " they're WE'LL it's",
    "naïve café Straße 日本語 한국어 😀👩‍👩‍👧 ﬀ",
    "def f(x):\n    return x**(y)\n\n\n# done\r\n\r\n",
    "a  b   c\t\td \n \n e\u00a0f\u200bg",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start|",
    "",
    " ",
    "1 22 333 4444 3.14159 1,000,000 x² ½ ٣٤ Ⅷ",
    "  12\n34\r\n56  7th",
]


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_tokenizer_equals_the_one_the_file_was_made_from(tmp_path, tiny, pre):
    tiny.metadata = tiny.default_metadata(pre)
    tiny.vocab = len(tiny.metadata["tokenizer.ggml.tokens"])
    tiny.tensors = tiny.to_gguf(tiny.make_weights(0, tiny.vocab))
    ours = importer.read_weights(tiny.write()).tokenizer
    original = tiny.train_tokenizer(pre)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == original.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ids) == original.decode(ids, skip_special_tokens=True), text
    assert ours.encode("<|im_end|>") == [2] and ours.decode([2]) == ""
    assert ours.stop_ids == (2, 0) and ours.pad_id == 2 and ours.bos_id == 1
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in TEXTS[:8] if pre == "smollm" else TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def pieces(text):
    """Numeric characters one by one, the rest in runs."""
    for numeric, group in itertools.groupby(text, lambda c: unicodedata.category(c)[0] == "N"):
        run = list(group)
        yield from run if numeric else ["".join(run)]


def test_smollm2_equals_transformers(real_gguf):
    """Every weight bit for bit, with the library's reordering of queries and keys; the tokenizer on texts.

    The library's conversion of the tokenizer does not cut digits apart first, as this one was trained to: the
    oracle is its encoding of the pieces.
    """
    transformers = pytest.importorskip("transformers")
    loader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    policy = importer.read_weights(real_gguf)
    c = policy.config
    assert layout.count_parameters(policy.params) == 134_515_008
    assert (c.layers, c.query_heads, c.kv_heads, c.head_size, c.tied_head) == (30, 9, 3, 64, True)
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    processor = loader.LlamaTensorProcessor(config=heads)
    theirs = {}
    for tensor in gguf_package.GGUFReader(real_gguf).tensors:
        values = gguf_package.quants.dequantize(tensor.data, tensor.tensor_type)
        theirs[tensor.name] = processor.process(values, tensor.name).weights
    names = {"attention/query": "attn_q", "attention/key": "attn_k", "attention/value": "attn_v"}
    names |= {
        "mlp/gate": "ffn_gate",
        "mlp/up": "ffn_up",
        "mlp/down": "ffn_down",
        "attention/out": "attn_output",
    }
    names |= {"attention_norm/scale": "attn_norm", "mlp_norm/scale": "ffn_norm"}
    for path, ours in leaves(policy.params):
        layer, _, rest = path.partition("/")
        if rest in names:
            expected = theirs.pop(f"blk.{layer.removeprefix('layer_')}.{names[rest]}.weight")
        else:
            expected = theirs.pop({"embed": "token_embd.weight", "final_norm": "output_norm.weight"}[layer])
        if rest == "attention/out":
            ours = ours.reshape(-1, c.dim).T
        elif rest.startswith(("attention/", "mlp/")):
            ours = ours.reshape(ours.shape[0], -1).T
        np.testing.assert_array_equal(ours, expected, err_msg=path)
    assert not theirs

    tokenizer = transformers.AutoTokenizer.from_pretrained(real_gguf.parent, gguf_file=real_gguf.name)
    for text in TEXTS:
        expected = [i for piece in pieces(text) for i in tokenizer.encode(piece, add_special_tokens=False)]
        assert policy.tokenizer.encode(text) == expected, text
        assert policy.tokenizer.decode(expected) == tokenizer.decode(expected, skip_special_tokens=True)
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.encode_prompt(policy.tokenizer, messages) == expected
    assert policy.tokenizer.stop_ids == (2, 0)
