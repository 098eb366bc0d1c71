"""Values as JSON between two processes that do not trust one another.

What is read is always plain data of exact built-in types, an object of a class that the reader itself defined, or a
handle: a number that stands for something that stays where it is. Reading never runs code of the sender: no class, no
method and no name of the sender's takes part. That is why it is not pickle, and not marshal, whose reader trusts its
input.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import enum
import fractions
import json
import math
import os
import re
import struct
from collections.abc import Callable
from typing import Any

MAX_FRAME = 32 * 2**20
_MAX_DEPTH = 150
_SMALL = 2**63

# Built-in bases that a value of a derived class is sent as, by the contents of the base alone.
_BASES = (bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset)
_COLLECTIONS: tuple[type, ...] = (collections.Counter, collections.deque, collections.OrderedDict)
_TYPES: dict[str, type] = {kind.__name__: kind for kind in (*_BASES, *_COLLECTIONS, object, type, range, type(None))}
_DATES: dict[str, Any] = {"date": datetime.date, "time": datetime.time, "datetime": datetime.datetime}


class Unsendable(Exception):
    """A value that cannot be sent: too deep, or of a kind that the other side cannot have."""


class Malformed(Exception):
    """A message that does not follow the rules."""


class Closed(Exception):
    """The other side is gone."""


class Channel:
    """Two pipes that carry JSON objects, each behind its length (4 bytes, big-endian)."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes

    def send(self, message: Any) -> None:
        """Raises Closed, and Unsendable for a message over `MAX_FRAME`."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_FRAME:
            raise Unsendable(f"{len(data)} bytes in one message (at most {MAX_FRAME})")
        view = memoryview(struct.pack(">I", len(data)) + data)
        try:
            while view:
                view = view[os.write(self._writes, view) :]
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self) -> dict:
        """Raises Closed at the end of input and Malformed for what is no JSON object."""
        (size,) = struct.unpack(">I", self._read(4))
        if size > MAX_FRAME:
            raise Malformed(f"a message of {size} bytes")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise Malformed(f"not JSON: {error}") from None
        if type(message) is not dict:
            raise Malformed("not an object")
        return message

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.read(self._reads, min(size, 1 << 20))
            except OSError as error:
                raise Closed(str(error)) from None
            if not part:
                raise Closed("end of input")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Codec:
    """Turns values into JSON and back.

    Args:
        hold: makes the JSON that stands for a value which stays on this side, or raises Unsendable.
        resolve: the value for such JSON from the other side; raises Malformed.
        classes: name -> class, of those that both sides defined from the same trusted text; their objects travel by
            value, as the attributes they hold.
    """

    def __init__(
        self, hold: Callable[[Any], Any], resolve: Callable[[list], Any], classes: dict[str, type] | None = None
    ) -> None:
        self.hold, self.resolve = hold, resolve
        self.classes = {} if classes is None else classes

    def encode(self, value: Any) -> dict:
        """Returns {"v": value, "objects": those it refers to}. Raises Unsendable."""
        names = {kind: name for name, kind in self.classes.items()}
        encoder = _Encoder(self.hold, names)
        try:
            return {"v": encoder.encode(value, 0), "objects": encoder.drain()}
        except RecursionError:
            raise Unsendable("nested too deeply") from None

    def decode(self, message: Any) -> Any:
        """Returns the value. Raises Malformed."""
        try:
            objects: list[Any] = [object.__new__(self.classes[name]) for name, _ in message["objects"]]
            decoder = _Decoder(self.resolve, objects, self.classes)
            for target, (_, state) in zip(objects, message["objects"], strict=True):
                for name, attribute in state:
                    _set_attribute(target, name, decoder.decode(attribute))
            return decoder.decode(message["v"])
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise Malformed(f"{type(error).__name__}: {error}") from None
        except decimal.DecimalException as error:
            raise Malformed(f"{type(error).__name__}") from None


def find_classes(names: dict[str, Any]) -> dict[str, type]:
    """The plain classes and enumerations that the text whose names these are defines itself."""
    return {
        name: kind
        for name, kind in names.items()
        if isinstance(kind, type)
        and kind.__module__ == names["__name__"]
        and (kind.__new__ is object.__new__ or issubclass(kind, enum.Enum))
    }


def _set_attribute(target: Any, name: Any, value: Any) -> None:
    """Sets data, never what would stand before a method of the reader's own class."""
    if name.startswith("__") or callable(getattr(type(target), name, None)):
        raise Malformed(f"attribute {name!r}")
    object.__setattr__(target, name, value)


class _Encoder:
    def __init__(self, hold: Callable[[Any], Any], names: dict[type, str]) -> None:
        self._hold, self._names = hold, names
        self._indices: dict[int, int] = {}
        self._objects: list[Any] = []

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_SMALL < value < _SMALL else ["i", hex(value)]
        if kind is float:
            return value if math.isfinite(value) else ["F", repr(value)]
        if depth > _MAX_DEPTH:
            raise Unsendable(f"nested deeper than {_MAX_DEPTH}")
        if kind is list:
            return ["L", value[:]] if _is_flat(value) else ["l", *self._each(value, depth)]
        if kind is tuple:
            return ["t", *self._each(value, depth)]
        if kind is dict:
            return ["d", *self._pairs(value, depth)]
        special = _ENCODERS.get(kind)
        if special is not None:
            return special(self, value, depth)
        return self._encode_object(value, kind, depth)

    def _encode_object(self, value: Any, kind: type, depth: int) -> Any:
        if kind in self._names:
            if isinstance(value, enum.Enum):
                return ["M", self._names[kind], value.name]
            index = self._indices.get(id(value))
            if index is None:
                index = self._indices[id(value)] = len(self._objects)
                self._objects.append(value)
            return ["o", index]
        if kind is type and value in _TYPES.values():
            return ["T", value.__name__]
        for base in _BASES:
            if issubclass(kind, base):
                return self.encode(_copy_base(base, value), depth)
        return self._hold(value)

    def drain(self) -> list:
        """Returns [class, [[attribute, value], ...]] for every object met, those they refer to included."""
        rows, done = [], 0
        while done < len(self._objects):
            value = self._objects[done]
            done += 1
            state = [[name, self.encode(held, 1)] for name, held in _attributes(value)]
            rows.append([self._names[type(value)], state])
        return rows

    def _each(self, values: Any, depth: int) -> list:
        return [self.encode(value, depth + 1) for value in values]

    def _pairs(self, values: dict, depth: int) -> list:
        return [self.encode(value, depth + 1) for pair in values.items() for value in pair]


def _is_flat(values: list) -> bool:
    """Whether a list is the same in JSON: decided without a call for each item."""
    if len(values) < 8:
        return False
    kinds = set(map(type, values))
    if kinds == {int}:
        return max(values) < _SMALL and min(values) > -_SMALL
    if kinds == {float}:
        return all(map(math.isfinite, values))
    return kinds <= {str, bool, type(None)}


def _copy_base(base: Any, value: Any) -> Any:
    """The contents of a value as its built-in base sees them, whatever the derived class says."""
    if base is dict:
        return dict(zip(dict.keys(value), dict.values(value), strict=True))
    if base in (tuple, list, set, frozenset):
        return base(base.__iter__(value))
    if base is int:
        return int.__index__(value)
    if base is float:
        return float.__float__(value)
    if base is complex:
        return complex.__complex__(value)
    if base is str:
        return str.__str__(value) if type(str.__str__(value)) is str else "".join(str.__iter__(value))
    return bytes(memoryview(value)) if base is bytes else bytearray(memoryview(value))


def _attributes(value: Any) -> list[tuple[str, Any]]:
    found = list(vars(value).items()) if hasattr(value, "__dict__") else []
    for kind in type(value).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                found.append((name, getattr(value, name)))
    return found


def _encode_date(encoder: _Encoder, value: Any, depth: int) -> Any:
    return ["D", type(value).__name__, value.isoformat()]


_ENCODERS: dict[type, Callable[[_Encoder, Any, int], Any]] = {
    set: lambda encoder, value, depth: ["s", *encoder._each(value, depth)],
    frozenset: lambda encoder, value, depth: ["f", *encoder._each(value, depth)],
    complex: lambda encoder, value, depth: ["c", encoder.encode(value.real, 0), encoder.encode(value.imag, 0)],
    bytes: lambda encoder, value, depth: ["b", value.hex()],
    bytearray: lambda encoder, value, depth: ["B", value.hex()],
    range: lambda encoder, value, depth: ["r", *encoder._each((value.start, value.stop, value.step), depth)],
    decimal.Decimal: lambda encoder, value, depth: ["N", str(value)],
    fractions.Fraction: lambda encoder, value, depth: [
        "Q",
        *encoder._each((value.numerator, value.denominator), depth),
    ],
    array.array: lambda encoder, value, depth: ["A", value.typecode, encoder.encode(value.tolist(), depth + 1)],
    collections.Counter: lambda encoder, value, depth: ["C", *encoder._pairs(value, depth)],
    collections.OrderedDict: lambda encoder, value, depth: ["O", *encoder._pairs(value, depth)],
    collections.defaultdict: lambda encoder, value, depth: ["E", *encoder._pairs(value, depth)],
    collections.deque: lambda encoder, value, depth: [
        "q",
        encoder.encode(value.maxlen, 0),
        *encoder._each(value, depth),
    ],
    datetime.date: _encode_date,
    datetime.time: _encode_date,
    datetime.datetime: _encode_date,
    datetime.timedelta: lambda encoder, value, depth: ["S", value.days, value.seconds, value.microseconds],
    type({}.keys()): lambda encoder, value, depth: ["K", *encoder._each(value, depth)],
    re.Pattern: lambda encoder, value, depth: ["P", value.pattern, value.flags],
}


class _Decoder:
    def __init__(self, resolve: Callable[[list], Any], objects: list[Any], classes: dict[str, type]) -> None:
        self._resolve, self._objects, self._classes = resolve, objects, classes

    def decode(self, message: Any) -> Any:
        if type(message) is not list:
            if type(message) is dict:
                raise Malformed("an object where a value belongs")
            return message
        read = _DECODERS.get(message[0])
        return self._resolve(message) if read is None else read(self, message)

    def each(self, messages: list) -> list:
        return [self.decode(message) for message in messages]

    def pairs(self, messages: list) -> Any:
        values = self.each(messages[1:])
        return zip(values[::2], values[1::2], strict=True)


_DECODERS: dict[str, Callable[[_Decoder, list], Any]] = {
    "i": lambda decoder, message: int(message[1], 16),
    "F": lambda decoder, message: float(message[1]),
    "L": lambda decoder, message: decoder.each(message[1]) if _holds_lists(message[1]) else message[1],
    "l": lambda decoder, message: decoder.each(message[1:]),
    "t": lambda decoder, message: tuple(decoder.each(message[1:])),
    "d": lambda decoder, message: dict(decoder.pairs(message)),
    "s": lambda decoder, message: set(decoder.each(message[1:])),
    "f": lambda decoder, message: frozenset(decoder.each(message[1:])),
    "c": lambda decoder, message: complex(*decoder.each(message[1:3])),
    "b": lambda decoder, message: bytes.fromhex(message[1]),
    "B": lambda decoder, message: bytearray.fromhex(message[1]),
    "r": lambda decoder, message: range(*decoder.each(message[1:4])),
    "N": lambda decoder, message: decimal.Decimal(message[1]),
    "Q": lambda decoder, message: fractions.Fraction(*decoder.each(message[1:3])),
    "A": lambda decoder, message: array.array(message[1], decoder.decode(message[2])),
    "C": lambda decoder, message: collections.Counter(dict(decoder.pairs(message))),
    "O": lambda decoder, message: collections.OrderedDict(decoder.pairs(message)),
    "E": lambda decoder, message: collections.defaultdict(None, decoder.pairs(message)),
    "q": lambda decoder, message: collections.deque(decoder.each(message[2:]), decoder.decode(message[1])),
    "D": lambda decoder, message: _DATES[message[1]].fromisoformat(message[2]),
    "S": lambda decoder, message: datetime.timedelta(*decoder.each(message[1:4])),
    "K": lambda decoder, message: dict.fromkeys(decoder.each(message[1:])).keys(),
    "P": lambda decoder, message: re.compile(message[1], message[2]),
    "T": lambda decoder, message: _TYPES[message[1]],
    "o": lambda decoder, message: decoder._objects[message[1]],
    "M": lambda decoder, message: decoder._classes[message[1]].__members__[message[2]],  # type: ignore[attr-defined]
}


def _holds_lists(values: Any) -> bool:
    if type(values) is not list:
        raise Malformed("a list was announced")
    return not set(map(type, values)) <= {int, float, str, bool, type(None)}


def update(old: Any, new: Any, seen: set[int] | None = None) -> Any:
    """Gives a mutable `old` the contents of `new`, in place where the two are of one kind; returns the result."""
    kind = type(old)
    seen = set() if seen is None else seen
    if kind is not type(new) or old is new or id(old) in seen:
        return old if id(old) in seen else new
    if kind is list:
        seen.add(id(old))
        old[:] = [update(a, b, seen) for a, b in zip(old, new, strict=False)] + new[len(old) :]
    elif kind in (dict, collections.OrderedDict, collections.defaultdict, collections.Counter):
        seen.add(id(old))
        merged = {key: update(old[key], value, seen) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(merged)
    elif kind is set:
        old.intersection_update(new)
        old.update(new)
    elif kind in (bytearray, array.array):
        old[:] = new
    elif kind is collections.deque:
        old.clear()
        old.extend(new)
    elif hasattr(old, "__dict__"):  # of a class that both sides have: nothing else that is read has one
        seen.add(id(old))
        before, after = vars(old), dict(vars(new))
        merged = {name: update(before[name], value, seen) if name in before else value for name, value in after.items()}
        before.clear()
        before.update(merged)
    else:
        return new
    return old
