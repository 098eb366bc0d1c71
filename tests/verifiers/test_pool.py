"""The worker pool against verifiers that hang, die, lie and litter."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from rlvr import errors, types
from rlvr.verifiers import pool as pools

RUN = "misbehaving:run"
LIMIT = 1.0


@pytest.fixture(scope="module", autouse=True)
def find_misbehaving():
    """Puts this folder where the user's own verifiers would be: on the path of the process with the pool."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(pathlib.Path(__file__).parent))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pool(find_misbehaving):
    with pools.VerifierPool(pools.VerifierConfig(timeout_s=LIMIT, memory_gb=1.0), [RUN, "numeric"]) as pool:
        yield pool


@pytest.fixture(scope="module")
def single(find_misbehaving):
    """One worker: items follow one another through the same process."""
    with pools.VerifierPool(pools.VerifierConfig(workers=1, timeout_s=LIMIT, memory_gb=1.0), [RUN]) as pool:
        yield pool


def make_task(verifier=RUN, answer="", **payload):
    return types.Task(0, "test", "", answer, verifier, payload=payload)


def verify(pool, action, **payload):
    return pool.submit(make_task(**payload), action).result(30)


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("action", ["sleep:60", "regex:", "power:"])
def test_a_hang_is_killed_near_the_limit(pool, action):
    start = time.monotonic()
    verdict = verify(pool, action)
    assert LIMIT <= time.monotonic() - start < LIMIT + 2
    assert (verdict.status, verdict.score) == ("timeout", 0)
    assert RUN in verdict.detail and LIMIT <= verdict.seconds < LIMIT + 2
    assert verify(pool, "say:alive").detail == "alive"


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("raise:oops", "ZeroDivisionError: oops"),
        ("sys_exit:3", "SystemExit"),
        ("nan:nan", "score=nan"),
        ("not_a_verdict:", "returned a bool"),
        ("exit:7", "exit code 7"),
        (f"signal:{int(signal.SIGSEGV)}", "SIGSEGV"),
        (f"signal:{int(signal.SIGKILL)}", "SIGKILL"),
        ("fork_and_die:", "exit code 9"),
        ("allocate:3", "MemoryError"),
    ],
)
def test_failures_are_errors_and_the_pool_goes_on(single, action, said):
    verdict = verify(single, action)
    assert (verdict.status, verdict.score) == ("error", None)
    assert RUN in verdict.detail and said in verdict.detail
    assert verify(single, "say:next").detail == "next"


def test_a_limited_item_does_not_shorten_the_next(single):
    first, second = (single.submit(make_task(), "sleep:0.7") for _ in range(2))
    assert first.result(30).status == second.result(30).status == "correct"  # the limit runs from dispatch


@pytest.mark.parametrize("wait", [True, False])
def test_children_die_with_their_item(single, tmp_path, wait):
    path = tmp_path / "pid"
    verdict = verify(single, f"spawn:{path}", wait=wait)
    assert verdict.status == ("timeout" if wait else "correct")
    wait_until(lambda: not is_running(int(path.read_text())))


def test_output_and_forks_do_not_corrupt_the_protocol(single):
    for number in range(3):
        assert verify(single, "print:").detail == "''", "a verifier reads nothing from the protocol either"
        assert verify(single, "fork_and_return:").detail == "forked"
        assert verify(single, f"say:{number}").detail == str(number)


def test_fifty_mixed_items_each_get_their_own_verdict(pool):
    actions = [f"say:{number}" for number in range(50)]
    actions[7], actions[19], actions[33] = "sleep:60", "exit:5", "raise:33"
    futures = [pool.submit(make_task(), action) for action in actions]
    numbers = [pool.submit(make_task("numeric", str(n)), "1,000" if n % 2 else str(n)) for n in range(20)]
    assert not futures[-1].done(), "submit does not wait"
    for number, future in enumerate(futures):
        verdict = future.result(30)
        special = {7: "timeout", 19: "error", 33: "error"}
        assert verdict.status == special.get(number, "correct")
        if number not in special:
            assert verdict.detail == str(number)
    assert [future.result(30).score for future in numbers] == [float(n % 2 == 0) for n in range(20)]


def test_a_worker_killed_while_idle_costs_no_item(single):
    pid = single._workers[0]._process.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid))
    assert verify(single, "say:unharmed").detail == "unharmed"


def test_large_and_odd_texts_travel(single):
    text = "x" * 3_000_000 + "\ud800\u2028\n{}"
    assert single.submit(make_task(), f"say:{text}").result(30).detail == "x" * 500  # details are cut
    assert verify(single, "say:\ud800\u2028é").detail == "\ud800\u2028é"


def test_workers_never_import_jax(find_misbehaving):
    names = ["exact", "numeric", "math", "reasoning_gym", RUN]
    config = pools.VerifierConfig(workers=1, timeout_s=30.0)
    with pools.VerifierPool(config, names) as pool:
        assert verify(pool, "modules:jax,jaxlib,flax,tensorflow,sympy").detail == "sympy"
        assert verify(pool, "9^{9^{9^{9^{9}}}}", verifier="math", answer="2").status == "wrong", (
            "no tower of powers is ever computed"
        )
        hang = pool.submit(make_task(), "sleep:60")
        time.sleep(0.3)
        assert not hang.done()
    with pytest.raises(concurrent.futures.CancelledError):
        hang.result(0)


def test_workers_get_no_accelerator_and_no_credentials(monkeypatch, find_misbehaving):
    for name in ("TPU_WORKER_ID", "XLA_FLAGS", "SOME_TOKEN"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pools.VerifierPool(pools.VerifierConfig(workers=1), [RUN]) as pool:
        seen = [verify(pool, f"environment:{name}").detail for name in ("TPU_WORKER_ID", "XLA_FLAGS", "SOME_TOKEN")]
        assert seen == ["None"] * 3
        assert verify(pool, "environment:CUDA_VISIBLE_DEVICES").detail == "''"


def test_close_ends_at_once_and_cancels(find_misbehaving):
    pool = pools.VerifierPool(pools.VerifierConfig(workers=1, timeout_s=60.0), [RUN])
    running, queued = pool.submit(make_task(), "sleep:60"), pool.submit(make_task(), "say:never")
    wait_until(running.running)
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 5
    for future in (running, queued):
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(0)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(make_task(), "say:late")


def test_workers_that_cannot_be_replaced_end_the_pool(find_misbehaving, monkeypatch):
    with pools.VerifierPool(pools.VerifierConfig(workers=1), [RUN]) as pool:
        monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "verifiers" not in entry])
        assert verify(pool, "exit:1").status == "error"
        wait_until(lambda: pool._closed)
        with pytest.raises(pools.WorkerStartError, match="No module named 'misbehaving'"):
            pool.submit(make_task(), "say:hello")


@pytest.mark.parametrize("hang", [False, True])
def test_workers_end_when_their_parent_is_killed(tmp_path, hang):
    path = tmp_path / "pid"
    action = "regex:" if hang else "say:"
    program = f"""
import sys, time
sys.path[:0] = {[entry for entry in sys.path if entry]!r}
from rlvr import types
from rlvr.verifiers import pool as pools
pool = pools.VerifierPool(pools.VerifierConfig(workers=1, timeout_s=60), [{RUN!r}])
future = pool.submit(types.Task(0, "t", "", "", {RUN!r}), {action!r})
while not future.running() and not future.done(): time.sleep(0.01)
time.sleep(0.2)
open({str(path)!r}, "w").write(str(pool._workers[0]._process.pid) + ".")
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program])
    wait_until(lambda: path.exists() and path.read_text().endswith("."), 20)
    worker = int(path.read_text()[:-1])
    assert is_running(worker)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(worker))


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("numerik", errors.ConfigError, "did you mean 'numeric'"),
        ("no_such_module:run", pools.WorkerStartError, "No module named 'no_such_module'"),
        ("misbehaving:runn", pools.WorkerStartError, "did you mean 'run'"),
        ("broken_verifiers:run", pools.WorkerStartError, "SystemExit: no licence"),
        ("dying_verifiers:run", pools.WorkerStartError, "exit code 4.*last words"),
    ],
)
def test_a_pool_that_cannot_start_says_why(tmp_path, monkeypatch, name, error, said):
    (tmp_path / "broken_verifiers.py").write_text("raise SystemExit('no licence')")
    (tmp_path / "dying_verifiers.py").write_text("import os\nos.write(2, b'last words')\nos._exit(4)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(error, match=said):
        pools.VerifierPool(pools.VerifierConfig(workers=2), [name])


def test_bad_configs_and_tasks(single):
    for field, value in (("workers", 0), ("timeout_s", float("nan")), ("timeout_s", 0.0), ("memory_gb", 0.1)):
        with pytest.raises(errors.ConfigError, match=f"verifiers.{field}="):
            pools.VerifierConfig(**{field: value}).validate()
    with pytest.raises(errors.ConfigError, match="no verifier"):
        pools.VerifierPool(pools.VerifierConfig(), [])
    with pytest.raises(errors.ConfigError, match=r"task\.verifier='math'"):
        single.submit(make_task("math"), "1")
    with pytest.raises(errors.DataError, match="payload is not JSON"):
        single.submit(make_task(value={1, 2}), "1")


def test_the_number_of_sampled_tokens_reaches_the_verifier():
    task = make_task("overlong", max_tokens=20, buffer=4, completion_tokens=0)  # the sampler's word counts
    with pools.VerifierPool(pools.VerifierConfig(workers=1), ["overlong"]) as pool:
        scores = [pool.submit(task, "one two", tokens).result(30).score for tokens in (None, 16, 18, 20)]
    assert scores == [0, 0, -0.5, -1]
