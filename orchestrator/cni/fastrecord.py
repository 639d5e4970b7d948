# SPDX-License-Identifier: Apache-2.0
"""Frozen records with slots, like `dataclass(frozen=True, slots=True)`, but fast to define.

`dataclasses` generates and compiles half a dozen functions for each class, and imports `inspect`:
for the two dozen classes on the path of a container, that is half of the run time of an `orc-cni`
command that finds no server. Here all classes share their functions. Type checkers see a dataclass
(PEP 681).
"""

from __future__ import annotations

from operator import attrgetter

TYPE_CHECKING = False  # as in `typing`, which is slow to import
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_: object) -> object:
        """A stand-in for that of `typing`."""
        return lambda function: function


_put = object.__setattr__


def _init(self: Any, *given: Any, **named: Any) -> None:
    names = self.__slots__
    for name, value in zip(names, given, strict=False):
        _put(self, name, value)
    for name in names[len(given) :]:
        if name in named:
            _put(self, name, named.pop(name))
        elif name in self._defaults:
            _put(self, name, self._defaults[name])
        else:
            raise TypeError(f"{type(self).__name__} needs {name}")
    if named or len(given) > len(names):
        surplus = ", ".join(named) or f"more than {len(names)} values"
        raise TypeError(f"{type(self).__name__} does not take {surplus}")


def _equal(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self._values(self) == other._values(other)


def _less(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return self._values(self) < other._values(other)


def _hash(self: Any) -> int:
    return hash(self._values(self))


def _text(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
    return f"{type(self).__name__}({shown})"


def _refuse(self: Any, name: str, value: object = None) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: cannot change {name}")


SHARED = {
    "__init__": _init,
    "__eq__": _equal,
    "__lt__": _less,
    "__hash__": _hash,
    "__repr__": _text,
    "__setattr__": _refuse,
    "__delattr__": _refuse,
}


@dataclass_transform(frozen_default=True, eq_default=True, order_default=True)
def record(cls: type[T]) -> type[T]:
    """Make a class of annotated fields, in their order and with their defaults, a record."""
    names = tuple(cls.__annotations__)
    body = {key: value for key, value in vars(cls).items() if key not in names}
    for unslotted in ("__dict__", "__weakref__"):
        body.pop(unslotted, None)
    body.update(
        SHARED,
        __slots__=names,
        __match_args__=names,
        _defaults={name: value for name, value in vars(cls).items() if name in names},
        _values=attrgetter(*names),
    )
    return type(cls.__name__, cls.__bases__, body)


def replace(value: T, **changes: object) -> T:
    """A copy of a record with some fields changed."""
    names = type(value).__slots__  # type: ignore[attr-defined]
    return type(value)(**{name: getattr(value, name) for name in names} | changes)
