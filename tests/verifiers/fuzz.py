"""Rows that nobody meant: a seeded generator over all verifiers. No test in here."""

import json
import random
import string

from rlvr.verifiers import base
from rlvr.verifiers.instructions.registry import INSTRUCTIONS

_ODD = (
    "", " ", "\n", "\x00", "\x1b[31m", "\u202e", "\ud800", "\ufeff", "−", "٣", "５", "½", "²", "é", "中", "😀", "\\",
    "{", "}", "[", "]", "(", ")", "$", "$$", "<", ">", "'", '"', "`", "```", "```python\n", "```json\n", "~~~",
)  # fmt: skip
_MATH = (
    "\\boxed{", "\\boxed{}", "\\boxed{42}", "\\frac{1}{2}", "\\frac{1}", "\\frac", "\\sqrt[3]{8}", "\\left(",
    "\\right]",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{cases}", "x^2", "x^{x^{x^x}}", "9**9**9**9",
    "9^{9^{9^9}}", "10^{10^{10}}", "100!", "(10^6)!", "1e400", "-1e-400", "0.1\\overline{6}", "\\infty", "\\text{m}",
    "[0, 1)", "(1, 2, 3)", "\\{1, 2\\}", "\\cup", "\\pm 3", "50\\%", "1,234,567", "1/0", "\\int_0^1 x dx",
    "\\sum_{i=1}^{9}",
    "x = 5", "y=", "\\le", "<", "i", "\\pi", "e^{i\\pi}", "\\cos(x)", "\\log_2 8", "3:4", "12:30",
    "\\mathrm{d}", "\\degree",
)  # fmt: skip
_MARKS = (
    "<think>", "</think>", "<answer>", "</answer>", "<answer>5</answer>", "#### 5", "The answer is 5.",
    "Answer: B", "(A)",
    "So B.", "Therefore,", "wait, no:", "5", "-3.5", "yes", "the cat", "True", "None",
)  # fmt: skip
_CALLS = (
    '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "<tool_call>", "</tool_call>", "[f(a=1)]",
    "f(a=1, b='x')",
    'f(a={"x": [1]})', "g()", '[{"name": "f"}]', '{"f": {"a": 1}}', "f(", "f(a=" + "[" * 200, '{"a": 1}',
    "[1, 2", "null",
    '{"a": 1e999}', '{"a": {"a": {}}}',
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x + 1\n", "def f(x):\n    return 2\n", "    return x + 1\n", "import os\nos._exit(0)\n",
    "raise SystemExit\n", "print(int(input()) + 1)\n", "print('x' * 10**7)\n", "def f(x): return f(x)\n",
    "f = lambda x: x\n",
    "import sys; sys.setrecursionlimit(10**9)\n", "open('/tmp/x', 'w')\n", "1/0\n", "def f(:\n", "x = [0] * 10**9\n",
    "class X:\n    __eq__ = lambda a, b: True\nf = lambda x: X()\n", "import socket; socket.socket()\n", "\tpass\n",
)  # fmt: skip
_SLOW_CODE = ("while True: pass\n", "import time; time.sleep(60)\n", "9**9**9**9\n")
_PIECES = (_ODD, _MATH, _MARKS, _CALLS, _CODE)
_JUNK = (None, True, 0, -1, 1.5, float("nan"), 10**30, "", "x", [], [1], ["x"], [[]], {}, {"a": 1}, {"": None})
_FORMATS = ("bare", "boxed", "tag", "hash")
_KWARGS = (
    "num_words", "relation", "keywords", "N", "n", "m", "keyword", "percentage", "prompt_to_repeat",
    "language", "letter",
    "small_n", "sep", "options", "num_paragraphs", "first_word", "nth_paragraph", "end_phrase",
)  # fmt: skip
_ENTRIES = [
    ("basic_arithmetic", {"question": "1+1", "answer": "2", "metadata": {}}),
    ("gcd", {"question": "", "answer": "6", "metadata": {"numbers": [12, 18]}}),
    ("prime_factorization", {"question": "", "answer": "2 × 3", "metadata": {"number": 6, "factors": [2, 3]}}),
    ("countdown", {"question": "", "answer": "1 + 2", "metadata": {"numbers": [1, 2], "target": 3}}),
]


def make_row(number, seed=0):
    """Returns row `number`: (verifier, completion, reference, payload). It depends on its arguments alone."""
    rng = random.Random(f"{seed}/{number}")
    name = rng.choice(sorted(base.VERIFIERS))
    payload = _PAYLOADS.get(name, _no_payload)(rng)
    if rng.random() < 0.15:
        payload[rng.choice([*payload, "gold", "answer_format"])] = rng.choice(_JUNK)
    if rng.random() < 0.1:
        payload["gold"] = [_text(rng, 2) for _ in range(rng.randrange(4))]
    reference = rng.choice(("5", "B", "the cat", "\\frac{1}{2}", "(1, 2)", "", _text(rng, 2)))
    if rng.random() < 0.7:
        reference = {"choice": "B", "numeric": "5"}.get(name, reference)
    completion = _completion(rng)
    if name == "code" and rng.random() < 0.6:
        completion = rng.choice(_CODE) + rng.choice(("", *_CODE))
    return name, completion, reference, json.loads(json.dumps(payload))


def _text(rng, pieces):
    return rng.choice(("", " ", "\n")).join(
        rng.choice(rng.choice(_PIECES)) for _ in range(rng.randrange(1, pieces + 1))
    )


def _completion(rng):
    shape = rng.random()
    if shape < 0.003:  # few: each takes a whole limit, or much to carry
        return rng.choice(_SLOW_CODE)
    if shape < 0.006:
        return rng.choice(("7", "(", "{", "\\boxed{", "<think>", "[", "$", "a b ")) * rng.choice((1000, 100_000))
    if shape < 0.1:
        return "".join(rng.choice(string.printable) for _ in range(rng.randrange(200)))
    if shape < 0.15:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40)))
    if shape < 0.3:
        return f"<think>{_text(rng, 3)}</think>{_text(rng, 6)}"
    return _text(rng, 8)


def _no_payload(rng):
    return {} if rng.random() < 0.7 else {"answer_format": rng.choice(_FORMATS)}


def _reasoning(rng):
    dataset, entry = rng.choice(_ENTRIES)
    return {"dataset": dataset, "entry": dict(entry)}


def _instructions(rng):
    names = rng.choices(sorted(INSTRUCTIONS), k=rng.randrange(1, 4))
    values = (3, "at least", ["a", "b"], "a", "en", 50, _text(rng, 1))
    kwargs = [{key: rng.choice(values) for key in rng.sample(_KWARGS, rng.randrange(3))} for _ in names]
    return {"instruction_id_list": names, "kwargs": kwargs, "prompt": "Write."}


def _tool_call(rng):
    kinds = ("integer", "string", "array", "dict", "float", "boolean", "any")
    properties = {key: {"type": rng.choice(kinds)} for key in ("a", "b")}
    functions = [
        {"name": name, "parameters": {"type": "dict", "properties": properties, "required": ["a"]}}
        for name in ("f", "g")
    ]
    truth = rng.choice((None, [{"f": {"a": [1]}}], [{"f": {"a": [1], "b": ["x", ""]}}, {"g": {}}], []))
    return {"functions": functions, "ground_truth": truth}


def _schema(rng):
    a = {"a": {"type": "integer"}}
    return {
        "schema": rng.choice(({"properties": a, "required": ["a"]}, True, {"$ref": "#"}, {"type": "arry"}, {"not": {}}))
    }


def _regex(rng):
    return {"pattern": rng.choice(("a+b", "^5$", "(a|b)*c", "(", "[", "\\d+", "(?P<x>.)(?P=x)", _text(rng, 1)))}


def _code(rng):
    tests = (
        "assert f(1) == 2\nassert f(5) == 6", "def check(candidate):\n    assert candidate(1) == 2\n",
        ["assert f(1) == 2"],
        [{"input": "1\n", "output": "2\n"}], "assert", "while True: pass", "assert f(1) == f",
    )  # fmt: skip
    payload = {"tests": rng.choice(tests), "entry_point": "f"}
    return payload | ({"prompt": "def f(x):\n"} if rng.random() < 0.3 else {})


def _rubric(rng):
    return {"rubric": ["is kind", {"criterion": "rhymes", "weight": rng.choice((-1, 2))}], "prompt": "Speak."}


def _combine(rng):
    names = rng.sample([name for name in sorted(base.VERIFIERS) if name != "combine"], rng.randrange(1, 4))
    parts = [
        {"verifier": name, "weight": rng.choice((-1, 0, 0.5, 1)), "gate": rng.random() < 0.2}
        | _PAYLOADS.get(name, _no_payload)(rng)
        for name in names
    ]
    return {"parts": parts}


_PAYLOADS = {
    "reasoning_gym": _reasoning,
    "instructions": _instructions,
    "tool_call": _tool_call,
    "json_schema": _schema,
    "regex": _regex,
    "format": lambda rng: (
        {} if rng.random() < 0.5 else {"tags": rng.choice((["answer"], ["think", "answer"], ["a b"]))}
    ),
    "length": lambda rng: (
        rng.choice(({"max": 5}, {"min": 1, "unit": "words"}, {"target": 9})) | {"completion_tokens": 7}
    ),
    "overlong": lambda rng: {"max_tokens": 8, "buffer": rng.choice((1, 4, 9)), "completion_tokens": rng.randrange(10)},
    "repetition": lambda rng: {"n": rng.choice((1, 3, 64, 65))},
    "code": _code,
    "rubric": _rubric,
    "combine": _combine,
}
