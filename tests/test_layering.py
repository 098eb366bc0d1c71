"""Imports point one way: a room may use those below it, never one above or beside it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# launch -> trainer -> parts -> the rooms of a step -> the rooms of one subject -> what everything may use.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "figures", "statistics", "timing", "watchdog", "memory"),
    ("keys", "masked", "mesh", "partition", "plots", "signals", "writers", "fingerprint"),
    ("policy", "algo", "verifiers", "data", "text", "report"),
    ("weights", "rollout", "learner", "adaptation"),
    ("checkpoint", "evaluation"),
    ("config", "metrics", "policy_folder"),
    ("checks",),
    ("credit", "workdir", "journal", "curriculum", "reference", "warm_start"),
    ("parts", "rollouts", "rollback"),
    ("program", "distillation"),
    ("trainer", "grid"),
    ("launch", "configs"),
)
RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(f for folder in ("rlvr", "launch", "configs") for f in (ROOT / folder).rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str | None:
    """The room of a dotted module path; None for the package itself and for other people's packages."""
    if parts[0] in ("launch", "configs"):
        return parts[0]
    return parts[1] if parts[0] == "rlvr" and len(parts) > 1 else None


def imported(file: Path) -> Iterator[tuple[str, ...]]:
    """Every module a file imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide their room"
            # `from rlvr import keys` names a module; `from rlvr.keys import make_key` names what is in one.
            module = tuple((node.module or "").split("."))
            yield from ((*module, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    relative = file.relative_to(ROOT).with_suffix("").parts
    own = room_of(relative)
    if own in (None, "__init__"):
        assert not [m for m in imported(file) if m[0] == "rlvr"]
        return
    assert own in RANK, f"{own} is a new room: give it its place in LEVELS"
    for module in imported(file):
        other = room_of(module)
        if other is None or other == own:
            continue
        assert other in RANK, f"{file} imports {'.'.join(module)}, whose room has no place in LEVELS"
        assert RANK[other] < RANK[own], f"{relative} must not import {'.'.join(module)}: that arrow points up"


@pytest.mark.parametrize(
    ("library", "home"), [("flax", "rlvr/policy/"), ("orbax", "rlvr/checkpoint.py"), ("optax", "rlvr/learner/")]
)
def test_a_library_is_imported_in_one_place(library: str, home: str) -> None:
    users = {str(f.relative_to(ROOT)) for f in FILES if any(m[0] == library for m in imported(f))}
    assert users, f"nothing imports {library}: this test guards nothing"
    assert {user for user in users if not user.startswith(home)} == set()


def test_verifier_worker_loads_neither_jax_nor_flax() -> None:
    # Also what the verifiers import when they are first used, which is when a worker warms up.
    code = (
        "import sys; from rlvr.verifiers import worker, base\n"
        "for name in base.VERIFIERS: base.warm_up(name)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'flax', 'orbax', 'optax'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_the_records_load_without_jax() -> None:
    code = "import sys, rlvr.types, rlvr.errors; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
