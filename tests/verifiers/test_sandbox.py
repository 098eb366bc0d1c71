"""The levels of the sandbox: each proves itself, none is unsafe unless asked, and rooms are replaced when they die."""

import ast
import gzip
import json
import os
import pathlib
import signal
import time

import pytest

from rlvr import types
from rlvr.verifiers import base
from rlvr.verifiers import pool as pools
from rlvr.verifiers.sandbox import current, levels, rooms, runner, selftest


def start(level, **limits):
    try:
        return runner.Sandbox(levels.Limits(level, **limits))
    except levels.SandboxError as error:
        pytest.skip(str(error))


def run(sandbox, source, seconds=5.0):
    return sandbox.run_program([source], b"", time.monotonic() + seconds, 2**20)


@pytest.fixture(params=["bubblewrap", "landlock"])
def sandbox(request):
    sandbox = start(request.param)
    yield sandbox
    sandbox.close()


def test_the_level_proves_itself(sandbox):
    assert [name for name, held in selftest.run_probes(sandbox) if not held] == []


def test_landlock_holds_without_namespaces(monkeypatch):
    make = levels.make_settings
    monkeypatch.setattr(levels, "make_settings", lambda *args: make(*args) | {"unshare": False, "user": None})
    sandbox = start("landlock")
    try:
        assert "no namespaces, no work folder" in sandbox.describe()
        # As root without another user, threads are held by memory alone; there is no folder to leave a file in.
        root = {"start a thousand threads"} if os.geteuid() == 0 else set()
        assert {name for name, held in selftest.run_probes(sandbox) if not held} <= root
    finally:
        sandbox.close()


def test_the_self_test_can_fail():
    sandbox = runner.Sandbox(levels.Limits("unsafe"))
    try:
        results = dict(selftest.run_probes(sandbox))
    finally:
        sandbox.close()
    assert not results["read a file outside"] and not results["connect over the network"] and not results["ptrace"]


def test_auto_is_never_unsafe(monkeypatch):
    monkeypatch.setattr(levels.shutil, "which", lambda name: None)
    assert start("auto").level == "landlock"
    monkeypatch.setattr(levels, "find_landlock", lambda: 1)
    with pytest.raises(levels.SandboxError, match=r"bwrap is not installed.*version is 1.*install bubblewrap"):
        runner.Sandbox(levels.Limits())
    monkeypatch.setattr(levels.platform, "machine", lambda: "aarch64")
    with pytest.raises(levels.SandboxError, match="made for Linux on x86_64"):
        runner.Sandbox(levels.Limits("bubblewrap"))


def test_a_program_leaves_nothing_to_the_next(sandbox):
    run(sandbox, "import os; os.environ['X'] = '1'; open('left', 'w').write('x'); import math; math.pi = 3")
    assert run(sandbox, "import os, math; print(os.environ.get('X'), os.listdir('.'), math.pi > 3)").output == (
        b"None [] True\n"
    )
    assert b"HOME" not in run(sandbox, "import os; print(sorted(os.environ))").output


def test_a_dead_zygote_is_replaced(sandbox):
    for pid in sandbox.pids():
        os.kill(pid, signal.SIGKILL)
    assert run(sandbox, "print(1)").output == b"1\n"
    spec = {"tests": "assert f() == 1", "setup": "", "prompt": "", "entry_point": None}
    for _ in range(2):
        report = sandbox.run_tests(["def f(): return 1"], spec, time.monotonic() + 5)
        assert report.status == "correct"
        os.kill(sandbox._rooms["judge"].pid, signal.SIGKILL)


def test_a_room_that_cannot_lock_up_runs_nothing(monkeypatch, tmp_path):
    sandbox = start("landlock")
    sandbox.close()
    make = levels.make_settings
    monkeypatch.setattr(levels, "make_settings", lambda *args: make(*args) | {"seccomp": "00" * 8})
    with pytest.raises(levels.SandboxError, match="could not be locked up"):
        run(sandbox, "print(1)")
    sandbox.close()


def test_threads_and_the_work_folder_are_there(sandbox):
    threads = "import concurrent.futures as c\nwith c.ThreadPoolExecutor(16) as e: print(sum(e.map(abs, range(50))))"
    assert run(sandbox, threads).output == b"1225\n"
    assert run(sandbox, "open('x', 'w').write('hi'); print(open('x').read())").output == b"hi\n"
    loop = "import asyncio\nasync def f(): await asyncio.sleep(0); print(7)\nasyncio.run(f())"
    assert run(sandbox, loop).output == b"7\n"


def test_pool_workers_keep_their_rooms_and_take_them_along():
    if levels.find_landlock() < 3:
        pytest.skip("no safe level")
    task = types.Task(0, "t", "", "", "code", payload={"tests": "assert f(2) == 4"})
    with pools.VerifierPool(pools.VerifierConfig(workers=1, timeout_s=2.0), ["code"]) as pool:
        worker = pool._workers[0]._process.pid
        assert pool.submit(task, "def f(x): return x + x").result(30).status == "correct"
        hang = pool.submit(task, "def f(x):\n    while True: pass").result(30)
        assert hang.status == "timeout" and hang.score == 0 and hang.seconds < 2.0
        assert pool.submit(task, "def f(x): return 5").result(30).status == "wrong"
        assert pool._workers[0]._process.pid == worker, "the worker was not replaced"
        children = pathlib.Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        assert len(children) == 2
    end = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_unsafe_is_a_level_of_its_own():
    with pools.VerifierPool(pools.VerifierConfig(workers=1, sandbox="unsafe"), ["code"]) as pool:
        task = types.Task(0, "t", "", "", "code", payload={"tests": "assert f(2) == 4"})
        assert (
            pool.submit(task, "import os\ndef f(x): return len(os.listdir('/')) and 4").result(30).status == "correct"
        )


def test_a_room_tells_why_it_did_not_start(monkeypatch):
    monkeypatch.setattr(rooms, "_BOOTSTRAP", "raise SystemExit('no such thing')")
    with pytest.raises(levels.SandboxError, match="no such thing"):
        rooms.Room("unsafe", levels.Limits())


class Mutate(ast.NodeTransformer):
    """Makes every returned value another one."""

    def __init__(self):
        self.changed = 0

    def visit_Return(self, node):
        self.changed += 1
        node.value = (
            ast.parse(f"(lambda v: [v, 'other'])({ast.unparse(node.value or ast.Constant(None))})").body[0].value
        )
        return node


def test_mutants_of_canonical_solutions_earn_nothing(shared):
    current.configure(levels.Limits(timeout_s=20))
    with gzip.open(shared / "mbpp/sanitized.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file][::6]
    for row in rows:
        mutate = Mutate()
        mutant = ast.unparse(ast.fix_missing_locations(mutate.visit(ast.parse(row["code"]))))
        payload = {"tests": row["test_list"], "setup": "\n".join(row["test_imports"])}
        verdict = base.verify("code", f"```python\n{mutant}\n```", "", payload)
        assert verdict.score == 0, (row["task_id"], mutant, verdict)
    current.close()
