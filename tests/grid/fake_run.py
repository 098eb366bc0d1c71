"""Stands in for a run: one line of metrics a step, resumed from those there are; SIGTERM ends it between steps.

python fake_run.py WORKDIR STEPS SECONDS_A_STEP [fail|crash]
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

asked_to_stop = []
signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop.append(number))


def main(workdir: Path, steps: int, pause: float, mode: str) -> int:
    metrics = workdir / "metrics.jsonl"
    with (workdir / "attempts.jsonl").open("a") as file:
        seen: dict[str, object] = {name: os.environ.get(name) for name in ("DEVICE", "EVERYWHERE")}
        seen |= {"at": time.time(), "pid": os.getpid(), "cpus": sorted(os.sched_getaffinity(0))}
        file.write(json.dumps(seen) + "\n")
    if mode == "fail":
        print("Traceback and so on\nerror: data/train.jsonl has no rows\nlast words", flush=True)
        return 1
    if mode == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    done = metrics.read_text().count("\n") if metrics.exists() else 0
    for step in range(done, steps):
        time.sleep(pause)
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "phase": "rl", "reward/mean": step / 10}) + "\n")
        if asked_to_stop and step + 1 < steps:
            return 0
    (workdir / "result.json").write_text(json.dumps({"ended": time.time()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else ""))
