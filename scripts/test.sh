#!/usr/bin/env bash
# Sets up .venv with the test dependencies and runs the tests; arguments go to pytest.
#   bash scripts/test.sh [-k NAME | -m slow | ...]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh parity
exec .venv/bin/python -m pytest "$@"
