"""What a process holds, and what it gives back."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from rlvr import memory
from rlvr.journal import Journal
from rlvr.writers import MetricsWriter

# Blocks of 4 KB, every one of which is freed but for some that keep the lists' ends from shrinking by themselves.
HOARD = """
from rlvr import memory
blocks = [bytes(4096) for _ in range(50_000)]
blocks = blocks[::500]
before = memory.resident_gb()
memory.trim()
print(before, memory.resident_gb())
"""


@pytest.mark.skipif(memory.resident_gb() is None, reason="not on Linux")
def test_freed_memory_goes_back_to_the_system() -> None:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", HOARD], cwd=root, capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert 0.2 < before < 0.4 and after < before - 0.15


def test_every_line_says_what_the_process_holds() -> None:
    class Lines:
        def write(self, step: int, metrics: dict[str, Any]) -> None:
            written.append((step, metrics))

    written: list[tuple[int, dict[str, Any]]] = []
    journal = Journal(cast(MetricsWriter, Lines()), 0.0)
    journal.open(3, {"reward/mean": 0.5}, lambda: {"loss": 1.0})
    journal.settle()
    ((step, line),) = written
    assert step == 3 and line["reward/mean"] == 0.5 and line["loss"] == 1.0
    assert line.get("memory/host_gb") == pytest.approx(memory.resident_gb(), rel=0.2)
