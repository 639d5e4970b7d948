# SPDX-License-Identifier: Apache-2.0
"""Kinds of collections (lists and maps), and how those of several files are merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.compose.schema.value_kinds import (
    Kind,
    Reading,
    Text,
    check_text,
    empty,
    scalar_of,
    tagged,
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
    hint,
    text_of,
    what,
    within,
)


def merged(kind: Kind, old: Node, new: Node) -> Node | None:
    """As `merge`, with the tags `!reset` and `!override` obeyed."""
    if new.tag == RESET:
        return None
    return new if new.tag == OVERRIDE else kind.merge(old, new)


def settled(node: Node) -> Node | None:
    """A tree in which no tag is left to be obeyed: there was nothing before it."""
    if node.tag == RESET:
        return None
    if isinstance(node, Map):
        entries = {key: settled(value) for key, value in node.entries.items()}
        return Map({k: v for k, v in entries.items() if v is not None}, node.place)
    if isinstance(node, List):
        items = map(settled, node.items)
        return List(tuple(each for each in items if each is not None), node.place)
    return replace(node, tag="") if node.tag else node


@dataclass(frozen=True, slots=True)
class Many:
    """A list of values of one kind, or a single one; a later file's are added to it."""

    kind: Kind = field(default_factory=Text)
    single: bool = False
    """A value that is not in a list is a list of it."""
    unique: bool = True
    """An item that is there already is not added."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else None
        if isinstance(node, Scalar) and self.single:
            one = self.kind.read(replace(node, tag=""), at, reading)
            return List((one,) if one else (), node.place, node.tag)
        if not isinstance(node, List):
            raise ComposeError(node.place, at, f"this is {what(node)}; it takes a list")
        items = []
        for index, item in enumerate(node.items):
            one = self.kind.read(item, within(at, index), reading)
            if one is None or (isinstance(item, Scalar) and item.is_null):
                raise empty(item.place, within(at, index))
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
class Keyed:
    """A list of maps or their short form, of which one key tells the entries apart: an entry takes
    the place of an earlier one with the same."""

    entry: Keys
    short: Callable[[str, Place, str, Reading], list[Map]]
    """From a short form to long ones. Raises ComposeError."""
    key: Callable[[Map], object]
    single: bool = False

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else None
        if isinstance(node, Scalar) and self.single:
            node = List((replace(node, tag=""),), node.place, node.tag)
        if not isinstance(node, List):
            raise ComposeError(node.place, at, f"this is {what(node)}; it takes a list")
        items: list[Node] = []
        for index, item in enumerate(node.items):
            where = within(at, index)
            if isinstance(item, Scalar) and reading.open(item.text):
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
class Pairs:
    """A map of texts, or a list of `NAME=value`; a NAME alone, or with null, has no value yet."""

    separators: str = "="
    check: Callable[[str], object] = str
    """Of a name."""
    many: bool = False
    """A value may be a list of texts, which is written with commas; one name's values add up."""
    valued: bool = False
    """Each name has a text for a value."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else None
        entries: dict[str, Node] = {}
        if isinstance(node, List):
            for index, item in enumerate(node.items):
                scalar = scalar_of(item, within(at, index), "NAME=value")
                if scalar.is_null:
                    raise empty(scalar.place, within(at, index))
                name, value = self._cut(scalar)
                before = entries.get(name) if self.many else None
                entries[name] = value if before is None else _with_addresses(before, value)
        elif isinstance(node, Map):
            for name, value in node.entries.items():
                entries[name] = self._value(value, within(at, name))
        else:
            raise ComposeError(node.place, at, f"this is {what(node)}; it takes a map or a list")
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
            texts = [scalar_of(item, at, "a text").text for item in node.items]
            return Scalar(",".join(texts), node.place, False)
        scalar = scalar_of(node, at, "a text")
        if self.valued and not scalar.tag:
            if scalar.is_null:
                raise ComposeError(scalar.place, at, "this is nothing; it takes a text")
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
    """Both texts of addresses as one, each address once."""
    if not isinstance(old, Scalar) or not isinstance(new, Scalar):
        return new
    addresses = dict.fromkeys((*old.text.split(","), *new.text.split(",")))
    return replace(new, text=",".join(addresses))


@dataclass(frozen=True, slots=True)
class Keys:
    """A map whose keys are known, each with its kind. Keys that begin with `x-` are anybody's."""

    table: Mapping[str, Kind]
    name: str = ""
    """What it is, for the words about an unknown key."""
    short: Callable[[Scalar, str, Reading], Map] | None = None
    """From a text that stands for the map. Raises ComposeError."""
    required: tuple[str, ...] = ()
    finish: Callable[[Map, str, Reading], Map] = lambda entry, _at, _reading: entry
    """What is left to be done with the map once its values are read."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            if self.required and not node.tag:
                raise ComposeError(node.place, at, "this is nothing; it takes a map")
            return node if node.tag else Map({}, node.place)
        if isinstance(node, Scalar) and reading.open(node.text):
            return replace(node, plain=False)
        if isinstance(node, Scalar) and self.short is not None:
            return tagged(node, self.short(node, at, reading))
        if not isinstance(node, Map):
            raise ComposeError(node.place, at, f"this is {what(node)}; it takes a map")
        entries: dict[str, Node] = {}
        for key, value in node.entries.items():
            where, kind = within(at, key), self.table.get(key)
            if kind is None and key.startswith("x-"):
                entries[key] = value
                continue
            if kind is None:
                of = f" of {self.name}" if self.name else ""
                words = f"there is no such key{of}; {hint(key, self.table)}"
                raise ComposeError(value.place, where, words)
            absent = isinstance(value, Scalar) and value.is_null and not value.tag
            if absent and isinstance(kind, Keys) and not kind.required:
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
class Entries:
    """A map of anybody's names to values of one kind."""

    kind: Kind
    check: Callable[[str], object] = str
    """Of a name; raises ValueError."""
    needed: bool = False
    """No name may have nothing behind it."""
    names: bool = False
    """A list of names stands for a map in which each has `listed` behind it."""
    listed: Callable[[Place], Node] = lambda place: Scalar("", place)

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.is_null:
            return node if node.tag else Map({}, node.place)
        if self.names and isinstance(node, List):
            scalars = [
                scalar_of(item, within(at, i), "a name") for i, item in enumerate(node.items)
            ]
            named = {each.text: self.listed(each.place) for each in scalars}
            node = Map(named, node.place, node.tag)
        if not isinstance(node, Map):
            kinds = "a map or a list" if self.names else "a map"
            raise ComposeError(node.place, at, f"this is {what(node)}; it takes {kinds}")
        entries: dict[str, Node] = {}
        for name, value in node.entries.items():
            where = within(at, name)
            if self.needed and isinstance(value, Scalar) and value.is_null and not value.tag:
                raise ComposeError(value.place, where, "this is nothing; give it a value")
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
        together = merged(kind, before, value) if before is not None else None
        if together is None:
            entries.pop(key, None)
        else:
            entries[key] = together
    return replace(new, entries=entries)
