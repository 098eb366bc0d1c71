"""The verifier under jit against the host's, on whatever a policy might write."""

import itertools

import jax
import numpy as np

from rlvr.program.verifier import verify_exact
from rlvr.text.tokenizer import ByteTokenizer
from rlvr.verifiers.plain import verify_exact as verify_on_host

TOKENIZER = ByteTokenizer()
LENGTH, EOS = 26, 257
JUDGE = jax.jit(verify_exact)

# Every character that Python takes for white space, and some that look as if they were.
SPACES = [chr(i) for i in range(0x110000) if chr(i).isspace()]
NEARLY = ["\u200b", "\u180e", "\u2060", "\ufeff", "\u0084", "\u00a1", "\u2027", "\u200c", "\u2030"]
WRITTEN = [
    "", " ", "7", "47", "47 ", "  47", "\t47\n", "047", "+47", "-47", "47.", "47.0", "4 7", "47 47", "4\u00a07", "48",
    "\uff14\uff17", "\u0664\u0667", "47\u0301", "47\x00", "<think>", "</think>", "<think>47", "<think>x</think>47",
    "</think>47", "47</think>", "1</think>2</think>47", "</think>4</think>7", "</think> 47 ", "<think>47</think>",
    "</think><think>47", "<think></think>\u3000 47", "<think</think>47", "</think >47", "</THINK>47", "<</think>47",
    "\\boxed{47}", "#### 47", "47 km", "forty", "\x1c47\x1f", "47\x85", "</thin", "k>47",
]  # fmt: skip
# Bytes that are no UTF-8: cut and overlong characters, lone continuations, surrogates.
BROKEN = [
    b"\xc2",
    b"\xe2\x80",
    b"\x80",
    b"\xa0",
    b"\xff",
    b"\xe1\x9a",
    b"\xc0\xa0",
    b"\xed\xa0\x80",
    b"\xf0\x9f\xe2\x80\x80",
]


def judge(rows, answers):
    """Returns the statuses of (ids, answer) pairs under jit and on the host."""
    tokens = np.full((len(rows), LENGTH), 52, np.int32)  # what is past the end is garbage that could be an answer
    references = np.full((len(rows), LENGTH + 1), -1, np.int32)
    for i, (ids, answer) in enumerate(zip(rows, answers, strict=True)):
        tokens[i, : len(ids)] = ids
        references[i, : len(answer)] = list(answer.encode())
    found = jax.tree.map(np.asarray, JUDGE(tokens, np.array([len(ids) for ids in rows], np.int32), references))
    ours = np.where(found.correct, "correct", np.where(found.unparsed, "unparsed", "wrong")).tolist()
    payload = {"answer_format": "bare"}
    texts = [TOKENIZER.decode([int(i) for i in ids]) for ids in rows]
    return ours, [verify_on_host(text, a, payload).status for text, a in zip(texts, answers, strict=True)], texts


def check(rows, answers):
    ours, host, texts = judge(rows, answers)
    wrong = [row for row in zip(texts, answers, ours, host, strict=True) if row[2] != row[3]]
    assert not wrong, wrong[:5]
    return host


def test_adversarial_completions_are_judged_as_on_the_host():
    texts = [text.encode() for text in WRITTEN]
    around = [space.encode() for space in SPACES + NEARLY] + BROKEN
    texts += [part for space in around for part in (space + b"47", b"47" + space, b"4" + space + b"7", space)]
    rows = [list(text)[:LENGTH] for text in texts]
    rows += [[*row, EOS][:LENGTH] for row in rows]
    rows += [[256, *row[:1], 260, EOS, *row[1:]][:LENGTH] for row in rows]  # special tokens are left out wherever
    for answer in ("47", "-47", "7"):
        statuses = check(rows, [answer] * len(rows))
    assert set(statuses) == {"correct", "wrong", "unparsed"}


def test_random_completions_are_judged_as_on_the_host():
    rng = np.random.default_rng(0)
    pieces = [*WRITTEN, *SPACES, "4", "7", "<think>", "</think>"]
    rows, answers = [], []
    for _ in range(2000):
        chosen = b"".join(pieces[i].encode() for i in rng.integers(len(pieces), size=rng.integers(1, 6)))
        ids = list(chosen)[: rng.integers(1, LENGTH + 1)]
        for at in rng.integers(len(ids), size=rng.integers(0, 2)):
            ids[at] = int(rng.integers(264))
        rows.append(ids)
        answers.append(("47", "7", "4")[rng.integers(3)])
    statuses = check(rows, answers)
    assert min(statuses.count(name) for name in ("correct", "wrong", "unparsed")) > 20
    check([rng.integers(264, size=rng.integers(1, LENGTH + 1)).tolist() for _ in range(2000)], ["47"] * 2000)


def test_every_short_text_of_the_bytes_that_matter():
    alphabet = [*b"47 ", 0xC2, 0xA0, 0xE2, 0x80, 256]
    rows = [list(ids) for n in range(1, 5) for ids in itertools.product(alphabet, repeat=n)]
    assert "correct" in check(rows, ["47"] * len(rows))


def test_completions_too_short_for_the_marks_and_answers_longer_than_completions():
    tokens, lengths = np.array([[52, 55, EOS], [52, 55, 49]], np.int32), np.array([3, 3], np.int32)
    answers = np.array([[52, 55, -1, -1], [52, 55, 49, 50]], np.int32)
    assert verify_exact(tokens, lengths, answers).correct.tolist() == [True, False]
