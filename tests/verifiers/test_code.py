"""The code verifier: forms of tests, forms of completions, statuses, and that canonical solutions are right."""

import gzip
import json

import pytest

from rlvr.verifiers import base, code
from rlvr.verifiers.sandbox import current, levels

ADD = "def add(a, b):\n    return a + b\n"
ADD_ASSERTS = "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'\n"


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    current.configure(levels.Limits(timeout_s=20))
    try:
        current.get()
    except levels.SandboxError as error:
        pytest.skip(str(error))
    yield
    current.close()


def verify(completion, tests, **payload):
    return base.verify("code", completion, "", {"tests": tests, **payload})


CHECK = (
    "METADATA = {}\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4, 'four'\n"
)
UNITTEST = """
import unittest
from solution import add

class TestAdd(unittest.TestCase):
    def setUp(self):
        self.one = 1

    def test_numbers(self):
        self.assertEqual(add(self.one, 2), 3)

    def test_error(self):
        with self.assertRaises(TypeError):
            add(1, "a")

if __name__ == "__main__":
    unittest.main()
"""
PRINTS = "def f(n):\n    print('hi', n)"
CAPTURES = """
import io, contextlib
out = io.StringIO()
with contextlib.redirect_stdout(out):
    f(1)
assert out.getvalue() == 'hi 1\\n'
"""
RAISES = "class E(ValueError): pass\ndef f():\n    raise E('no')"
CATCHES = """
try:
    f()
    assert False
except E as error:
    assert isinstance(error, ValueError) and str(error) == 'no'
"""
STACK = """
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def __len__(self): return len(self.items)
"""
NODE = "import dataclasses\n@dataclasses.dataclass\nclass Node:\n    value: int\n    next: object = None"
TREE = """
class Tree:
    def __init__(self, value): self.value, self.left = value, None
def depth(node): return 1 + depth(node.left) if node else 0
"""
EQUAL_TO_ALL = "class A:\n    def __eq__(self, other): return True\ndef add(a, b): return A()"
CASES = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]
READ_AND_ADD = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize(
    ("completion", "tests", "payload"),
    [
        (ADD, ADD_ASSERTS, {}),
        (ADD, ADD_ASSERTS.splitlines(), {}),
        (ADD, CHECK, {"entry_point": "add"}),
        (ADD, UNITTEST, {}),
        (ADD, "def test_add():\n    assert add(1, 2) == 3", {}),
        (ADD, "import solution\nassert solution.add(1, 2) == 3", {}),
        (ADD, "from my_code import add as plus\nassert plus(1, 2) == 3", {}),
        (READ_AND_ADD, CASES, {}),
        (f"<think>\n```python\nx\n```\n</think>Here it is:\n```python\n{ADD}```\nIt adds.", ADD_ASSERTS, {}),
        (f"```python\n{ADD}```\nFor example:\n```python\nprint(add(1, 2))\n```", ADD_ASSERTS, {}),
        (f"```python\nfirst = 1\n```\nand\n```\n{ADD}```", "assert add(1, first) == 2", {}),
        (f"Sure! Here you are:\n\n{ADD}\nThis function adds two numbers, doesn't it?", ADD_ASSERTS, {}),
        ("    return a + b\n", CHECK, {"entry_point": "add", "prompt": "def add(a, b):\n    '''Adds.'''\n"}),
        ("return a + b", CHECK, {"entry_point": "add", "prompt": "def add(a, b):\n"}),
        ("```\nreturn a + b\n```", CHECK, {"entry_point": "add", "prompt": "def add(a, b):\n"}),
        ("def sum(a, b):\n    return a + b", "assert sum(1, 2) == 3", {}),
        ("def f(xs):\n    xs.sort()", "xs = [3, 1, 2]\nf(xs)\nassert xs == [1, 2, 3]", {}),
        ("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]\nassert next(f(3)) == 0", {}),
        ("def f(g, xs):\n    return [g(x) for x in xs]", "assert f(lambda x: x * 2, [1, 2]) == [2, 4]", {}),
        ("def f(n):\n    return lambda x: x + n", "assert f(3)(4) == 7", {}),
        ("def f(n):\n    return 10 ** n", "assert f(6000) == 10 ** 6000", {}),
        (PRINTS, CAPTURES, {}),
        (RAISES, CATCHES, {}),
        ("import collections as c\ndef f(): return c.namedtuple('P', 'x y')(1, 2)", "assert f() == (1, 2)", {}),
        (STACK, "s = Stack()\ns.push(3)\nassert len(s) == 1\nassert s.items == [3]", {}),
        ("def f(n):\n    return n.value + n.next.value", "assert f(Node(1, Node(2))) == 3", {"setup": NODE}),
        ("def f(n):\n    return Node(2, n)", "assert f(Node(1)) == Node(2, Node(1))", {"setup": NODE}),
        ("def f(n):\n    n.next = Node(5)", "n = Node(1)\nf(n)\nassert n.next.value == 5", {"setup": NODE}),
        (TREE, "assert depth(root) == 2", {"setup": "root = Tree(1)\nroot.left = Tree(2)"}),
    ],
)  # fmt: skip
def test_right_programs(completion, tests, payload):
    verdict = verify(completion, tests, **payload)
    assert (verdict.status, verdict.score, verdict.parts["passed"]) == ("correct", 1, 1), verdict.detail


@pytest.mark.parametrize(
    ("completion", "tests", "payload", "status", "passed"),
    [
        ("def add(a, b):\n    return 3", ADD_ASSERTS, {}, "wrong", 0.5),
        ("def add(a, b):\n    return 3", CHECK, {"entry_point": "add"}, "wrong", 0.5),
        ("def add(a, b):\n    return 3", UNITTEST, {}, "wrong", 0.5),
        ("def sub(a, b):\n    return 3", ADD_ASSERTS, {}, "wrong", 0),
        ("print(3)", CASES, {}, "wrong", 0.5),
        ("print(3)\nraise ValueError", CASES, {}, "wrong", 0),
        ("raise ValueError", [{"input": "", "output": ""}], {}, "wrong", 0),
        ("import sys\nsys.exit(1)", [{"input": "", "output": ""}], {}, "wrong", 0),
        ("I do not know.", ADD_ASSERTS, {}, "unparsed", 0),
        ("", ADD_ASSERTS, {}, "unparsed", 0),
        ("```\nLet me think: (((\n```", CASES, {}, "unparsed", 0),
        (f"<think>\n```python\n{ADD}```", ADD_ASSERTS, {}, "unparsed", 0),
        (f"<think>\n```python\n{ADD}```</think>I cannot.", ADD_ASSERTS, {}, "unparsed", 0),
        (EQUAL_TO_ALL, "assert add(1, 2) == add(2, 1)", {}, "refused", 0),
    ],
)  # fmt: skip
def test_other_programs(completion, tests, payload, status, passed):
    verdict = verify(completion, tests, **payload)
    assert (verdict.status, verdict.score, verdict.parts["passed"]) == (status, 0, passed), verdict.detail


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({}, "tests=None"),
        ({"tests": ""}, "tests=''"),
        ({"tests": []}, "tests=[]"),
        ({"tests": [1]}, "tests=[1]"),
        ({"tests": [{"input": "1"}]}, "tests[0].output=None"),
        ({"tests": "assert f(1"}, "tests cannot be parsed"),
        ({"tests": "x = 1"}, "tests hold no case"),
        ({"tests": CHECK}, "entry_point is missing"),
        ({"tests": CHECK, "entry_point": 3}, "entry_point=3"),
        ({"tests": ADD_ASSERTS, "prompt": 3}, "prompt=3"),
        ({"tests": ADD_ASSERTS, "setup": "1 / 0"}, "setup raised ZeroDivisionError"),
        ({"tests": ADD_ASSERTS, "hidden_tests": 5}, "hidden_tests=5"),
        ({"tests": "assert add(open('/dev/null'), 1)"}, "cannot be sent"),
    ],
)
def test_bad_rows_are_errors_that_name_the_field(payload, said):
    verdict = base.verify("code", ADD, "", payload)
    assert verdict.status == "error" and said in verdict.detail, verdict


def test_hidden_tests_make_the_gold_part_and_not_the_score():
    special = "def add(a, b):\n    return {(1, 2): 3, ('a', 'b'): 'ab'}[a, b]"
    hidden = "assert add(5, 5) == 10"
    assert verify(ADD, ADD_ASSERTS, hidden_tests=hidden).parts["gold"] == 1
    verdict = verify(special, ADD_ASSERTS, hidden_tests=hidden)
    assert (verdict.score, verdict.parts["gold"]) == (1, 0)


@pytest.mark.parametrize(
    ("output", "expected", "equal"),
    [
        ("3\n", "3", True),
        ("3 \r\n\n", "3", True),
        ("1  2", "1 2", True),
        ("1\n2", "1 2", False),
        ("\n3", "3", False),
        ("0.333333", "0.33333333", True),
        ("1e-9", "0.0", True),
        ("0.34", "0.33", False),
        ("3.0000000001", "3", False),
        ("nan", "0.5", False),
        ("inf", "1e400", True),
        ("", "", True),
        ("x", "", False),
        ("YES", "yes", False),
    ],
)
def test_outputs(output, expected, equal):
    assert code.are_equal(output, expected) is equal


def read_rows(shared, name):
    with gzip.open(shared / name, "rt") as file:
        return [json.loads(line) for line in file]


def test_canonical_solutions_of_humaneval(shared):
    for row in read_rows(shared, "humaneval/humaneval.jsonl.gz"):
        payload = {"prompt": row["prompt"], "entry_point": row["entry_point"]}
        verdict = verify(row["canonical_solution"], row["test"], **payload)
        assert verdict.score == 1, (row["task_id"], verdict)


@pytest.mark.parametrize("name", ["mbpp", "sanitized"])
def test_canonical_solutions_of_mbpp(shared, name):
    for row in read_rows(shared, f"mbpp/{name}.jsonl.gz")[::4]:
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports", []))
        tests = row["test_list"] + row.get("challenge_test_list", [])
        verdict = verify(f"```python\n{row['code']}\n```", tests, setup=setup)
        assert verdict.score == 1, (row["task_id"], verdict)
