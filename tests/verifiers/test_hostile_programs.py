"""Hostile programs at every safe level: nothing earned, nothing touched, nothing left behind, no limit passed.

A program is tested for f(3) == 1847 and f(4) == "kx9", which none can know, or for printing 1847; where it defines no
f, one that returns 0 is added.
"""

import glob
import os
import pathlib
import socket
import sys
import tempfile
import time

import pytest

from rlvr.verifiers import base
from rlvr.verifiers.sandbox import current, levels

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from hostile.escape import ESCAPE
from hostile.exhaustion import EXHAUSTION, HANGS
from hostile.forgery import FORGERY

ADDED = "\ndef f(*args):\n    return 0\n"

LIMIT = 0.7
FORMS = {
    "asserts": {"tests": "assert f(3) == 1847\nassert f(4) == 'kx9'"},
    "check": {"tests": "def check(candidate):\n    assert candidate(3) == 1847\n    assert candidate(4) == 'kx9'"},
    "unittest": {
        "tests": "import unittest\nclass T(unittest.TestCase):\n"
        "    def test_a(self): self.assertEqual(f(3), 1847)\n    def test_b(self): self.assertTrue(f(4) == 'kx9')\n"
        "    def test_c(self): self.assertIn('kx9', [f(4)])\n    def test_d(self): self.assertAlmostEqual(f(3), 1847.0)"
    },
    "stdin": {"tests": [{"input": "3\n", "output": "1847\n"}, {"input": "", "output": "kx9"}]},
}
FORMS["check"]["entry_point"] = "f"


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request):
    current.configure(levels.Limits(request.param, LIMIT))
    try:
        yield current.get()
    except levels.SandboxError as error:
        pytest.skip(str(error))
    finally:
        current.close()


class Outside:
    """What a program could reach if it got out."""

    def __init__(self, folder):
        folder.chmod(0o777)
        self.folder, self.file, self.path = folder, folder / "file", folder / "socket"
        self.abstract = f"rlvr-test-{os.getpid()}-{time.monotonic_ns()}"
        self.file.write_text("outside")
        self.file.chmod(0o666)
        self.servers = [socket.socket(family) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)]
        addresses = (("127.0.0.1", 0), str(self.path), "\0" + self.abstract)
        for server, address in zip(self.servers, addresses, strict=True):
            server.bind(address)
            server.listen()
            server.setblocking(False)
        self.before = self.describe()

    def describe(self):
        entries = sorted(self.folder.iterdir())
        return [(e.name, e.stat().st_size, e.stat().st_mode, e.stat().st_mtime_ns) for e in entries]

    def place(self, program):
        marks = {"FILE": repr(str(self.file)), "FOLDER": repr(str(self.folder)), "PATH": repr(str(self.path))}
        marks |= {"ABSTRACT": repr(self.abstract), "PORT": str(self.servers[0].getsockname()[1])}
        marks["PID"] = str(os.getpid())
        for mark, value in marks.items():
            program = program.replace(mark, value)
        return program if "def f(" in program or "f = " in program else program + ADDED

    def assert_untouched(self):
        assert self.describe() == self.before and self.file.read_text() == "outside"
        for server in self.servers:
            with pytest.raises(BlockingIOError):
                server.accept()


@pytest.fixture(scope="module")
def outside():
    # Not below pytest's own folder, which others cannot enter: the walls must hold, not the folder's mode.
    with tempfile.TemporaryDirectory() as folder:
        outside = Outside(pathlib.Path(folder))
        yield outside
        for server in outside.servers:
            server.close()


def list_descendants(pid):
    found = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            children = [int(child) for child in pathlib.Path(path).read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *list_descendants(child)]
    return found


def run(sandbox, outside, program, forms):
    program = outside.place(program)
    for form in forms:
        start = time.monotonic()
        verdict = base.verify("code", f"```python\n{program}\n```", "", FORMS[form])
        seconds = time.monotonic() - start
        assert verdict.score == 0 and verdict.parts["strict"] == 0, (form, verdict)
        assert verdict.status in ("wrong", "timeout", "refused", "unparsed"), (form, verdict)
        assert seconds < LIMIT + 1, (form, seconds)
        for pid in sandbox.pids():  # the zygote is the room's process or the only child of it
            assert len(list_descendants(pid)) == (1 if sandbox._rooms["candidate"].namespaces else 0)
    outside.assert_untouched()


@pytest.mark.parametrize("name", FORGERY)
def test_forgery_earns_nothing(sandbox, outside, name):
    run(sandbox, outside, FORGERY[name], FORMS)


@pytest.mark.parametrize("name", ESCAPE)
def test_escape_reaches_nothing(sandbox, outside, name):
    run(sandbox, outside, ESCAPE[name], ["asserts", "stdin"])


@pytest.mark.parametrize("name", EXHAUSTION)
def test_exhaustion_harms_only_itself(sandbox, outside, name):
    run(sandbox, outside, EXHAUSTION[name], ["asserts"])


@pytest.mark.parametrize("name", HANGS)
def test_hangs_end_at_the_limit(sandbox, outside, name):
    form = "asserts" if "def f" in HANGS[name] else "stdin"
    run(sandbox, outside, HANGS[name], ["unittest" if name == "hangs_in_eq" else form])


def test_the_next_program_is_served_as_ever(sandbox):
    verdict = base.verify("code", "def f(x): return {3: 1847, 4: 'kx9'}[x]", "", FORMS["asserts"])
    assert verdict.status == "correct" and verdict.seconds < LIMIT
