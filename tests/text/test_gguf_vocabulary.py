import pytest
from tokenizers import pre_tokenizers

from rlvr import errors
from rlvr.text.gguf_vocabulary import make_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|endoftext|>", "<|im_end|>", "<think>", *BYTES, "12", "Ġ1", "ab", "abc", "orphan", "Ċ1"]
IDS = {token: i for i, token in enumerate(TOKENS)}
MERGES = ["1 2", "Ġ 1", "a b", "ab c", "Ċ 1"]


def metadata(**changes):
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "token_type": [3, 3, 4] + [1] * (len(TOKENS) - 3),
        "merges": MERGES,
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def spell(tokenizer, text, **options):
    return [TOKENS[i] for i in tokenizer.encode(text, **options)]


def test_smollm_cuts_every_digit_off():
    tokenizer = make_tokenizer(metadata(), "f")
    assert spell(tokenizer, "abc 12\n1") == ["abc", "Ġ", "1", "2", "Ċ", "1"]
    # No token of its own, though spelled in the vocabulary: no merge leads to it.
    assert spell(tokenizer, "orphan") == list("orphan")
    assert spell(tokenizer, "a", add_special_tokens=True) == ["a"]


def test_llama_bpe_groups_digits_takes_whole_tokens_and_begins_with_bos():
    tokenizer = make_tokenizer(metadata(pre="llama-bpe"), "f")
    assert spell(tokenizer, "abc 1212") == ["abc", "Ġ", "12", "1", "2"]
    assert spell(tokenizer, "orphan") == ["orphan"]
    assert spell(tokenizer, "a", add_special_tokens=True) == ["<|endoftext|>", "a"]
    assert spell(tokenizer, "a") == ["a"]
    assert spell(make_tokenizer(metadata(pre="llama-bpe", add_bos_token=False), "f"), "a") == ["a"]


def test_control_tokens_are_special_and_user_defined_ones_are_text():
    tokenizer = make_tokenizer(metadata(), "f")
    ids = tokenizer.encode("a<think>b<|im_end|>")
    assert ids == [IDS["a"], IDS["<think>"], IDS["b"], IDS["<|im_end|>"]]
    assert tokenizer.decode(ids) == "a<think>b"


def test_stop_tokens_are_the_declared_ones_then_the_known_ones():
    assert make_tokenizer(metadata(), "f").stop_ids == (1, 0)
    assert make_tokenizer(metadata(eos_token_id=None, eot_token_id=5), "f").stop_ids == (5, 0, 1)
    assert make_tokenizer(metadata(), "f").pad_id == 1
    assert make_tokenizer(metadata(padding_token_id=0), "f").pad_id == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model='bert' is not supported (accepted: gpt2, llama)"),
        ({"pre": "default"}, "tokenizer.ggml.pre='default' is not a known pre-tokenizer"),
        ({"pre": None}, "tokenizer.ggml.pre=None is not a known pre-tokenizer"),
        ({"tokens": None}, "tokenizer.ggml.tokens must be a list of strings"),
        ({"tokens": [*TOKENS[:-1], "ab"]}, "tokenizer.ggml.tokens repeats ['ab']"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type must have 265 entries, found 1"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges has 'ab', expected two tokens"),
        ({"merges": ["x y"]}, "do not fit each other"),
        ({"eos_token_id": 900}, "tokenizer.ggml.eos_token_id=900 is not one of the 265 ids"),
        ({"add_bos_token": True, "bos_token_id": None}, "add_bos_token is set but bos_token_id is missing"),
        ({"add_eos_token": True}, "tokenizer.ggml.add_eos_token=True is not supported"),
        ({"add_space_prefix": True}, "tokenizer.ggml.add_space_prefix=True is not supported"),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(errors.WeightsError) as caught:
        make_tokenizer(metadata(**changes), "file.gguf")
    assert str(caught.value).startswith("file.gguf: ") and message in str(caught.value)
