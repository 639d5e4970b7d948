# SPDX-License-Identifier: Apache-2.0
"""Dataclasses to protobuf messages and back: the only place where the two meet.

Each dataclass of `specs` and `objects` has a message of the same name with the same fields in
`orchestrator.pb.types_pb2`. A converter for a class is derived once, on first use, from the type
hints, so that a new field is one line in the dataclass and one in the proto. **Both must have their
fields in the same order** (whatever the fields' numbers): values are read and passed by position.
`tests/unit/model/test_convert.py` compares them.

Three rules keep a round trip exact. A nested message is always sent, also when empty, and one that
is absent reads as the dataclass' own default: a client that omits `restart` gets the default
policy, not one of zeros. Bytes are deterministic (map keys sorted), so that equal objects are equal
in the store. And fields that this version does not know are kept at every level
(`Extensible.unknown_fields`). Looking for them is cheap: a message has some if and only if it
shrinks when they are discarded.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from enum import IntEnum
from functools import cache, lru_cache, partial
from importlib import import_module
from operator import attrgetter
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from google.protobuf.message import DecodeError, Message

from orchestrator.model.extensible import known_fields
from orchestrator.pb import types_pb2

T = TypeVar("T")
E = TypeVar("E", bound=IntEnum)


class ConvertError(ValueError):
    """A message or dataclass that has no counterpart: an unknown enum number, a value out of
    range, broken bytes."""


class UnknownEnumNumber(ConvertError):
    """An enum number that this version does not know; the rest of the message is readable."""


def to_proto(obj: Any) -> Any:
    """The message for a dataclass of the model, its `revision` included.

    Raises ConvertError when a value does not fit its field, TypeError for a foreign class.
    """
    converter = _converter(type(obj))
    message = converter.message()
    try:
        converter.write(obj, message)
    except (TypeError, ValueError) as error:
        raise ConvertError(f"cannot write a {type(obj).__name__}: {error}") from error
    return message


def from_proto(message: Message, *, strict: bool = False) -> Any:
    """The dataclass for a message of `types_pb2`.

    An enum number that this version does not know becomes a member named `UNRECOGNIZED_<number>`,
    which equals no other member and converts back to the same number. With `strict`, for
    input that is about to be acted upon, it raises UnknownEnumNumber.
    """
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    complete = known.ByteSize() == message.ByteSize()
    converter = _converter(_class_of(message.DESCRIPTOR.name))
    if complete:
        try:
            return converter.read(message)
        except UnknownEnumNumber:
            if strict:
                raise
    return converter.read_all(message, strict)


def encode(obj: Any) -> bytes:
    """The bytes that the store keeps. `revision` is left out: the store assigns it."""
    message: Message = to_proto(obj)
    if "revision" in message.DESCRIPTOR.fields_by_name:
        message.ClearField("revision")
    return message.SerializeToString(deterministic=True)


def decode(cls: type[T], data: bytes, revision: int = 0, *, strict: bool = True) -> T:
    """The object that `encode` made `data` from, with the store's `revision` in it.

    Raises ConvertError when `data` is no such object, UnknownEnumNumber only if `strict` (see
    `from_proto`); a `revision` for a class that has none is a TypeError.
    """
    converter = _converter(cls)
    message = converter.message()
    try:
        message.ParseFromString(data)
        message.DiscardUnknownFields()
        complete = message.ByteSize() == len(data)
        if not complete:
            message.ParseFromString(data)
    except DecodeError as error:
        raise ConvertError(f"these bytes are not a {cls.__name__}: {error}") from error
    if revision:
        if not converter.has_revision:
            raise TypeError(f"a {cls.__name__} has no revision")
        message.revision = revision
    read = converter.read if complete and strict else partial(converter.read_all, strict=strict)
    result: T = read(message)
    return result


class _Converter:
    """How one class is written and read, as lists that are walked for each object."""

    def __init__(self, cls: type) -> None:
        self.message: Callable[[], Any] = getattr(types_pb2, cls.__name__)
        self._cls = cls
        self.shared = cls.__name__ == "TaskSpec"
        """Whether many objects have an equal one: it is most of a task, and the same for all tasks
        of a service."""
        self._plain: list[str] = []
        """Set as they are, unless zero."""
        self._repeated: list[str] = []
        self._maps: list[str] = []
        self._nested: list[tuple[int, str, _Converter]] = []
        self._lists: list[tuple[str, _Converter]] = []
        self._reads: list[tuple[int, Callable[[Any], Any]]] = []
        """Position of a field → what makes its value from the message's."""
        self._lenient_reads: dict[int, Callable[[Any], Any]] = {}
        """The same of enums, for `read_all`."""
        self._items: dict[int, _Converter] = {}
        """Position of a list of messages → the converter of each."""
        hints = get_type_hints(cls)
        names = [field.name for field in known_fields(cls)]
        for position, name in enumerate(names):
            self._add(position, name, hints[name])
        self.has_revision = "revision" in names
        self._get_all = attrgetter(*names)

    def _add(self, position: int, name: str, hint: Any) -> None:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is tuple and dataclasses.is_dataclass(arguments[0]):
            item = _converter(arguments[0])
            read = item.read
            self._lists.append((name, item))
            self._items[position] = item
            self._reads.append((position, lambda values: tuple(map(read, values))))
        elif origin is tuple:
            self._repeated.append(name)
            self._reads.append((position, tuple))
        elif origin is dict:
            self._maps.append(name)
            self._reads.append((position, dict))
        elif _has_message(hint):
            nested: type = hint
            self._nested.append((position, name, _converter(nested)))
        else:
            self._plain.append(name)
            if issubclass(hint, IntEnum):
                self._lenient_reads[position] = partial(recognized, hint)
                self._reads.append((position, _enum_reader(self._cls, name, hint)))

    def write(self, obj: Any, message: Any) -> None:
        for name in self._plain:
            if value := getattr(obj, name):
                try:
                    setattr(message, name, value)
                except ValueError:
                    raise ValueError(f"{name.replace('_', ' ')} {value} is out of range") from None
        for name in self._repeated:
            if value := getattr(obj, name):
                getattr(message, name).extend(value)
        for name in self._maps:
            if value := getattr(obj, name):
                getattr(message, name).update(value)
        for _, name, converter in self._nested:
            nested = getattr(message, name)
            nested.SetInParent()
            converter.write(getattr(obj, name), nested)
        for name, converter in self._lists:
            target = getattr(message, name)
            for item in getattr(obj, name):
                converter.write(item, target.add())
        if obj.unknown_fields:
            message.MergeFromString(obj.unknown_fields)

    def read(self, message: Any) -> Any:
        values = list(self._get_all(message))
        for position, read in self._reads:
            values[position] = read(values[position])
        for position, name, converter in self._nested:
            nested = values[position]
            if not message.HasField(name):
                values[position] = converter.default()
            elif converter.shared:
                values[position] = _shared(converter, nested.SerializeToString())
            else:
                values[position] = converter.read(nested)
        return self._cls(*values)

    def read_all(self, message: Any, strict: bool) -> Any:
        """As `read`, including unknown fields and, unless `strict`, unknown enum numbers."""
        values = list(self._get_all(message))
        others: dict[int, Callable[[Any], Any]] = {} if strict else self._lenient_reads
        items = self._items
        for position, read in self._reads:
            if (item := items.get(position)) is not None:
                values[position] = tuple(item.read_all(each, strict) for each in values[position])
            else:
                values[position] = others.get(position, read)(values[position])
        for position, name, converter in self._nested:
            nested = values[position]
            values[position] = (
                converter.read_all(nested, strict)
                if message.HasField(name)
                else converter.default()
            )
        return self._cls(*values, unknown_fields=_unknown_fields(message))

    def default(self) -> Any:
        return self._cls()


def _enum_reader(cls: type, name: str, enum: type[IntEnum]) -> Callable[[int], IntEnum]:
    members = {int(member): member for member in enum}

    def read(number: int) -> IntEnum:
        try:
            return members[number]
        except KeyError:
            raise UnknownEnumNumber(
                f"{cls.__name__}.{name} is {number}, which is no {enum.__name__} that this "
                "version knows; is the other side newer?"
            ) from None

    return read


def known(enum: type[E], number: int) -> E:
    """The member of this number in a request. Raises UnknownEnumNumber."""
    try:
        return enum(number)
    except ValueError:
        raise UnknownEnumNumber(
            f"{number} is no {enum.__name__} that this version knows; is the other side newer?"
        ) from None


@cache
def recognized(enum: type[E], number: int) -> E:
    """The member of this number. For one that this version does not know it is made, as `enum.Flag`
    makes its own: it is not among the enum's members, and equal to none of them. Unlike
    `enum(number)`, it raises nothing at what a newer version has written."""
    try:
        return enum(number)
    except ValueError:
        member = int.__new__(enum, number)
        member._name_, member._value_ = f"UNRECOGNIZED_{number}", number
        return member


@lru_cache(maxsize=4096)
def _shared(converter: _Converter, data: bytes) -> Any:
    """The object in a nested message, one for all that have the same."""
    message = converter.message()
    message.ParseFromString(data)
    return converter.read(message)


def _unknown_fields(message: Any) -> bytes:
    """What is left of a message without the fields that are known."""
    left = type(message)()
    left.CopyFrom(message)
    for field, _ in message.ListFields():
        left.ClearField(field.name)
    rest: bytes = left.SerializeToString(deterministic=True)
    return rest


def _converter(cls: Any) -> _Converter:
    made = _made.get(cls)
    if made is None:
        if not _has_message(cls):
            raise TypeError(f"{cls!r} is not a class of the model that has a message")
        _made[cls] = made = _Converter(cls)
    return made


def _has_message(cls: Any) -> bool:
    return (
        isinstance(cls, type)
        and dataclasses.is_dataclass(cls)
        and cls.__module__.startswith("orchestrator.model.")
        and hasattr(types_pb2, cls.__name__)
    )


@cache
def _class_of(name: str) -> type:
    # Loaded modules first: importing all of the model takes as long as a short command.
    for module in sorted(_MODULES, key=lambda module: module not in sys.modules):
        if _has_message(cls := getattr(import_module(module), name, None)):
            return cast(type, cls)
    raise TypeError(f"the message {name} has no class in the model")


_MODULES = [
    f"orchestrator.model.{name}"
    for name in (
        *("specs", "nodes", "services", "tasks", "objects"),
        *("administration.access", "administration.backups"),
    )
]
_made: dict[Any, _Converter] = {}
"""What `_converter` has derived so far."""
