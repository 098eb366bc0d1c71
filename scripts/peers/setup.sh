#!/usr/bin/env bash
# Makes the environment of a peer, build/peers/NAME/venv, from scripts/peers/NAME/requirements.txt; NAME: tunix or trl.
# Does nothing where it is installed already. Peers run on the CPU: where the registry's plain torch is a CUDA build,
# give pip a CPU build of the pinned version (PIP_FIND_LINKS).
set -euo pipefail
cd "$(dirname "$0")/../.."
name="${1:?usage: scripts/peers/setup.sh NAME (tunix or trl)}"
pins="scripts/peers/$name/requirements.txt"
[ -f "$pins" ] || { echo "error: no peer is named '$name'; accepted: tunix, trl" >&2; exit 1; }
folder="build/peers/$name"
want="$(sha256sum < "$pins")"
if [ -f "$folder/installed" ] && [ "$(cat "$folder/installed")" = "$want" ]; then
  exit 0
fi
mkdir -p "$folder"
[ -x "$folder/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$pins"
echo "$want" > "$folder/installed"
