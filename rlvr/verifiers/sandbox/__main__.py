"""Says which level of the sandbox is in force and proves it: python -m rlvr.verifiers.sandbox [LEVEL]"""

from __future__ import annotations

import sys

from rlvr import errors
from rlvr.verifiers.sandbox import levels, runner, selftest


def main(arguments: list[str]) -> int:
    """Prints the level and what held; returns 1 if something did not, 2 if there is no sandbox."""
    level = arguments[0] if arguments else "auto"
    try:
        sandbox = runner.Sandbox(levels.Limits(level))
    except (errors.ConfigError, levels.SandboxError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"level: {sandbox.describe()}")
    results = dict(selftest.run_probes(sandbox))
    sandbox.close()
    for name in (name for name, held in results.items() if not held):
        print(f"NOT HELD: {name}")
    print(f"{sum(results.values())} of {len(results)} attempts were held")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
