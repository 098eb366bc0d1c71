"""The process in which a program runs. It is wholly the program's: nothing that it sends is believed.

Requests come as {"op": ..., ...} and are answered by {"ok": value} or {"raised": ...}. While it works on one it may ask
back with {"callback": ...}, because a test may pass a function of its own.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import io
import sys
import textwrap
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from rlvr.verifiers.sandbox.inside import wire

_MAX_TEXT = 65536
_MAX_ATTEMPTS = 12
_SCALARS = (type(None), bool, int, float, complex, str, bytes)


def main(channels: list[int]) -> None:
    _Agent(wire.Channel(channels[0], channels[1])).serve()


class _Agent:
    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel
        self._codec = wire.Codec(self._hold, self._resolve)
        self._held: list[Any] = []
        self._numbers: dict[int, int] = {}  # by identity, which is theirs for as long as they are held
        self._module = types.ModuleType("solution")
        self._lock = threading.RLock()

    def serve(self) -> None:
        with contextlib.suppress(wire.Closed):
            while True:
                self._answer(self._channel.receive())

    def _answer(self, request: dict) -> None:
        try:
            with _captured_output() as output:
                reply = _OPERATIONS[request["op"]](self, request)
            if text := output():
                reply["printed"] = text
        except BaseException as error:
            reply = {"raised": self._describe(error)}
        try:
            self._channel.send(reply)
        except wire.Unsendable as error:
            self._channel.send({"raised": self._describe(ValueError(str(error)))})

    def _describe(self, error: BaseException) -> dict:
        """An exception as its names, from its own class up, and its text; nobody will rebuild its class from this."""
        names = [kind.__name__ for kind in type(error).__mro__]
        values: Any = None
        text = "".join(traceback.format_exception_only(type(error), error))[:500] if _is_plain(error) else ""
        with contextlib.suppress(BaseException):
            values = self._codec.encode(error.args)
        return {"names": names, "text": text.strip(), "args": values}

    # Values that stay here.

    def _hold(self, value: Any) -> Any:
        if isinstance(value, _Callback):
            return ["fn", value._number]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["X", [kind.__name__ for kind in value.__mro__]]
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._held)
            self._held.append(value)
        return ["h", number, type(value).__name__]

    def _resolve(self, message: list) -> Any:
        if message[0] == "h":
            return self._held[message[1]]
        if message[0] == "fn":
            return _Callback(self, message[1])
        raise wire.Malformed(str(message[0]))

    def call_back(self, number: int, args: tuple, kwargs: dict) -> Any:
        """Asks the other side to call a function of the tests."""
        with self._lock:
            self._channel.send({"callback": number, "args": self._codec.encode([list(args), kwargs])})
            while "op" in (message := self._channel.receive()):
                self._answer(message)
        if "raised" in message:
            raise getattr(builtins, message["raised"][0], Exception)(message["raised"][1])
        return self._codec.decode(message["ok"])

    # Operations.

    def load(self, request: dict) -> dict:
        """Runs the program's text; answers with the values of the names asked for, among those it defines."""
        code = find_program(request["sources"], set(request["names"]))
        if code is None:
            return {"unparsed": True}
        names = self._module.__dict__
        sys.modules[self._module.__name__] = self._module
        pending = not _try(request["setup"], names)
        _try(request["preamble"], names)
        self._codec.classes.update(wire.find_classes(names))
        exec(code, names)
        if pending:  # it builds on what the program defines
            _try(request["setup"], names)
        found = {name: self._codec.encode(names[name]) for name in request["names"] if name in names}
        return {"ok": found}

    def run(self, request: dict) -> dict:
        """Runs a whole program with the standard input and output of this process."""
        code = find_program(request["sources"], set())
        if code is None:
            return {"unparsed": True}
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        try:
            exec(code, main.__dict__)
        except SystemExit as error:
            if error.code not in (None, 0):
                raise
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
        return {"ok": None}

    def call(self, request: dict) -> dict:
        target = self._codec.decode(request["target"])
        args, kwargs = self._codec.decode(request["args"])
        mutable = not all(type(value) in _SCALARS for value in (*args, *kwargs.values()))
        before = self._codec.encode([args, kwargs]) if mutable else None
        result = target(*args, **kwargs)
        reply: dict[str, Any] = {"ok": self._codec.encode(result)}
        if mutable and (after := self._codec.encode([args, kwargs])) != before:
            reply["args"] = after
        for index, value in enumerate(args):
            if result is value and type(value) not in _SCALARS:
                reply["same"] = index
        return reply

    def apply(self, request: dict) -> dict:
        """One of `_FUNCTIONS` on decoded values."""
        values = self._codec.decode(request["args"])
        return {"ok": self._codec.encode(_FUNCTIONS[request["function"]](*values))}


_OPERATIONS: dict[str, Callable[[_Agent, dict], dict]] = {
    "load": _Agent.load,
    "run": _Agent.run,
    "call": _Agent.call,
    "apply": _Agent.apply,
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "isinstance": isinstance,
    "getitem": lambda value, key: value[key],
    "setitem": lambda value, key, item: value.__setitem__(key, item),
    "delitem": lambda value, key: value.__delitem__(key),
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
    "neg": lambda a: -a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


class _Callback:
    """A function of the tests, as the program sees it."""

    def __init__(self, agent: _Agent, number: int) -> None:
        self._agent, self._number = agent, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._agent.call_back(self._number, args, kwargs)


def find_program(sources: list[str], names: set[str]) -> types.CodeType | None:
    """Returns the source that defines most of `names`, the first of equals; None if none compiles.

    A source that does not compile as it stands is tried without the lines from its error on: prose, or a cut.
    """
    best, most = None, -1
    for source in sources:
        tree = _parse(source)
        count = len(names & _defined(tree)) if tree is not None else -1
        if tree is not None and count > most:
            code = _compile(tree)
            if code is not None:
                best, most = code, count
        if names and most == len(names):
            break
    return best


def _parse(source: str) -> ast.Module | None:
    """The longest beginning of the text that parses and holds more than names and texts (prose parses at times)."""
    source = textwrap.dedent(source.replace("\r\n", "\n"))
    for _ in range(_MAX_ATTEMPTS):
        try:
            tree = ast.parse(source)
            return tree if any(not _is_idle(node) for node in tree.body) else None
        except SyntaxError as error:
            lines = source.split("\n")
            source = "\n".join(lines[: min(error.lineno or 1, len(lines)) - 1])
        except (ValueError, RecursionError, MemoryError):
            return None
    return None


def _is_idle(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Name, ast.Constant, ast.Tuple, ast.Attribute))


def _compile(tree: ast.Module) -> types.CodeType | None:
    try:
        return compile(tree, "<program>", "exec", dont_inherit=True)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _defined(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def _try(source: str, names: dict) -> bool:
    """Runs trusted text as far as it goes; whether it went to its end."""
    try:
        exec(compile(source, "<setup>", "exec", dont_inherit=True), names)
    except Exception:
        return False
    return True


def _is_plain(error: BaseException) -> bool:
    return type(error).__module__ == "builtins"


@contextlib.contextmanager
def _captured_output() -> Any:
    """Collects what is printed meanwhile; yields a function that returns it."""
    text = io.StringIO()
    before = sys.stdout
    sys.stdout = text
    try:
        yield lambda: text.getvalue()[:_MAX_TEXT]
    finally:
        sys.stdout = before
