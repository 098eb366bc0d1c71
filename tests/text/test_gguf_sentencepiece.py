"""SentencePiece vocabularies of GGUF files, against the algorithm written out and against transformers."""

import functools
import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from rlvr import errors
from rlvr.text.gguf_vocabulary import make_tokenizer
from rlvr.text.tokenizer import load_tokenizer

SPACE = "\u2581"
CONTROL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
# As a file spells them: real spaces.
DEFINED = ["\n", "\n\n", "  ", "   ", "<b>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# From the highest score down; every piece of several characters joins two others, "cab" in two ways.
PIECES = [
    *(f"{SPACE}a", "ab", "ca", "aa", "bc", f"{SPACE}ab", "cab", "aab", f"{SPACE}ab{SPACE}", "abab", "aaaa", "b<"),
    *(SPACE, "a", "b", "c", "é", "<"),
]
TOKENS = [*CONTROL, *DEFINED, *BYTES, *PIECES]
TYPES = [3] * len(CONTROL) + [4] * len(DEFINED) + [6] * 256 + [1] * len(PIECES)
SCORES = [-1000.0] * (len(TOKENS) - len(PIECES)) + [-float(i) for i in range(len(PIECES))]
IDS = {token: i for i, token in enumerate(TOKENS)}


def metadata(**changes):
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": TOKENS,
        "scores": SCORES,
        "token_type": TYPES,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "padding_token_id": 0,
        "add_space_prefix": False,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@functools.cache
def make_default():
    return make_tokenizer(metadata(), "f")


def encode(text):
    """SentencePiece's BPE, step by step; 1808.06226 and its `bpe_model.cc`."""
    text = text.replace(" ", SPACE)
    defined = sorted((t.replace(" ", SPACE) for t in DEFINED), key=len, reverse=True)
    symbols = []  # (text, whether it may merge)
    while text:
        whole = next((t for t in defined if text.startswith(t)), None)
        symbols.append((whole, False) if whole else (text[0], True))
        text = text[len(symbols[-1][0]) :]
    while True:
        joins = [
            (PIECES.index(a + b), i)
            for i, ((a, free), (b, also)) in enumerate(itertools.pairwise(symbols))
            if free and also and a + b in PIECES
        ]
        if not joins:
            break
        best, i = min(joins)
        symbols[i : i + 2] = [(PIECES[best], True)]
    ids = []
    for symbol, free in symbols:
        if not free:
            ids.append(5 + [t.replace(" ", SPACE) for t in DEFINED].index(symbol))
        elif symbol in PIECES:
            ids.append(IDS[symbol])
        else:
            ids += [IDS[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return ids


@hypothesis.settings(max_examples=500, deadline=None, derandomize=True)
@hypothesis.given(st.text(st.sampled_from("aabbc  \n<b>é日\t<"), max_size=24))
def test_encodes_and_decodes_as_sentencepiece(text):
    tokenizer = make_default()
    ids = tokenizer.encode(text)
    assert ids == encode(text)
    assert tokenizer.decode(ids) == text


def test_pieces_bytes_and_whole_tokens():
    tokenizer = make_tokenizer(metadata(), "f")

    def spell(text, **options):
        return [TOKENS[i] for i in tokenizer.encode(text, **options)]

    assert spell("ab ab") == ["ab", f"{SPACE}ab"]
    assert spell("日") == ["<0xE6>", "<0x97>", "<0xA5>"]
    # User-defined tokens are cut out first, the longest at each place, and spelled with spaces or not.
    assert spell("a     a\n\n\nb<b>") == ["a", "   ", "  ", "a", "\n\n", "\n", "b", "<b>"]
    assert spell("<start_of_turn>a<end_of_turn>", add_special_tokens=True) == [
        "<bos>",
        "<start_of_turn>",
        "a",
        "<end_of_turn>",
    ]
    assert tokenizer.decode(tokenizer.encode("<start_of_turn>a<end_of_turn>")) == "a"
    assert tokenizer.decode([IDS["<0xE6>"], IDS["<0x97>"], IDS["a"]]) == "\ufffd\ufffda"
    assert tokenizer.stop_ids == (1, 4) and tokenizer.pad_id == 0 and tokenizer.bos_id == 2
    assert tokenizer.vocab_size == len(TOKENS)


def test_begins_with_bos_unless_the_file_says_otherwise():
    for add, expected in ((None, [2]), (True, [2]), (False, [])):
        tokenizer = make_tokenizer(metadata(add_bos_token=add), "f")
        assert tokenizer.encode("", add_special_tokens=True) == expected


def test_equals_itself_after_saving(tmp_path):
    tokenizer = make_tokenizer(metadata(), "f")
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "cab  ab\n\n\n <b>aaaa 日<end_of_turn>"
    assert loaded.encode(text, add_special_tokens=True) == tokenizer.encode(text, add_special_tokens=True)
    assert loaded.stop_ids == tokenizer.stop_ids
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == tokenizer.encode(text, add_special_tokens=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Absent means true for this kind.
        ({"add_space_prefix": None}, "tokenizer.ggml.add_space_prefix=None is not supported (accepted: False)"),
        ({"remove_extra_whitespaces": True}, "tokenizer.ggml.remove_extra_whitespaces=True is not supported"),
        ({"precompiled_charsmap": [1]}, "tokenizer.ggml.precompiled_charsmap=[1] is not supported"),
        ({"scores": None}, f"tokenizer.ggml.scores must have {len(TOKENS)} entries, found none"),
        ({"scores": [*SCORES[:-1], float("nan")]}, "tokenizer.ggml.scores must hold finite numbers"),
        ({"token_type": TYPES[:-1]}, f"must have {len(TOKENS)} entries, found {len(TOKENS) - 1}"),
        (
            {"tokens": [t if t != "<0x0A>" else "x" for t in TOKENS]},
            "tokenizer.ggml.tokens lacks 1 of the 256 byte tokens: ['<0x0A>']",
        ),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(errors.WeightsError) as caught:
        make_tokenizer(metadata(**changes), "file.gguf")
    assert str(caught.value).startswith("file.gguf: ") and message in str(caught.value)
