"""Python programs against tests, in a sandbox; the verdict is made outside it.

Payload:
    tests: assert statements, HumanEval's `def check(candidate)`, or a unittest, as text; a list of such texts, each one
        case; or a list of {"input": text, "output": text} for the standard input and output of a whole program.
    prompt: a function header that the completion may continue. What it defines ready-made (imports, helpers) is run
        before the program, and the tests use their own copy of it.
    entry_point: the name of the function under test. `check(candidate)` needs it.
    setup: text that is run before the program and before the tests. The program can read it: no answers in it.
    hidden_tests: as tests; whether all of them pass is parts["gold"], and the reward does not depend on it.

A completion is a whole program, the rest of `prompt`, or either of them in a fence; code in the reasoning counts for
nothing. All cases must pass (parts["passed"] is the fraction). The signs of hacking are parts["audit/<flag>"]: see
`audit.audit_code`.

Outputs are equal if their lines are, without white space at the ends of lines and of the text; or if the lines have the
same words, where a word of the expected output with a decimal point or an exponent is matched by any number within
1e-6, relative or absolute.

Statuses: "unparsed" no code found; "timeout" not ended in time; "refused" the tests compare objects of the program's
own classes with one another, or were upset by what it returned: the answer would be the program's; "error", with
DataError, for a row that no program can satisfy. An exit code earns nothing.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

from rlvr import errors, types
from rlvr.verifiers import audit, extract
from rlvr.verifiers.sandbox import current, runner

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE)
_LANGUAGES = ("", "python", "python3", "py", "py3")
_FIRST_LINE = re.compile(r"^(?:def |class |import |from |@|async def )", re.MULTILINE)
_MAX_BLOCKS = 20
_MAX_SOURCE = 2**20
_SPARE_OUTPUT = 2**20
_NUMBER_TOLERANCE = 1e-6
_MAX_NUMBER = 400
_DECIMAL = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?", re.ASCII)
_FIELDS = ("tests", "prompt", "entry_point", "setup", "hidden_tests")


def warm_up() -> None:
    """Starts the sandbox. Raises SandboxError where programs cannot be run safely."""
    current.get()


def verify_code(completion: str, reference: str, payload: Mapping[str, Any]) -> types.Verdict:
    """Returns 1 if the program in the completion passes all tests of the payload, else 0. See above.

    Raises:
        DataError: a field of the payload that cannot be used.
        SandboxError: no safe level works here, or the sandbox failed.
    """
    del reference  # the tests are the reference
    fields = _read_payload(payload)
    sandbox = current.get()
    deadline = time.monotonic() + sandbox.limits.timeout_s * 0.95 - min(0.2, sandbox.limits.timeout_s * 0.05)
    sources = extract_sources(completion, fields["prompt"])
    if not sources:
        report = runner.Report("unparsed", 0, 1, "no code found")
    else:
        report = _run(sandbox, sources, fields, "tests", deadline)
    score = float(report.status == "correct")
    parts = {"strict": score, "lenient": score, "passed": report.passed / report.total}
    if fields["hidden_tests"] is not None:
        parts["gold"] = 0.0
        if report.status not in ("unparsed", "timeout"):
            parts["gold"] = float(_run(sandbox, sources, fields, "hidden_tests", deadline).status == "correct")
    parts |= audit.audit_sources(sources, payload)
    return types.Verdict(score, report.status, report.detail, parts=parts)


def _read_payload(payload: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: payload.get(name) for name in _FIELDS}
    for name in ("prompt", "setup"):
        fields[name] = "" if fields[name] is None else fields[name]
        _check(isinstance(fields[name], str), name, fields[name], "text")
    entry = fields["entry_point"]
    _check(
        entry is None or (isinstance(entry, str) and entry.isidentifier()), "entry_point", entry, "a function's name"
    )
    _check_tests("tests", fields["tests"])
    if fields["hidden_tests"] is not None:
        _check_tests("hidden_tests", fields["hidden_tests"])
    return fields


def _check_tests(name: str, tests: Any) -> None:
    accepted = 'a text, a list of texts, or a list of {"input": text, "output": text}'
    if isinstance(tests, list) and tests and all(isinstance(case, Mapping) for case in tests):
        for index, case in enumerate(tests):
            for field in ("input", "output"):
                value = case.get(field)
                _check(isinstance(value, str), f"{name}[{index}].{field}", value, "text")
        return
    texts = isinstance(tests, list) and tests and all(isinstance(text, str) for text in tests)
    _check(bool(texts) or (isinstance(tests, str) and bool(tests.strip())), name, tests, accepted)


def _check(good: bool, field: str, value: Any, accepted: str) -> None:
    if not good:
        shown = repr(value)
        raise errors.DataError(f"{field}={shown if len(shown) < 100 else shown[:97] + '...'} (accepted: {accepted})")


def extract_sources(completion: str, prompt: str) -> list[str]:
    """Returns the texts that may be the program, the likeliest first.

    Inside the sandbox the one is taken that compiles and defines most of what the tests ask for. The last fenced block
    comes first, then those before it and all together, then the bare text; each as it stands and behind the prompt.
    """
    text = extract.strip_reasoning(completion)
    if "<think>" in text or not text.strip():
        return []
    text = text[:_MAX_SOURCE].replace("\r\n", "\n").replace("\x00", "")
    found = [(match[2].lower(), match[3]) for match in _FENCE.finditer(text)][-_MAX_BLOCKS:]
    blocks = [block for language, block in found if language in _LANGUAGES and block.strip()]
    texts = list(reversed(blocks))
    if len(blocks) > 1:
        texts.append("\n".join(blocks))
    if not blocks:
        texts.append(text)
        first = _FIRST_LINE.search(text)
        if first is not None and first.start() > 0:
            texts.append(text[first.start() :])
    if prompt:
        texts += [_join(prompt, body) for body in texts]
        texts += [_join(prompt, _indent(body)) for body in texts[: len(blocks) or 1]]
    return texts


def _join(prompt: str, body: str) -> str:
    return prompt + body if prompt.endswith("\n") or body.startswith("\n") else prompt + "\n" + body


def _indent(body: str) -> str:
    return "\n".join("    " + line for line in body.split("\n"))


def _run(
    sandbox: runner.Sandbox, sources: list[str], fields: dict[str, Any], name: str, deadline: float
) -> runner.Report:
    tests = fields[name]
    if isinstance(tests, list) and isinstance(tests[0], Mapping):
        return _run_cases(sandbox, sources, tests, deadline)
    spec = {"tests": tests, **{field: fields[field] for field in ("setup", "prompt", "entry_point")}}
    try:
        return sandbox.run_tests(sources, spec, deadline)
    except runner.BadTests as error:
        raise errors.DataError(f"{name}: {error}") from None


def _run_cases(
    sandbox: runner.Sandbox, sources: list[str], tests: list[Mapping[str, str]], deadline: float
) -> runner.Report:
    passed, status, detail = 0, "correct", ""
    for number, case in enumerate(tests, start=1):
        limit = 4 * len(case["output"]) + _SPARE_OUTPUT
        run = sandbox.run_program(sources, case["input"].encode(errors="replace"), deadline, limit)
        if run.status == "ended" and are_equal(run.output.decode(errors="replace"), case["output"]):
            passed += 1
            continue
        if not detail:
            said = run.detail or f"another output: {run.output[:80].decode(errors='replace')!r}"
            detail = f"case {number} of {len(tests)}: {said}"
            status = run.status if run.status in ("timeout", "unparsed") else "wrong"
        if run.status in ("timeout", "unparsed"):
            break
    return runner.Report(status, passed, len(tests), detail or f"{passed} of {len(tests)} cases pass")


def are_equal(output: str, expected: str) -> bool:
    """Whether a program's output is the expected one: see the rules at the top."""
    ours, theirs = _lines(output), _lines(expected)
    if ours == theirs:
        return True
    if len(ours) != len(theirs):
        return False
    for line, wanted in zip(ours, theirs, strict=True):
        words, wanted_words = line.split(), wanted.split()
        if len(words) != len(wanted_words) or not all(map(_is_word, words, wanted_words)):
            return False
    return True


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _is_word(word: str, wanted: str) -> bool:
    if word == wanted:
        return True
    if max(len(wanted), len(word)) > _MAX_NUMBER or not _DECIMAL.fullmatch(wanted):
        return False
    try:
        return math.isclose(float(word), float(wanted), rel_tol=_NUMBER_TOLERANCE, abs_tol=_NUMBER_TOLERANCE)
    except ValueError:
        return False
