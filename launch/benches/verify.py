"""Verdicts a second and core, against the bare means that a verifier stands on.

    python -m launch.bench verify --verify_kind=math

math: `verify_items` made pairs of an answer and a reference through the pool with one worker (a process that can be
killed, a hard limit an item), against math-verify called in this process. Half of the answers are right.

answers: `verify_items` real rows (half GSM8K, half MATH, of the folder `verify_rows`), each with its own worked
solution and with the next row's, both forms in this process: the verifier alone, on one core, against math-verify's
parse and verify without time limits.

code, code_asserts: short programs in the sandbox, against `subprocess.run` of the same interpreter without any walls.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch.benches.measure import ROUNDS, measure
from launch.benches.workload import peak_gb
from rlvr import errors
from rlvr.types import Task
from rlvr.verifiers import answers, base
from rlvr.verifiers.pool import VerifierConfig, VerifierPool
from rlvr.verifiers.sandbox import levels

KIND = flags.DEFINE_string("verify_kind", "math", "verify: what is verified.")
SANDBOX = flags.DEFINE_enum("verify_sandbox", "auto", levels.CHOICES, "verify: level of the sandbox, for programs.")
ITEMS = flags.DEFINE_integer("verify_items", 200, "verify: completions.", lower_bound=2)

ROWS = flags.DEFINE_string("verify_rows", "../shared/data", "verify: folder of gsm8k/test and math/math500 rows.")

Item = tuple[str, str]  # completion, reference


def bench_verify() -> dict[str, Any]:
    """Measures the kind that is named."""
    errors.check_choice("verify_kind", KIND.value, KINDS)
    return {"bench": "verify", "kind": KIND.value, "items": ITEMS.value, **KINDS[KIND.value](), "peak_gb": peak_gb()}


def bench_math() -> dict[str, Any]:
    """Mathematical equivalence."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    items = make_math_items(ITEMS.value)

    def bare() -> None:
        right = sum(math_verify.verify(math_verify.parse(wanted), math_verify.parse(said)) for said, wanted in items)
        assert right == len(items) // 2, f"{right} of {len(items)} are right"

    with VerifierPool(VerifierConfig(workers=1), ["math"]) as pool:

        def pooled() -> None:
            payload = {"answer_format": "boxed"}
            futures = [pool.submit(Task(i, "math", "", wanted, "math", payload=payload), said)
                       for i, (said, wanted) in enumerate(items)]  # fmt: skip
            right = sum(future.result().status == "correct" for future in futures)
            assert right == len(items) // 2, f"{right} of {len(items)} are right"

        return report({"pool, one worker": pooled, "math-verify": bare}, len(items))


def bench_answers() -> dict[str, Any]:
    """Real answers, in this process."""
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    base.warm_up("math")
    items = read_answers(Path(ROWS.value), ITEMS.value)
    least, most = len(items) // 2, round(0.6 * len(items))  # a few rows answer as the next one does

    def ours() -> None:
        answers.parse.cache_clear()
        right = sum(base.verify("math", said, wanted, {}).score == 1 for said, wanted in items)
        assert least <= right <= most, f"{right} of {len(items)} are right"

    def bare() -> None:
        parsed = (
            (math_verify.parse(f"${wanted}$", parsing_timeout=None), math_verify.parse(said, parsing_timeout=None))
            for said, wanted in items
        )
        right = sum(math_verify.verify(wanted, said, timeout_seconds=None) for wanted, said in parsed)
        assert 0.9 * least <= right <= most, f"{right} of {len(items)} are right"

    return report({"verifier": ours, "math-verify": bare}, len(items))


def read_answers(folder: Path, count: int) -> list[Item]:
    """Returns `count` rows, half of either set, each with its own solution and with the next row's.

    Raises DataError where the rows are not there.
    """
    items: list[Item] = []
    for name, gold, solution in (("gsm8k/test", "final_answer", "answer"), ("math/math500", "answer", "solution")):
        path = folder / f"{name}.jsonl.gz"
        if not path.exists():
            raise errors.DataError(f"verify_rows={str(folder)!r} has no {path}")
        with gzip.open(path, "rt") as file:
            rows = [json.loads(line) for line in itertools.islice(file, max(2, count // 2))]
        for row, following in zip(rows, [*rows[1:], rows[0]], strict=True):
            items += [(row[solution], row[gold]), (following[solution], row[gold])]
    return items


def report(runs: dict[str, Callable[[], None]], items: int) -> dict[str, Any]:
    """Measures two forms in turn, ours first; prints the table and returns the result."""
    seconds = measure(runs, ROUNDS.value)
    ours, bare = runs
    ratio = float(np.median(seconds[bare] / seconds[ours]))
    print(f"{'form':24}{'verdicts/s':>12}{'ms each':>10}")
    for name, values in seconds.items():
        took = float(np.median(values))
        print(f"{name:24}{items / took:12.1f}{1e3 * took / items:10.3f}")
    return {
        "verdicts_per_s_per_core": items / float(np.median(seconds[ours])),
        "bare_verdicts_per_s": items / float(np.median(seconds[bare])),
        "times_bare": ratio,
    }


def make_math_items(count: int) -> list[Item]:
    """Returns boxed answers with references in another notation; every other one is right."""
    rng = random.Random(0)
    forms: tuple[Callable[[int, int, int], Item], ...] = (
        lambda a, b, wrong: (f"\\frac{{{a + wrong * b}}}{{{b}}}", f"\\frac{{{2 * a}}}{{{2 * b}}}"),
        lambda a, b, wrong: (f"({a}x+{b})^2", f"{a * a}x^2+{2 * a * b + wrong}x+{b * b}"),
        lambda a, b, wrong: (f"\\sqrt{{{a * a * b + wrong}}}", f"{a}\\sqrt{{{b}}}"),
        lambda a, b, wrong: (f"{a * b + wrong}", f"{a}\\cdot{b}"),
    )
    items = []
    for i in range(count):
        a, b = rng.randrange(2, 30), rng.randrange(2, 30)
        said, wanted = forms[i // 2 % len(forms)](a, b, i % 2)
        items.append((f"So the answer is \\boxed{{{said}}}.", f"\\boxed{{{wanted}}}"))
    return items


def bench_code() -> dict[str, Any]:
    """Whole programs that read a number and print another."""
    source = "n = int(input())\nprint(sum(range(n)) + {wrong})\n"
    items = [(source.format(wrong=i % 2), str(sum(range(i)))) for i in range(ITEMS.value)]
    payloads = [{"tests": [{"input": str(i), "output": wanted}]} for i, (_, wanted) in enumerate(items)]

    def bare(i: int) -> bool:
        source, wanted = items[i]
        command = [sys.executable, "-I", "-S", "-c", source]
        return subprocess.run(command, input=str(i), capture_output=True, text=True).stdout.strip() == wanted

    return _compare_programs([source for source, _ in items], payloads, bare)


def bench_code_asserts() -> dict[str, Any]:
    """Functions under three asserts."""
    sources = [f"def f(xs):\n    return sorted(set(xs))[{i % 2}:]\n" for i in range(ITEMS.value)]
    tests = "assert f([3, 1, 2, 3]) == [1, 2, 3]\nassert f([]) == []\nassert f([5, 5]) == [5]\n"

    def bare(i: int) -> bool:
        command = [sys.executable, "-I", "-S", "-c", sources[i] + tests]
        return subprocess.run(command, capture_output=True).returncode == 0

    return _compare_programs(sources, [{"tests": tests}] * len(sources), bare)


def _compare_programs(
    sources: list[str], payloads: list[dict[str, Any]], bare: Callable[[int], bool]
) -> dict[str, Any]:
    with VerifierPool(VerifierConfig(workers=1, sandbox=SANDBOX.value), ["code"]) as pool:

        def pooled() -> None:
            tasks = [Task(i, "code", "", "", "code", payload=payload) for i, payload in enumerate(payloads)]
            futures = [pool.submit(task, source) for task, source in zip(tasks, sources, strict=True)]
            right = sum(future.result().status == "correct" for future in futures)
            assert right == (len(sources) + 1) // 2, f"{right} of {len(sources)} are right"

        def unprotected() -> None:
            right = sum(map(bare, range(len(sources))))
            assert right == (len(sources) + 1) // 2, f"{right} of {len(sources)} are right"

        return report({"pool, one worker": pooled, "subprocess.run": unprotected}, len(sources))


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "math": bench_math,
    "answers": bench_answers,
    "code": bench_code,
    "code_asserts": bench_code_asserts,
}
