"""Reads tests: which statements are cases, what they want of the program, what they bring along."""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import importlib.util
import sys
from types import CodeType


class Stop(BaseException):
    """Ends the judging. Not an Exception: tests that catch those must not catch it."""


class BadTests(Stop):
    """The row's fault: tests, set-up or prompt that cannot work with any program."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """A top-level statement; `is_case` says that it tests something."""

    code: CodeType
    text: str
    is_case: bool


@dataclasses.dataclass(frozen=True)
class Unit:
    """One text of tests."""

    statements: list[Statement]
    check: bool
    functions: list[str]
    classes: list[str]


@dataclasses.dataclass
class Suite:
    """Everything the judge needs.

    Attributes:
        units: the texts.
        one_case_a_unit: a list of texts was given, each of which is one case.
        setup, helpers: compiled; the helpers are what the prompt defines ready-made.
        setup_text, preamble: what the program gets to see of the two.
        wanted: names that are taken from the program where it defines them. No built-in, which it must not stand in
            for, unless that is all that the tests call.
        modules: of the standard library, used without an import.
        entry_point: the function under test, where the row says.
    """

    units: list[Unit]
    one_case_a_unit: bool
    setup: CodeType
    helpers: CodeType
    setup_text: str
    preamble: str
    wanted: set[str]
    modules: set[str]
    entry_point: str | None


def read(tests: str | list[str], setup: str, prompt: str, entry_point: str | None) -> Suite:
    """Raises BadTests naming the field."""
    texts = [tests] if isinstance(tests, str) else tests
    trees = [_parse("tests", text) for text in texts]
    setup_tree = _parse("setup", setup)
    helpers, preamble = _read_prompt(prompt, entry_point)
    loaded: set[str] = set()
    defined: set[str] = set()
    for tree in (*trees, setup_tree, helpers):
        _replace_imports(tree)
        loaded |= _loaded(tree)
        defined |= _defined(tree)
    wanted = {name for name in loaded - defined if not hasattr(builtins, name) and not name.startswith("__")}
    if not wanted and entry_point is None:
        called = {name for name in loaded - defined if _is_called(name, trees)}
        wanted = called if len(called) == 1 else set()  # a function under test that has the name of a built-in
    modules = {name for name in wanted & sys.stdlib_module_names if not _is_called(name, trees)}
    wanted -= modules
    if entry_point is not None:
        wanted.add(entry_point)
    return Suite(
        units=[_make_unit(tree, text) for tree, text in zip(trees, texts, strict=True)],
        one_case_a_unit=not isinstance(tests, str),
        setup=compile(setup_tree, "<setup>", "exec", dont_inherit=True),
        helpers=compile(helpers, "<prompt>", "exec", dont_inherit=True),
        setup_text=setup,
        preamble=preamble,
        wanted=wanted,
        modules=modules,
        entry_point=entry_point,
    )


def _parse(field: str, text: str) -> ast.Module:
    try:
        return ast.parse(text.replace("\r\n", "\n"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadTests(f"{field} cannot be parsed: {error}") from None


def _is_called(name: str, trees: list[ast.Module]) -> bool:
    """Whether the name is used as a function: then it is no module, whatever its name."""
    calls = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(isinstance(node.func, ast.Name) and node.func.id == name for node in calls)


def _defined(tree: ast.Module) -> set[str]:
    """What a text defines at its top level."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.For, ast.With)):
            found |= {
                inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
            }
    return found


def _loaded(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "__solution__":
            names.add(node.attr)
    return names


def _replace_imports(tree: ast.Module) -> None:
    """Takes names of modules that are not here (`from solution import f`) from the program."""
    solutions: set[str] = set()
    for parent in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(parent, field, None)
            if not isinstance(statements, list):
                continue
            kept = []
            for node in statements:
                if isinstance(node, ast.ImportFrom) and not _is_here(node.module):
                    kept += [
                        ast.parse(f"{alias.asname} = {alias.name}").body[0]
                        for alias in node.names
                        if alias.asname not in (None, alias.name)
                    ] or [ast.Pass()]
                elif isinstance(node, ast.Import) and not all(_is_here(alias.name) for alias in node.names):
                    for alias in node.names:
                        if _is_here(alias.name):
                            kept.append(ast.Import([alias]))
                        else:
                            kept += ast.parse(f"{alias.asname or alias.name.split('.')[0]} = __solution__").body
                            solutions.add(alias.asname or alias.name)
                else:
                    kept.append(node)
            setattr(parent, field, kept)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in solutions and isinstance(node.ctx, ast.Load):
            node.id = "__solution__"
    ast.fix_missing_locations(tree)


def _is_here(module: str | None) -> bool:
    if not module:
        return False
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return True
    with contextlib.suppress(ValueError):
        return importlib.util.find_spec(top) is not None
    return False


def _make_unit(tree: ast.Module, source: str) -> Unit:
    statements, functions, classes, check = [], [], [], False
    called = any(isinstance(node, ast.Call) and _called_name(node) == "check" for node in ast.walk(tree))
    for node in tree.body:
        if _is_main(node):
            continue
        if isinstance(node, ast.FunctionDef):
            if node.name == "check" and len(node.args.posonlyargs + node.args.args) == 1 and not called:
                check = True
                _split_check(node)
            elif node.name.startswith("test") and not node.args.args:
                functions.append(node.name)
        elif isinstance(node, ast.ClassDef):
            classes.append(node.name)
        defines = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        text = (ast.get_source_segment(source.replace("\r\n", "\n"), node) or ast.unparse(node))[:200]
        is_case = not defines and (_asserts(node) or (called and "check" in _loaded(node)))
        module = ast.fix_missing_locations(ast.Module([node], []))
        statements.append(Statement(compile(module, "<tests>", "exec", dont_inherit=True), text, is_case))
    return Unit(statements, check, functions, classes)


def _is_main(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":` and `unittest.main()`: how the text would be run as a script."""
    if isinstance(node, ast.If):
        return "__name__" in _loaded(node.test)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called_name(node.value) == "main"


def _called_name(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _asserts(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.Assert) or (isinstance(inner, ast.Attribute) and inner.attr.startswith("assert"))
        for inner in ast.walk(node)
    )


def _split_check(node: ast.FunctionDef) -> None:
    """Makes every assert of check's own body a case of its own: the fraction that passes is then worth something."""
    body: list[ast.stmt] = []
    for statement in node.body:
        if not isinstance(statement, ast.Assert):
            body.append(statement)
            continue
        text = ast.unparse(statement)[:200]
        record = ast.parse(
            f"try: pass\nexcept Exception as __error__: __record__({text!r} + ': ' + repr(__error__)[:200])\n"
            "else: __record__('')"
        ).body[0]
        assert isinstance(record, ast.Try)
        record.body = [statement]
        body.append(record)
    node.body = body


def _read_prompt(prompt: str, entry_point: str | None) -> tuple[ast.Module, str]:
    """Returns what a prompt defines ready-made (imports, helpers), and the same as text.

    A prompt that is no program, such as a text for people, defines nothing. What it leaves open (the entry point, a
    body that is a docstring) is the program's to define.
    """
    try:
        tree = ast.parse(prompt.replace("\r\n", "\n"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], []), ""
    tree.body = [node for node in tree.body if not _is_open(node, entry_point) and not isinstance(node, ast.Expr)]
    return tree, ast.unparse(tree)


def _is_open(node: ast.stmt, entry_point: str | None) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name == entry_point or all(_is_placeholder(inner) for inner in node.body)
    if isinstance(node, ast.ClassDef):
        return node.name == entry_point or any(
            _is_open(inner, None) for inner in node.body if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
        )
    return False


def _is_placeholder(node: ast.stmt) -> bool:
    if isinstance(node, ast.Raise):
        return "NotImplementedError" in _loaded(node)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
