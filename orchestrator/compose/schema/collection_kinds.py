# SPDX-License-Identifier: Apache-2.0
"""Kinds of collections (lists and maps), and merging of values from several files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.compose.schema.value_kinds import (
    Kind,
    ReadContext,
    Text,
    check_text,
    empty_item,
    scalar_of,
    with_tag_of,
)
from orchestrator.compose.tree import (
    OVERRIDE,
    RESET,
    ComposeError,
    List,
    Map,
    Node,
    Place,
    Scalar,
    describe,
    hint,
    key_path,
    text_of,
)


def merge_tagged(kind: Kind, old: Node, new: Node) -> Node | None:
    """As `merge`, applying the tags `!reset` and `!override`; None if the value is removed."""
    if new.tag == RESET:
        return None
    return new if new.tag == OVERRIDE else kind.merge(old, new)


def without_tags(node: Node) -> Node | None:
    """The tree with the remaining tags applied, for which there is no earlier value."""
    if node.tag == RESET:
        return None
    if isinstance(node, Map):
        entries = {key: without_tags(value) for key, value in node.entries.items()}
        return Map({k: v for k, v in entries.items() if v is not None}, node.place)
    if isinstance(node, List):
        items = map(without_tags, node.items)
        return List(tuple(each for each in items if each is not None), node.place)
    return replace(node, tag="") if node.tag else node


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values of one kind; a later file's items are appended."""

    kind: Kind = field(default_factory=Text)
    single: bool = False
    """A value outside of a list is accepted as a list of one."""
    unique: bool = True
    """Duplicates are dropped."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else None
        if isinstance(node, Scalar) and self.single:
            one = self.kind.read(replace(node, tag=""), at, reading)
            return List((one,) if one else (), node.place, node.tag)
        if not isinstance(node, List):
            raise ComposeError(node.place, at, f"expected a list, got {describe(node)}")
        items = []
        for index, item in enumerate(node.items):
            one = self.kind.read(item, key_path(at, index), reading)
            if one is None or (isinstance(item, Scalar) and item.is_null):
                raise empty_item(item.place, key_path(at, index))
            items.append(one)
        return List(tuple(items), node.place, node.tag)

    def merge(self, old: Node, new: Node) -> Node:
        if not isinstance(old, List) or not isinstance(new, List):
            return new
        both = (*old.items, *new.items)
        items = {_plain_key(item): item for item in both} if self.unique else {}
        return replace(new, items=tuple(items.values()) or both)


def _plain_key(node: Node) -> object:
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, List):
        return tuple(map(_plain_key, node.items))
    return tuple((key, _plain_key(value)) for key, value in sorted(node.entries.items()))


@dataclass(frozen=True, slots=True)
class KeyedList:
    """A list of maps or their short forms, unique by a key: an entry replaces an earlier one with
    the same key."""

    entry: Object
    short: Callable[[str, Place, str, ReadContext], list[Map]]
    """Expands a short form. Raises ComposeError."""
    key: Callable[[Map], object]
    single: bool = False

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else None
        if isinstance(node, Scalar) and self.single:
            node = List((replace(node, tag=""),), node.place, node.tag)
        if not isinstance(node, List):
            raise ComposeError(node.place, at, f"expected a list, got {describe(node)}")
        items: list[Node] = []
        for index, item in enumerate(node.items):
            where = key_path(at, index)
            if isinstance(item, Scalar) and reading.is_open(item.text):
                items.append(replace(item, plain=False))
            elif isinstance(item, Scalar):
                items += self.short(item.text, item.place, where, reading)
            elif (one := self.entry.read(item, where, reading)) is not None:
                items.append(one)
        return List(self._unique(items), node.place, node.tag)

    def merge(self, old: Node, new: Node) -> Node:
        if not isinstance(old, List) or not isinstance(new, List):
            return new
        return replace(new, items=self._unique((*old.items, *new.items)))

    def _unique(self, items: Iterable[Node]) -> tuple[Node, ...]:
        found = {self.key(i) if isinstance(i, Map) else _plain_key(i): i for i in items}
        return tuple(found.values())


@dataclass(frozen=True, slots=True)
class StringMap:
    """A map of strings, or a list of `NAME=value`; NAME alone, or with null, has no value."""

    separators: str = "="
    check: Callable[[str], object] = str
    """Checks a name; raises ValueError."""
    many: bool = False
    """A value may be a list, kept as comma-separated text; values of the same name accumulate."""
    valued: bool = False
    """Each name requires a value."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else None
        entries: dict[str, Node] = {}
        if isinstance(node, List):
            for index, item in enumerate(node.items):
                scalar = scalar_of(item, key_path(at, index), "NAME=value")
                if scalar.is_null:
                    raise empty_item(scalar.place, key_path(at, index))
                name, value = self._cut(scalar)
                before = entries.get(name) if self.many else None
                entries[name] = value if before is None else _with_addresses(before, value)
        elif isinstance(node, Map):
            for name, value in node.entries.items():
                entries[name] = self._value(value, key_path(at, name))
        else:
            raise ComposeError(node.place, at, f"expected a map or a list, got {describe(node)}")
        for name, value in entries.items():
            try:
                if not name.strip():
                    raise ValueError("a name is empty; write NAME=value")
                self.check(name)
            except ValueError as error:
                raise ComposeError(value.place, at, str(error)) from None
        return Map(entries, node.place, node.tag)

    def _cut(self, scalar: Scalar) -> tuple[str, Node]:
        at = min((i for each in self.separators if (i := scalar.text.find(each)) >= 0), default=-1)
        if at < 0:
            return scalar.text, Scalar("", scalar.place)
        return scalar.text[:at], Scalar(scalar.text[at + 1 :], scalar.place, False)

    def _value(self, node: Node, at: str) -> Node:
        if self.many and isinstance(node, List):
            texts = [scalar_of(item, at, "a string").text for item in node.items]
            return Scalar(",".join(texts), node.place, False)
        scalar = scalar_of(node, at, "a string")
        if self.valued and not scalar.tag:
            if scalar.is_null:
                raise ComposeError(scalar.place, at, "expected a string, got null")
            check_text(scalar, at)
        if (scalar.is_null and not scalar.given) or scalar.tag:
            return scalar
        return replace(scalar, text=text_of(scalar), plain=False)

    def merge(self, old: Node, new: Node) -> Node:
        if not isinstance(old, Map) or not isinstance(new, Map):
            return new
        entries = {**old.entries, **new.entries}
        if self.many:
            for name in old.entries.keys() & new.entries.keys():
                if not new.entries[name].tag:
                    entries[name] = _with_addresses(old.entries[name], new.entries[name])
        gone = {name for name, value in entries.items() if value.tag == RESET}
        return replace(new, entries={k: v for k, v in entries.items() if k not in gone})


def _with_addresses(old: Node, new: Node) -> Node:
    """Two comma-separated lists of addresses as one, without duplicates."""
    if not isinstance(old, Scalar) or not isinstance(new, Scalar):
        return new
    addresses = dict.fromkeys((*old.text.split(","), *new.text.split(",")))
    return replace(new, text=",".join(addresses))


@dataclass(frozen=True, slots=True)
class Object:
    """A map with known keys, each with its kind. Keys that begin with `x-` are extensions and
    accept anything."""

    table: Mapping[str, Kind]
    name: str = ""
    """Name of the object in errors about unknown keys."""
    short: Callable[[Scalar, str, ReadContext], Map] | None = None
    """Expands the short form of the map. Raises ComposeError."""
    required: tuple[str, ...] = ()
    finish: Callable[[Map, str, ReadContext], Map] = lambda entry, _at, _reading: entry
    """Post-processes the map after its values are read."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            if self.required and not node.tag:
                raise ComposeError(node.place, at, "expected a map, got null")
            return node if node.tag else Map({}, node.place)
        if isinstance(node, Scalar) and reading.is_open(node.text):
            return replace(node, plain=False)
        if isinstance(node, Scalar) and self.short is not None:
            return with_tag_of(node, self.short(node, at, reading))
        if not isinstance(node, Map):
            raise ComposeError(node.place, at, f"expected a map, got {describe(node)}")
        entries: dict[str, Node] = {}
        for key, value in node.entries.items():
            where, kind = key_path(at, key), self.table.get(key)
            if kind is None and key.startswith("x-"):
                entries[key] = value
                continue
            if kind is None:
                of = f" of {self.name}" if self.name else ""
                message = f"unknown key{of}; {hint(key, self.table)}"
                raise ComposeError(value.place, where, message)
            absent = isinstance(value, Scalar) and value.is_null and not value.tag
            if absent and isinstance(kind, Object) and not kind.required:
                continue
            if value.tag == RESET:
                entries[key] = value
            elif (one := kind.read(value, where, reading)) is not None:
                entries[key] = one
        for key in self.required:
            if key not in entries:
                raise ComposeError(node.place, at, f"{key} is missing")
        return self.finish(Map(entries, node.place, node.tag), at, reading)

    def merge(self, old: Node, new: Node) -> Node:
        if not isinstance(old, Map) or not isinstance(new, Map):
            return new
        return _merged_entries(old, new, self.table.get)


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map of user-defined names to values of one kind."""

    kind: Kind
    check: Callable[[str], object] = str
    """Checks a name; raises ValueError."""
    needed: bool = False
    """Each name requires a value."""
    names: bool = False
    """A list of names is accepted; each gets the value `listed`."""
    listed: Callable[[Place], Node] = lambda place: Scalar("", place)

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else Map({}, node.place)
        if self.names and isinstance(node, List):
            scalars = [
                scalar_of(item, key_path(at, i), "a name") for i, item in enumerate(node.items)
            ]
            named = {each.text: self.listed(each.place) for each in scalars}
            node = Map(named, node.place, node.tag)
        if not isinstance(node, Map):
            kinds = "a map or a list" if self.names else "a map"
            raise ComposeError(node.place, at, f"expected {kinds}, got {describe(node)}")
        entries: dict[str, Node] = {}
        for name, value in node.entries.items():
            where = key_path(at, name)
            if self.needed and isinstance(value, Scalar) and value.is_null and not value.tag:
                raise ComposeError(value.place, where, "a value is required")
            try:
                self.check(name)
            except ValueError as error:
                raise ComposeError(value.place, where, str(error)) from None
            one = value if value.tag == RESET else self.kind.read(value, where, reading)
            if one is not None:
                entries[name] = one
        return Map(entries, node.place, node.tag)

    def merge(self, old: Node, new: Node) -> Node:
        if not isinstance(old, Map) or not isinstance(new, Map):
            return new
        return _merged_entries(old, new, lambda _: self.kind)


def _merged_entries(old: Map, new: Map, kind_of: Callable[[str], Kind | None]) -> Map:
    entries = dict(old.entries)
    for key, value in new.entries.items():
        kind, before = kind_of(key), entries.get(key)
        if before is None and value.tag != RESET:
            entries[key] = value
            continue
        if kind is None:
            entries[key] = value
            continue
        together = merge_tagged(kind, before, value) if before is not None else None
        if together is None:
            entries.pop(key, None)
        else:
            entries[key] = together
    return replace(new, entries=entries)
