#!/usr/bin/env bash
# Installs bubblewrap, the strongest of the sandbox's levels, on Debian or Ubuntu, and shows the level in force:
#   bash scripts/install_sandbox.sh
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v bwrap >/dev/null; then
  as_root=()
  [[ $EUID -eq 0 ]] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" apt-get install -y -qq bubblewrap
fi
python=.venv/bin/python
[[ -x $python ]] || python=python3
exec "$python" -m rlvr.verifiers.sandbox
