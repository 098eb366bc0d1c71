#!/usr/bin/env bash
# Sets up .venv and runs the main job: a small mixture-of-experts policy learns arithmetic, from scratch.
#   bash scripts/quickstart.sh [WORKDIR]        (default runs/quickstart; run again to resume)
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh base
exec .venv/bin/python -m launch.train --config=configs/quickstart.py --workdir="${1:-runs/quickstart}"
