"""Mathematical equivalence: what counts as the same answer, and the gold answers of real rows."""

import gzip
import json
import pathlib
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr.verifiers import base, equivalence, evaluation, expression, latex, symbolic

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"

SAME = [
    ("2^{2^n}", "4^{2^{n-1}}"),  # too large for far numbers
    # numbers
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\dfrac24"),
    ("7425000", "7,425,000"),
    ("1000", "1 000"),
    ("1000.99", "1000,99"),
    ("14{,}916", r"14,\!916"),
    ("11111111100", r"11,\! 111,\! 111,\! 100"),
    ("-7", "\u22127"),
    ("\u00be", "3/4"),
    (r"2\frac{1}{3}", "7/3"),
    (r"2\left(\frac{1}{3}\right)", "2/3"),
    ("1200", r"1.2 \times 10^3"),
    ("2^{100}", "1267650600228229401496703205376"),
    (r"0.\overline{3}", r"\frac13"),
    ("0.1\\overline{36}", "3/22"),
    (r"\frac{1}{12}", "0.0833333333333333"),
    # units, percent, degrees, money
    (r"28\%", "28 percent"),
    (r"28\%", "0.28"),
    (r"90^\circ", "90"),
    (r"90^\circ", "90 degrees"),
    (r"15\mbox{ cm}^2", "15"),
    (r"8\sqrt{3} \text { square inches}", r"8\sqrt3"),
    (r"\frac{3}{4}\pi\text{ inches}", r"\frac{3\pi}{4} in"),
    ("16386.17", r"\$16386.17"),
    # roots, powers, constants, functions
    (r"2\sqrt{2}", r"\sqrt{8}"),
    (r"2\sqrt{2}", "2*sqrt(2)"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"e^{i\pi}", "-1"),
    (r"\frac{\pi}{2}", "\u03c0/2"),
    (r"\log_2 8", "3"),
    (r"\ln 8", r"3 \ln 2"),
    (r"\tan^2 y + 1", r"\sec^2 y"),
    (r"2\sin b\cos a", r"\sin(a+b) - \sin(a-b)"),
    (r"\sin 30^\circ", "1/2"),
    ("10!", "3628800"),
    (r"\binom{10}{3}", "120"),
    (r"\frac{1}{2004!}", r"\frac{2005}{2005!}"),
    (r"\lfloor \pi \rfloor", "3"),
    ("4.123105625617661", r"\sqrt{17}"),
    # expressions
    ("x^2-1", "(x-1)(x+1)"),
    ("p - q", "-q+p"),
    (r"\frac{x+2}{7}", r"\frac{x}{7}+\frac{2}{7}"),
    (r"\frac{1}{3\sqrt[3]{x}^2}", r"\frac{1}{3x^{2/3}}"),
    (r"\sqrt{xy}", r"\sqrt{x}\sqrt{y}"),
    ("x_1 + x_{2}", "x_2 + x_{1}"),
    ("x\u00b2", "x^2"),
    # equations and inequalities
    ("5", "x = 5"),
    ("x = 5", "5"),
    ("x = 11", "x = 5+5+1 = 11"),
    ("1/3", r"x = 1/3 \approx 0.33"),
    ("y = 2x+3", "2x+3"),
    ("AB = 4", "4"),
    ("(p,q) = (3,2)", "(3, 2)"),
    ("x=1, y=2", "y = 2, x = 1"),
    ("34x+45y-20z+100=0", "-34x-45y+20z-100=0"),
    ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}"),
    ("x^2/4 + y^2/3 = 1", "x^2/16 + y^2/12 = 1/4"),
    ("x < 1", "-x > -1"),
    (r"x \le 5", r"5 \geq x"),
    (r"x \neq 3", "x != 3"),
    (r"1 < x \le 2", r"2 \ge x > 1"),
    # intervals, sets, lists, tuples, matrices
    (r"-2 \le x \le 7", r"x \in [-2,7]"),
    ("x > 5", r"(5, \infty)"),
    ("0 < f(x) < 1", "(0, 1)"),
    (r"(-\infty, 1) \cup (2, \infty)", "x < 1 or x > 2"),
    (r"(-\infty, \infty)", r"\mathbb{R}"),
    (r"[-1, -\frac{1}{2}) \cup (0, 1)", r"(0,1) \cup [-1, -\tfrac12)"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\{1,2\}", "1 and 2"),
    ("1, 2", "1, 2, 1"),
    ("1, 2", "x = 1 or x = 2"),
    ("n = 1, 2, 3", "3, 2, 1"),
    (r"7, -2, \text{ and } -5", "-5, -2, 7"),
    ("5", r"\{5\}"),
    (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}, 1 - \sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1-\sqrt5, 1+\sqrt5"),
    ("3,100", "100, 3"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("(1,3)", "1, 3"),
    ("(3, 3), (1, 1)", "(1,1) and (3,3)"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ \frac{4}{2} \end{bmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\left[\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right]"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "[[1, 2], [3, 4]]"),
    ("3:1", "3 : 1"),
    # bases, words, choices
    ("204_5", "204_{5}"),
    ("12_{10}", "12"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{Evelyn}", "evelyn."),
    (r"\text{(C)}", "C"),
    (r"\text{A, C, F}", "F, A, C"),
    (r"\text{1:03 PM}", "1:03 p.m."),
    (r"\text{1:03 PM}", r"\text{1:03PM}"),
    (r"111, \! 111, \! 111", "111111111"),
    # the gold answer in a box, or behind hashes
    (r"so $x = \boxed{5}$.", "5"),
    (r"\boxed{1} and \boxed{2}", "2, 1"),
    ("3 + 4 = 7\n#### 7", "7"),
]

DIFFERENT = [
    # Thousands are no decimals.
    ("\\$115,000", "\\$115"),
    ("15,600", "15.6"),
    ("5", "5,000"),
    ("1.234", "1,234"),
    # What is alike for positive symbols, small ones, or one pair of signs.
    ("|xz|", "xz"),
    ("\\sqrt{x_1^2}", "x_1"),
    ("|x+3|", "x+3"),
    ("|x-4|", "4-x"),
    ("|x+4|+|x-4|", "8"),
    ("\\lceil x/10\\rceil", "\\lceil x/11\\rceil"),
    # Words that scale the number are no units.
    ("12", "12 dozen"),
    ("5", "5 thousands"),
    ("5", "5 hundredths"),
    ("7", "7 squared"),
    ("0.5", "0.05"),
    ("1/3", "0.333"),
    (r"\sqrt{2}", "1.41"),
    ("32349", "32, 349"),
    ("5n", "5"),
    ("5", "5n"),
    ("9 a.m.", "9 p.m."),
    ("5.4 cents", r"\$5.4"),
    (r"4", r"4\sqrt{2}"),
    ("2", r"\frac{1+\sqrt{5}}{2}"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("10^{20}", "10^{20}+1"),
    (r"\sqrt{10^{20}+1}", "10^{10}"),
    (r"1 - \frac{1}{e}", r"1 + \frac{1}{e}"),
    ("x^2-1", "(x-1)^2"),
    ("|x|", "x"),
    ("x", r"\sqrt{x^2}"),
    ("x + 1", "y + 1"),
    ("f(x)", "f(y)"),
    ("f(2) < f(4)", "f(1) < f(2)"),
    ("f(2) < f(1) < f(4)", "f(2) < f(6) < f(4)"),
    ("x < 5", "y < 5"),
    ("1 < x < 5", "1 < y < 5"),
    ("x = 1", "y = 1"),
    ("7 = 11a + c", "11a + c"),
    ("a + 3z = 0", "0"),
    ("x > 5", "x < 5"),
    ("x < 1", "x > -1"),
    ("x < 1", r"x \le 1"),
    (r"x \ge 5", r"(5, \infty)"),
    ("[0,1)", "[0,1]"),
    ("[0,1)", "(0,1)"),
    ("(3,4)", "(4,3)"),
    ("(3,1)", "{1,3}"),
    (r"\{1,2\}", r"\{1,2,3\}"),
    (r"\{1,2,2\}", r"\{1,2\}"),
    (r"\pm 2021", "2021"),
    (r"1 \pm \sqrt{19}", r"1 + \sqrt{19}"),
    ("(1,2)", "-(1,2)"),
    ("(1,2)", "3(1,2)"),
    ("x = 5", r"(x = 5) \cdot 3"),
    ("12:00", "1:00"),
    ("3:1", "1:3"),
    ("204_5", "204"),
    ("204_5", "204_6"),
    ("204_5", "204_1"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"\text{Evelyn}", r"\text{Angela}"),
    (r"\text{evil}", r"\text{vile}"),
    ("north", "thorn"),
    ("42", "9**9**9**9"),
    ("42", r"\frac{42}{0}"),
]


def judge(gold, answer):
    return base.verify("math", f"Thus \\boxed{{{answer}}}.", gold, {"answer_format": "boxed"})


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_the_same(gold, answer):
    verdict = judge(gold, answer)
    assert (verdict.status, verdict.score, verdict.parts["lenient"]) == ("correct", 1, 1), verdict


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold, answer):
    verdict = judge(gold, answer)
    assert (verdict.status, verdict.score, verdict.parts["lenient"]) == ("wrong", 0, 0), verdict


def test_two_forms_of_one_answer():
    assert base.verify("math", r"It is $\boxed{x+11}$ or $\boxed{11+x}$.", "11+x", {}).score == 1
    assert base.verify("math", r"It is $\boxed{x+11}$ or $\boxed{12+x}$.", "12+x", {}).score == 0


def test_math_verify_is_asked_about_matrices(monkeypatch):
    gold = r"\begin{pmatrix} 6 & 8 \\ 10 & 12 \end{pmatrix}"
    total = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} + \begin{pmatrix} 5 & 6 \\ 7 & 8 \end{pmatrix}"
    assert judge(gold, total).score == 1
    assert judge(gold, total.replace("8", "9")).score == 0
    monkeypatch.setattr(symbolic, "equal", lambda gold, answer: pytest.fail("asked about what is decided here"))
    for gold, answer in [("x^2-1", "(x-1)^2"), (r"\{1,2\}", "1, 3"), ("(1,2)", "-(1,2)"), ("5", r"\foo{5}")]:
        assert judge(gold, answer).score == 0


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^9}",
        "2**2",
        "10!",
        "1" * 16,
        "x" * 300,
        "{" * 9 + "}" * 9,
        "{",
        "a\0",
        r"\int x",
        "__import__",
        "one two six",
    ],
)
def test_what_never_reaches_math_verify(text):
    assert not symbolic.is_small(text)


def test_bad_references():
    for gold in ("", "  \n"):
        verdict = base.verify("math", "42", gold, {})
        assert (verdict.status, verdict.score) == ("error", None) and "is empty" in verdict.detail
    assert base.verify("math", "}{", "}{", {}).score == 1, "a completion that is the gold answer is right"
    assert base.verify("math", "}}{", "}{", {}).score == 0


def test_verdicts_do_not_depend_on_what_was_judged_before():
    cases = [*SAME, *DIFFERENT]
    first = [judge(*case).score for case in cases]
    random.Random(0).shuffle(order := list(range(len(cases))))
    assert {i: judge(*cases[i]).score for i in order} == dict(enumerate(first))


EXPRESSIONS = st.recursive(
    st.one_of(st.integers(0, 20).map(str), st.sampled_from(["x", "y", r"\pi", "e"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot ", "/"]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        st.tuples(inner, inner).map(lambda t: f"\\frac{{{t[0]}}}{{{t[1]}}}"),
        inner.map(lambda text: f"\\sqrt{{{text}}}"),
        st.tuples(inner, st.integers(2, 5)).map(lambda t: f"({t[0]})^{t[1]}"),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS)
def test_an_expression_equals_its_rewritings_and_not_its_neighbours(text):
    tree = expression.parse(latex.tidy(text))
    try:
        values = [evaluation.evaluate(tree, evaluation.sample(evaluation.symbols(tree), trial)) for trial in (0, 1)]
    except (evaluation.Undefined, evaluation.TooLarge):
        return  # no value, nothing to compare
    assert equivalence.equal(text, f"2({text}) - {text}")
    assert equivalence.equal(text, f"{text} + 1 - 1")
    if all(evaluation.same(value, values[0]) and abs(value) < 10**20 for value in values):
        assert not equivalence.equal(text, f"{text} + \\frac{{1}}{{1000}}")


# Real rows

GOLDS = {
    "gsm8k/test": ("final_answer", "answer", 1119),
    "gsm8k/train": ("final_answer", "answer", 7473),
    "svamp/svamp": ("final_answer", None, 850),
    "aime/aime24": ("expected_answer", None, 30),
    "aime/aime25": ("expected_answer", None, 20),
    "math/math500": ("answer", "solution", 400),
    "math/train_prm_split": ("answer", "solution", 4500),
}
# Its solution ends "$x$ must be $\boxed{3}$ or $\boxed{\frac{2}{5}}$", and its gold answer is the last box alone.
HALF_A_GOLD = "math/test/2703"


def read_rows(name):
    path = SHARED / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def mutate(gold, rng):
    """Yields wrong answers made from a right one."""
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    if digits:
        i = rng.choice(digits)
        yield f"{gold[:i]}{(int(gold[i]) + rng.randint(1, 9)) % 10}{gold[i + 1 :]}"
    yield gold[1:] if gold.startswith("-") else f"-{gold}"
    yield f"({gold}) \\cdot 3"
    fraction = re.search(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}", gold)
    if fraction and fraction[1] != fraction[2]:
        yield gold.replace(fraction[0], f"\\frac{{{fraction[2]}}}{{{fraction[1]}}}", 1)


def check_rows(name, step):
    gold_field, solution_field, count = GOLDS[name]
    rows = read_rows(name)
    assert len(rows) == count
    rng = random.Random(name)
    for row, other in list(zip(rows, [*rows[1:], rows[0]], strict=True))[::step]:
        gold = str(row[gold_field])
        assert base.verify("math", gold, gold, {}).score == 1, row
        assert judge(gold, gold).score == 1, row
        if solution_field:
            right = base.verify("math", row[solution_field], gold, {}).score
            assert right == (row["id"] != HALF_A_GOLD), row
        if re.search(r"(?<![\d.])0(?![\d.])", gold) or "units}^" in gold:
            continue  # -0 is 0, and powers of units are not compared
        for wrong in mutate(gold, rng):
            verdict = judge(gold, wrong)
            assert verdict.score == verdict.parts["lenient"] == 0, (gold, wrong)
        shifted = str(other[gold_field])
        if plain(shifted) != plain(gold):
            assert judge(gold, shifted).score == 0, (gold, shifted)


def plain(gold):
    """What is the same answer in any notation of these rows: x = 5 answers 5, 120 degrees answers 120."""
    gold = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", gold.replace("dfrac", "frac").replace("tfrac", "frac"))
    return re.sub(r"\s|\^\\circ|\\text\{[^}]*\}|[$%\\]", "", gold).rpartition("=")[2]


@pytest.mark.parametrize("name", GOLDS)
def test_a_sample_of_real_rows(name):
    check_rows(name, step=max(1, GOLDS[name][2] // 60))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDS)
def test_all_real_rows(name):
    check_rows(name, step=1)


@pytest.mark.parametrize("name", ["math", "numeric"])
def test_a_number_too_long_for_decimal_text_is_wrong_like_others(name):
    verdict = base.verify(name, "\\boxed{" + 3900 * "9" + "e999}", "5", {})
    assert (verdict.status, verdict.score) == ("wrong", 0)
