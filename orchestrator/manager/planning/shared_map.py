# SPDX-License-Identifier: Apache-2.0
"""Immutable mappings of which versions share what has not changed.

A small mapping is a plain dictionary, copied when it is first edited. A large one is cut into
shards by the end of its keys, and an edit copies only the shards that it touches and the index of
shards: about the square root of the size for keys that are random or numbered. Keys that all end
alike share one shard, which costs what a plain dictionary does.

Iteration follows the order of insertion within a shard, so the same edits give the same order in
any process.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from itertools import chain
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
D = TypeVar("D")

LARGE = 2_048
"""Entries from which a mapping is sharded."""

SMALL = LARGE // 4
"""Entries below which it is a plain dictionary again."""

_END = -2
"""Where the part of a key begins that names its shard."""


class ShardedMap(Mapping[str, T]):
    """A large immutable mapping. Made by `MapEdit`."""

    __slots__ = ("_shards", "_size")

    def __init__(self, shards: dict[str, dict[str, T]], size: int) -> None:
        self._shards = shards
        self._size = size

    def __getitem__(self, key: str) -> T:
        shard = self._shards.get(key[_END:])
        if shard is None:
            raise KeyError(key)
        return shard[key]

    @overload
    def get(self, key: str, /) -> T | None: ...
    @overload
    def get(self, key: str, default: T | D, /) -> T | D: ...
    def get(self, key: str, default: Any = None, /) -> Any:
        shard = self._shards.get(key[_END:])
        return default if shard is None else shard.get(key, default)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        shard = self._shards.get(key[_END:])
        return shard is not None and key in shard

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._shards.values())

    def values(self) -> ValuesView[T]:
        return _Values(self)

    def items(self) -> ItemsView[str, T]:
        return _Items(self)

    @property
    def shards(self) -> dict[str, dict[str, T]]:
        """The parts, by the end of their keys."""
        return self._shards


class _Values(ValuesView[T]):
    """Iterates without a look-up per key."""

    def __init__(self, mapping: ShardedMap[T]) -> None:
        super().__init__(mapping)
        self._parts = mapping.shards

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(map(_values, self._parts.values()))


class _Items(ItemsView[str, T]):
    """Iterates without a look-up per key."""

    def __init__(self, mapping: ShardedMap[T]) -> None:
        super().__init__(mapping)
        self._parts = mapping.shards

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return chain.from_iterable(map(_items, self._parts.values()))


def _values(shard: Mapping[str, T]) -> ValuesView[T]:
    return shard.values()


def _items(shard: Mapping[str, T]) -> ItemsView[str, T]:
    return shard.items()


class MapEdit(Generic[T]):
    """An edit of a mapping into another one, which leaves the first as it is."""

    __slots__ = ("_base", "_flat", "_own", "_shards", "_size")

    def __init__(self, base: Mapping[str, T]) -> None:
        """`base` must not be changed by others."""
        self._base = base
        self._flat: dict[str, T] | None = None
        """The copy of a small base."""
        self._shards: dict[str, dict[str, T]] | None = None
        """The copied index of a large base; shards in `_own` are copies, too."""
        self._own: set[str] = set()
        self._size = 0

    def get(self, key: str) -> T | None:
        """What the key has now."""
        if self._flat is not None:
            return self._flat.get(key)
        if self._shards is not None:
            shard = self._shards.get(key[_END:])
            return None if shard is None else shard.get(key)
        return self._base.get(key)

    def put(self, key: str, item: T | None) -> T | None:
        """Store `item`, or remove the key if it is None; what was there before."""
        old = self.get(key)
        if item is old:
            return old
        if self._flat is None and self._shards is None:
            self._begin()
        into = self._flat if self._flat is not None else self._shard(key[_END:])
        if item is None:
            del into[key]
            self._size -= 1
        else:
            into[key] = item
            self._size += old is None
        return old

    def __len__(self) -> int:
        if self._flat is None and self._shards is None:
            return len(self._base)
        return self._size

    def result(self) -> Mapping[str, T]:
        """The mapping as edited. The edit must not be used afterwards."""
        if self._flat is not None:
            return self._flat if self._size < LARGE else _sharded(self._flat)
        if self._shards is not None:
            if self._size < SMALL:
                return dict(chain.from_iterable(map(_items, self._shards.values())))
            return ShardedMap(self._shards, self._size)
        return self._base

    def _begin(self) -> None:
        self._size = len(self._base)
        if isinstance(self._base, ShardedMap):
            self._shards = dict(self._base.shards)
        else:
            self._flat = dict(self._base)

    def _shard(self, end: str) -> dict[str, T]:
        assert self._shards is not None
        if end not in self._own:
            self._own.add(end)
            self._shards[end] = dict(self._shards.get(end, {}))
        return self._shards[end]


def _sharded(items: Mapping[str, T]) -> ShardedMap[T]:
    shards: dict[str, dict[str, T]] = {}
    for key, item in items.items():
        shards.setdefault(key[_END:], {})[key] = item
    return ShardedMap(shards, len(items))
