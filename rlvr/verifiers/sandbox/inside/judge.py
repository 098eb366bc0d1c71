"""The process in which tests run. It never runs a line of the program, which is in another sandbox.

The names that the tests take from the program are handles here: using one sends a request over, and what comes back is
plain data (`wire`), an exception of a built-in class, or another handle. Expected values, comparisons and the count of
what passed stay here. A handle is never equal to anything, and asking whether two are equal is refused, because the
answer would be the program's.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from rlvr.verifiers.sandbox.inside import cases, wire

_INTERRUPTS = (KeyboardInterrupt, GeneratorExit)


class Gone(cases.Stop):
    """The program's process ended, or broke the rules: no test can pass any more."""


class Refused(cases.Stop):
    """What the tests do with a value of the program's own class would leave the verdict to the program."""


def main(channels: list[int]) -> None:
    """`channels`: from and to the parent, from and to the program."""
    parent = wire.Channel(channels[0], channels[1])
    spec = parent.receive()
    sys.stdout = sys.stderr = open(1, "w", closefd=False)
    try:
        report = judge(spec, wire.Channel(channels[2], channels[3]))
    except cases.BadTests as error:
        report = {"bad": str(error)}
    except BaseException as error:  # an outsized answer, say: whatever it is, the program is not paid for it
        report = _fail("refused", f"the tests could not be run to their end: {_name(error)}")
    parent.send({"nonce": spec["nonce"], **report})


def judge(spec: dict, channel: wire.Channel) -> dict:
    """Runs the tests of `spec` against the program behind `channel`.

    Returns:
        {"passed", "total", "status", "detail"}; status is "correct", "wrong", "unparsed" or "refused".

    Raises:
        cases.BadTests: the tests cannot be run, whatever the program.
    """
    suite = cases.read(spec["tests"], spec["setup"], spec["prompt"], spec["entry_point"])
    program = Program(channel)
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    names = module.__dict__
    try:
        names |= {name: importlib.import_module(name) for name in suite.modules}
        complete = _prepare(suite, names)
        program.share(names)
        found = program.load(spec["sources"], suite)
        if found is None:
            return _fail("unparsed", "no code found")
        for name, value in found.items():
            names.setdefault(name, value)
        if suite.entry_point in names:
            names.setdefault("candidate", names[suite.entry_point])
        return _run(suite, names, program, complete)
    except Gone as error:
        return _fail("wrong", str(error))
    except Refused as error:
        return _fail("refused", str(error))


def _fail(status: str, detail: str) -> dict:
    return {"passed": 0, "total": 1, "status": status, "detail": detail}


def _prepare(suite: cases.Suite, names: dict[str, Any]) -> bool:
    """Runs prompt and set-up; whether the set-up went to its end without anything of the program's."""
    with contextlib.suppress(Exception):
        exec(suite.helpers, names)
    try:
        exec(suite.setup, names)
    except NameError:
        return False
    except Exception as error:
        raise cases.BadTests(f"setup raised {_name(error)}") from None
    return True


def _run(suite: cases.Suite, names: dict[str, Any], program: Program, complete: bool) -> dict:
    results: list[str] = []  # "" for a case that passed
    names["__record__"] = results.append
    if not complete:
        try:
            exec(suite.setup, names)
        except Exception as error:
            return _fail("wrong", f"setup, which builds on the program: {_name(error)}")
    for unit in suite.units:
        before = len(results)
        _run_statements(unit, names, results)
        _run_functions(unit, names, results, suite)
        if suite.one_case_a_unit:
            failures = [result for result in results[before:] if result]
            results[before:] = failures[:1] or ([""] if results[before:] else [])
        if program.failure is not None:
            raise program.failure
    if not results:
        raise cases.BadTests("tests hold no case: no assert, no check(candidate), no test method")
    failures = [result for result in results if result]
    return {
        "passed": len(results) - len(failures),
        "total": len(results),
        "status": "wrong" if failures else "correct",
        "detail": failures[0] if failures else f"{len(results)} of {len(results)} cases pass",
    }


def _run_statements(unit: cases.Unit, names: dict[str, Any], results: list[str]) -> None:
    for statement in unit.statements:
        try:
            exec(statement.code, names)
        except cases.Stop:
            raise
        except BaseException as error:
            results.append(f"{statement.text}: {_name(error)}")
            if not statement.is_case:
                return  # what follows builds on it
        else:
            if statement.is_case:
                results.append("")


def _run_functions(unit: cases.Unit, names: dict[str, Any], results: list[str], suite: cases.Suite) -> None:
    calls: list[tuple[str, Callable[[], Any]]] = []
    if unit.check:
        entry = suite.entry_point
        if entry is None:
            raise cases.BadTests("entry_point is missing: check(candidate) must be told what the candidate is")
        if entry not in names:
            results.append(f"the program defines no {entry!r}")
            return
        calls.append(("check", lambda: names["check"](names[entry])))
    calls += [(name, names[name]) for name in unit.functions if name in names]
    for name, call in calls:
        before = len(results)
        try:
            call()
        except cases.Stop:
            raise
        except BaseException as error:
            results.append(f"{name}: {_name(error)}")
        else:
            if len(results) == before:
                results.append("")
    for name in unit.classes:
        kind = names.get(name)
        if isinstance(kind, type) and issubclass(kind, unittest.TestCase):
            results += _run_class(kind)


def _run_class(kind: type[unittest.TestCase]) -> Iterator[str]:
    for test in unittest.defaultTestLoader.loadTestsFromTestCase(kind):
        result = unittest.TestResult()
        unittest.TestSuite([test]).run(result)
        if result.skipped:
            continue
        bad = [*result.errors, *result.failures]
        last = bad[0][1].strip().rsplit("\n", 1)[-1] if bad else "unexpected success"
        yield "" if result.wasSuccessful() else f"{test}: {last}"


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


class Program:
    """The other side: what can be asked of it."""

    def __init__(self, channel: wire.Channel) -> None:
        self._channel = channel
        self._codec = wire.Codec(self._hold, self._resolve)
        self._functions: list[Any] = []
        self._exceptions: dict[str, type[BaseException]] = {}
        self.failure: BaseException | None = None

    def share(self, names: dict[str, Any]) -> None:
        """Lets objects of the classes that prompt and set-up define travel by value."""
        self._codec.classes.update(wire.find_classes(names))

    def load(self, sources: list[str], suite: cases.Suite) -> dict[str, Any] | None:
        """Has the program run, once; returns the tests' first namespace, or None if there is no program.

        Raises:
            Gone: the program failed or ended.
        """
        request = {
            "op": "load",
            "sources": sources,
            "setup": suite.setup_text,
            "preamble": suite.preamble,
            "names": sorted(suite.wanted),
        }
        reply = self._exchange(request)
        if reply.get("unparsed"):
            return None
        if "raised" in reply:
            self._fail(Gone(f"the program raised {self._describe(reply['raised'])}"))
        found = reply.get("ok")
        if type(found) is not dict or not set(found) <= suite.wanted:
            self._fail(Gone("the program broke the protocol"))
        names: dict[str, Any] = {name: self._decode(value) for name, value in found.items()}
        return names | {"__solution__": _Module(names)}

    def call(self, target: Handle, args: tuple, kwargs: dict) -> Any:
        request = {
            "op": "call",
            "target": self._encode(target),
            "args": self._encode((list(args), kwargs)),
        }
        reply = self._answer(request)
        if "args" in reply:
            after = self._decode(reply["args"])
            if type(after) is not list or len(after) != 2 or type(after[0]) is not list or type(after[1]) is not dict:
                self._fail(Gone("the program broke the protocol"))
            for old, new in zip(args, after[0], strict=False):
                wire.update(old, new)
            for name in kwargs.keys() & after[1].keys():
                wire.update(kwargs[name], after[1][name])
        same = reply.get("same")
        if type(same) is int and 0 <= same < len(args):
            return args[same]
        return self._decode(reply.get("ok"))

    def apply(self, function: str, *values: Any) -> Any:
        reply = self._answer({"op": "apply", "function": function, "args": self._encode(list(values))})
        return self._decode(reply.get("ok"))

    def refuse(self, reason: str) -> NoReturn:
        self._fail(Refused(reason))

    def _answer(self, request: dict) -> dict:
        reply = self._exchange(request)
        if "printed" in reply and type(reply["printed"]) is str:
            with contextlib.suppress(ValueError, OSError):
                sys.stdout.write(reply["printed"])
        if "raised" in reply:
            raise self._make_exception(reply["raised"])
        return reply

    def _exchange(self, request: dict) -> dict:
        if self.failure is not None:
            raise self.failure
        try:
            self._channel.send(request)
            while "callback" in (reply := self._channel.receive()):
                self._channel.send(self._call_back(reply))
        except wire.Unsendable as error:
            self.refuse(f"the tests pass a value that cannot be sent: {error}")
        except wire.Closed:
            self._fail(Gone("the program's process ended before it answered"))
        except wire.Malformed as error:
            self._fail(Gone(f"the program broke the protocol: {error}"))
        return reply

    def _call_back(self, message: dict) -> dict:
        """Calls a function of the tests for the program."""
        number = message["callback"]
        if type(number) is not int or not 0 <= number < len(self._functions):
            raise wire.Malformed("no such function")
        args, kwargs = self._codec.decode(message.get("args"))
        try:
            return {"ok": self._encode(self._functions[number](*args, **kwargs))}
        except Exception as error:
            name = type(error).__name__
            return {"raised": [name if hasattr(builtins, name) else "Exception", str(error)[:500]]}

    def _fail(self, failure: BaseException) -> NoReturn:
        """Remembers it as well: a test that catches everything must not make it unhappen."""
        self.failure = failure
        raise failure

    def _encode(self, value: Any) -> dict:
        try:
            return self._codec.encode(value)
        except wire.Unsendable as error:
            self.refuse(f"the tests pass a value that cannot be sent: {error}")

    def _decode(self, message: Any) -> Any:
        try:
            return self._codec.decode(message)
        except wire.Malformed as error:
            self._fail(Gone(f"the program broke the protocol: {error}"))

    def _hold(self, value: Any) -> Any:
        if isinstance(value, Handle):
            return ["h", object.__getattribute__(value, "_number")]
        if not callable(value):
            self._fail(cases.BadTests(f"the tests pass a {type(value).__name__} to the program: it cannot be sent"))
        for number, function in enumerate(self._functions):
            if function is value:
                return ["fn", number]
        self._functions.append(value)
        return ["fn", len(self._functions) - 1]

    def _resolve(self, message: list) -> Any:
        if message[0] == "h" and type(message[1]) is int:
            return Handle(self, message[1], str(message[2])[:100])
        if message[0] == "fn" and type(message[1]) is int and 0 <= message[1] < len(self._functions):
            return self._functions[message[1]]
        if message[0] == "X" and type(message[1]) is list:
            return self._exception_class(message[1])
        raise wire.Malformed(str(message[0])[:20])

    def _exception_class(self, names: list) -> type[BaseException]:
        """A built-in exception, or a class of our own under the name of the program's, below its nearest built-in."""
        if not all(type(name) is str for name in names) or not names:
            raise wire.Malformed("exception names")
        if not isinstance(getattr(builtins, names[0], None), type):
            known = self._exceptions.get(names[0])
            if known is None:
                base = self._exception_class(names[1:]) if len(names) > 1 else Exception
                known = self._exceptions[names[0]] = type(names[0], (base,), {})
            return known
        kind = getattr(builtins, names[0])
        # Runners of tests let these two through, to whoever interrupts them.
        return kind if issubclass(kind, BaseException) and kind not in _INTERRUPTS else Exception

    def _make_exception(self, message: Any) -> BaseException:
        if type(message) is not dict or type(message.get("names")) is not list:
            self._fail(Gone("the program broke the protocol"))
        try:
            kind = self._exception_class(message["names"][:20])
            args = self._codec.decode(message["args"]) if message.get("args") else ()
        except wire.Malformed as error:
            self._fail(Gone(f"the program broke the protocol: {error}"))
        try:
            return kind(*args) if type(args) is tuple else kind()
        except Exception:
            return Exception(str(message.get("text"))[:200])

    @staticmethod
    def _describe(message: Any) -> str:
        return str(message.get("text") or (message.get("names") or ["?"])[0])[:300] if type(message) is dict else "?"


class Handle:
    """Something of the program's that is no plain data: a function, a class, an object, a generator."""

    __slots__ = ("_kind", "_number", "_program")

    def __init__(self, program: Program, number: int, kind: str) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _program_of(self).call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return _program_of(self).apply("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _program_of(self).apply("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _program_of(self).apply("delattr", self, name)

    def __iter__(self) -> Any:
        return _program_of(self).apply("iter", self)

    def __next__(self) -> Any:
        return _program_of(self).apply("next", self)

    def __len__(self) -> int:
        return _program_of(self).apply("len", self)

    def __bool__(self) -> bool:
        return _program_of(self).apply("bool", self)

    def __str__(self) -> str:
        return _text(_program_of(self).apply("str", self))

    def __repr__(self) -> str:
        return _text(_program_of(self).apply("repr", self))

    def __getitem__(self, key: Any) -> Any:
        return _program_of(self).apply("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _program_of(self).apply("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        _program_of(self).apply("delitem", self, key)

    def __contains__(self, item: Any) -> bool:
        return any(value is item or value == item for value in self)  # compared here, the item is not sent

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Handle) and _program_of(self).apply("isinstance", value, self) is True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return False
        if object.__getattribute__(other, "_number") == object.__getattribute__(self, "_number"):
            return True
        kind = object.__getattribute__(self, "_kind")
        _program_of(self).refuse(f"the tests compare two objects of the program's class {kind!r} with one another")

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_number"))

    def __enter__(self) -> Any:
        return self.__getattr__("__enter__")()

    def __exit__(self, *exception: Any) -> Any:
        return self.__getattr__("__exit__")(None, None, None)

    def __neg__(self) -> Any:
        return _program_of(self).apply("neg", self)


def _between_handles(function: str) -> Callable[[Handle, Any], Any]:
    def operate(self: Handle, other: Any) -> Any:
        if not isinstance(other, Handle):
            # The other operand may be the expected value: it must not be sent.
            return NotImplemented
        return _program_of(self).apply(function, self, other)

    return operate


for _function in ("add", "sub", "mul", "truediv", "lt", "le", "gt", "ge"):
    setattr(Handle, f"__{_function}__", _between_handles(_function))


def _program_of(handle: Handle) -> Program:
    return object.__getattribute__(handle, "_program")


def _text(value: Any) -> str:
    return value if type(value) is str else "?"


class _Module:
    """What stands for the module that tests say they import the program from."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        try:
            return self._names[name]
        except KeyError:
            raise AttributeError(f"the program defines no {name!r}") from None
