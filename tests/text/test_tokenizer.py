import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from rlvr import errors
from rlvr.text.tokenizer import BpeTokenizer, ByteTokenizer, check_stop_strings, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder: all bytes, one merge, three special tokens, a bos before each document."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "he"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    return tmp_path


@given(st.text())
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([256, *tokenizer.encode(text), 257, 258, 263]) == text


def test_bytes_replace_invalid_utf8_and_know_their_special_ids(tmp_path):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([0x61, 0xFF, 0x62]) == "a\ufffdb"
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids) == (
        264,
        257,
        258,
        (257,),
    )
    assert tokenizer.encode("<eos>", add_special_tokens=True) == list(b"<eos>")
    tokenizer.save(tmp_path / "tokenizer")
    assert isinstance(load_tokenizer(tmp_path / "tokenizer"), ByteTokenizer)


def test_folder_round_trip(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 256]}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "<|im_end|>"}))
    template = "{{ messages }}\r\nä\n"
    (folder / "chat_template.jinja").write_bytes(template.encode())
    first = load_tokenizer(folder)
    first.save(tmp_path / "again")
    for tokenizer in (first, load_tokenizer(tmp_path / "again")):
        assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (260, 257, 258)
        assert tokenizer.stop_ids == (258, 256, 259) and tokenizer.pad_id == 258
        assert tokenizer.chat_template == template
        ids = tokenizer.encode("hé he</s>")
        assert ids[-1] == 258 and 256 in ids and tokenizer.decode(ids) == "hé he"
        assert tokenizer.encode("he", add_special_tokens=True) == [257, 256]
        assert tokenizer.decode([256, 100_000]) == "he"
        assert tokenizer.token_text(258) == "</s>"


def test_a_stop_string_with_a_special_token_is_refused(folder):
    bpe = load_tokenizer(folder)
    check_stop_strings(bpe, ("he", " \n", "é", "<s"), "--stop")
    check_stop_strings(ByteTokenizer(), ("<eos>",), "--stop")
    with pytest.raises(errors.ConfigError, match=r"--stop='<\|im_end\|>' holds .* and ends a completion already"):
        check_stop_strings(bpe, ("he", "<|im_end|>"), "--stop")
    with pytest.raises(errors.ConfigError, match=r"--stop='h<s>' holds the special token '<s>', .* text \(accepted"):
        check_stop_strings(bpe, ("h<s>",), "--stop")


def test_saved_files_are_read_by_transformers(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(folder)
    ours.save(tmp_path / "again")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert theirs.eos_token_id == 258
    for text in ("hello", "he said </s>", " é\n"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


def test_padding_and_truncation_in_the_file_are_ignored(folder):
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_padding(length=50)
    backend.enable_truncation(max_length=3)
    backend.save(str(folder / "tokenizer.json"))
    assert len(load_tokenizer(folder).encode("abcdefgh")) == 8


def test_one_of_several_templates(folder):
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "</s>", "chat_template": templates}))
    assert load_tokenizer(folder).chat_template == "d"
    config.write_text(json.dumps({"eos_token": "</s>", "chat_template": templates[:1]}))
    with pytest.raises(errors.WeightsError, match=r"none of them named 'default' \(found: 'tool_use'\)"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "the file is missing"),
        ("tokenizer.json", "{", "not a tokenizer"),
        ("tokenizer_config.json", "[]", "holds a JSON list, expected an object"),
        ("tokenizer_config.json", '{"eos_token": "<eos>"}', "eos_token='<eos>' is not in the vocabulary"),
        ("tokenizer_config.json", '{"pad_token": 7}', "pad_token=7 is not in the vocabulary"),
        ("tokenizer_config.json", '{"chat_template": 7}', "chat_template is a int, expected a string"),
        ("generation_config.json", '{"eos_token_id": "2"}', "eos_token_id='2' must be an integer or a list"),
        (
            "generation_config.json",
            '{"eos_token_id": 900}',
            "the stop token id 900 is outside the vocabulary",
        ),
        ("byte_tokenizer.json", '{"kind": "byte", "vocab_size": 9}', "expected {'kind': 'byte'"),
    ],
)
def test_errors_name_the_file(folder, file, content, message):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(errors.WeightsError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value) and (file in str(caught.value) or "outside" in message)


def test_something_must_end_a_completion():
    with pytest.raises(errors.WeightsError, match="x: no end-of-sequence token"):
        BpeTokenizer(
            tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[])),
            bos_id=None,
            eos_id=None,
            pad_id=None,
            stop_ids=[],
            chat_template=None,
            where="x",
        )


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(errors.WeightsError, match="absent: no such tokenizer folder"):
        load_tokenizer(tmp_path / "absent")
