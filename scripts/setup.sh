#!/usr/bin/env bash
# Makes .venv with the pinned dependencies of requirements/NAME.txt: base (to run), test, or parity (tests with the
# reference implementations). Does nothing where they are installed already.
set -euo pipefail
cd "$(dirname "$0")/.."
name="${1:-base}"
stamp=".venv/.installed-$name"
want="$(cat requirements/*.txt pyproject.toml | sha256sum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  exit 0
fi
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $python is older than Python 3.11; set PYTHON to a newer one" >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "requirements/$name.txt"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
echo "$want" > "$stamp"
