"""The watchdog ends a process that hangs, however it hangs, and leaves one alone that gets on."""

import signal
import subprocess
import sys

import pytest

from tests import tiny

ARM = "import re, time; from rlvr import watchdog; watchdog.arm(0.5)\n"


def run(code):
    return subprocess.run([sys.executable, "-c", ARM + code], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "hang",
    [
        "def wait_for_ever(): time.sleep(50)\nwait_for_ever()",
        "def wait_for_ever(): re.fullmatch('(a+)+', 50 * 'a' + 'b')\nwait_for_ever()",  # holds the interpreter's lock
        "import threading\ndef wait_for_ever(): time.sleep(50)\nthreading.Thread(target=wait_for_ever).start()",
    ],
    ids=["waits", "computes", "does not exit"],
)
def test_a_hung_process_shows_its_stacks_and_is_killed(hang):
    done = run(hang)
    assert done.returncode == -signal.SIGALRM
    assert "in wait_for_ever" in done.stderr


def test_a_process_that_gets_on_is_left_alone():
    done = run("watchdog.arm(2)\nfor _ in range(6): time.sleep(0.5); watchdog.beat()\nprint('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_no_limit_no_watchdog():
    done = run("watchdog.arm(0); watchdog.beat(); time.sleep(0.7); print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")
