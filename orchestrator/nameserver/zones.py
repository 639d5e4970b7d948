# SPDX-License-Identifier: Apache-2.0
"""The names of each network and what they resolve to. Pure.

The agent sends entries, each a service or a container in one network (`Entry`); every entry has
names (`_names`). A name of several entries resolves to all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, NamedTuple

SHORT_ID = 12
"""Characters of a task's id that are also a name."""


class Key(NamedTuple):
    """The key of an entry: a service, or a standalone container, in one network."""

    id: str
    network: str


@dataclass(frozen=True, slots=True)
class Port:
    """A published port of an entry."""

    protocol: str
    published: int
    target: int


@dataclass(frozen=True, slots=True)
class Task:
    """One task of an entry; the addresses may be empty."""

    id: str
    slot: int
    name: str
    aliases: tuple[str, ...]
    address: str
    address6: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A service, or a standalone container, in one network, with its ready tasks."""

    id: str
    network: str
    name: str
    vip: str
    vip6: str
    container: bool
    aliases: tuple[str, ...]
    """The service's own aliases, which exist also without tasks."""
    ports: tuple[Port, ...]
    tasks: tuple[Task, ...]

    @property
    def key(self) -> Key:
        """Its key."""
        return Key(self.id, self.network)


@dataclass(slots=True)
class Name:
    """What a name resolves to."""

    addresses: tuple[bytes, ...] = ()
    """IPv4, packed."""
    addresses6: tuple[bytes, ...] = ()
    services: tuple[tuple[int, str], ...] = ()
    """SRV records: port and target."""
    pointers: tuple[str, ...] = ()
    """PTR records."""

    def __or__(self, other: Name) -> Name:
        return Name(
            self.addresses + other.addresses,
            self.addresses6 + other.addresses6,
            self.services + other.services,
            self.pointers + other.pointers,
        )


@dataclass(slots=True)
class _Zone:
    """The names of one network, by the entries that define them."""

    names: dict[str, dict[Key, Name]] = field(default_factory=dict)


class Records:
    """All names of all networks."""

    def __init__(self) -> None:
        self._zones: dict[str, _Zone] = {}
        self._names_of: dict[Key, frozenset[str]] = {}
        """The names of an entry."""

    def replace(self, entries: Iterable[Entry]) -> None:
        """Replace all entries by these."""
        self._zones, self._names_of = {}, {}
        for entry in entries:
            self.put(entry)

    def put(self, entry: Entry) -> None:
        """Add or replace an entry."""
        key = entry.key
        zone = self._zones.setdefault(entry.network, _Zone())
        made = _names(entry)
        for gone in self._names_of.get(key, frozenset()) - made.keys():
            self._drop(zone, gone, key)
        for text, name in made.items():
            zone.names.setdefault(text, {})[key] = name
        self._names_of[key] = frozenset(made)

    def remove(self, key: Key) -> None:
        """Remove an entry."""
        zone = self._zones.get(key.network)
        for text in self._names_of.pop(key, ()):
            if zone is not None:
                self._drop(zone, text, key)

    def find(self, networks: Sequence[str], text: str) -> Name | None:
        """The records of a name in the first of these networks that has it."""
        for network in networks:
            zone = self._zones.get(network)
            definitions = zone.names.get(text) if zone is not None else None
            if definitions:
                first, *others = (definitions[key] for key in sorted(definitions))
                for other in others:
                    first = first | other
                return first
        return None

    def has(self, text: str) -> bool:
        """Whether any network has a name."""
        return any(text in zone.names for zone in self._zones.values())

    @staticmethod
    def _drop(zone: _Zone, text: str, key: Key) -> None:
        definitions = zone.names.get(text, {})
        definitions.pop(key, None)
        if not definitions:
            zone.names.pop(text, None)


def _names(entry: Entry) -> dict[str, Name]:
    """All names of an entry."""
    found: dict[str, Name] = {}

    def add(text: str, name: Name) -> None:
        text = text.lower()
        found[text] = found[text] | name if text in found else name

    every = _addresses((task.address for task in entry.tasks), (t.address6 for t in entry.tasks))
    balanced = bool(entry.vip or entry.vip6)
    own = _addresses((entry.vip,), (entry.vip6,)) if balanced else every
    if not entry.container:
        add(entry.name, own)
        add(f"tasks.{entry.name}", every)
        for alias in set(entry.aliases) - {entry.name}:
            add(alias, own)
    for task in entry.tasks:
        alone = _addresses((task.address,), (task.address6,))
        known = {task.name, task.id, task.id[:SHORT_ID]}
        if entry.container:
            known |= {entry.name, *task.aliases}
        elif task.slot:
            known |= {f"{task.slot}.{entry.name}"}
        for text in known - {""}:
            add(text, alone)
    _add_ports(entry, balanced, add)
    _add_pointers(entry, add)
    return found


def _add_ports(entry: Entry, balanced: bool, add: Any) -> None:
    tasks = [task.name for task in entry.tasks]
    for port in entry.ports:
        for number in {port.published, port.target} - {0}:
            service = f"_{number}._{port.protocol}"
            each = Name(services=tuple((port.target, name) for name in tasks))
            if entry.container:
                add(f"{service}.{entry.name}", each)
                continue
            one = Name(services=((port.target, entry.name),))
            add(f"{service}.{entry.name}", one if balanced else each)
            add(f"{service}.tasks.{entry.name}", each)


def _add_pointers(entry: Entry, add: Any) -> None:
    for text in (entry.vip, entry.vip6):
        if text:
            add(reverse(text), Name(pointers=(entry.name,)))
    for task in entry.tasks:
        for text in (task.address, task.address6):
            if text:
                add(reverse(text), Name(pointers=(task.name,)))


def _addresses(ipv4: Iterable[str], ipv6: Iterable[str]) -> Name:
    return Name(
        tuple(inet_pton(AF_INET, text) for text in ipv4 if text),
        tuple(inet_pton(AF_INET6, text) for text in ipv6 if text),
    )


def reverse(address: str) -> str:
    """The name for reverse look-up of an address."""
    if ":" not in address:
        return f"{'.'.join(address.split('.')[::-1])}.in-addr.arpa"
    return f"{'.'.join(inet_pton(AF_INET6, address).hex()[::-1])}.ip6.arpa"


def parse_entry(raw: Mapping[str, Any]) -> Entry:
    """An entry from JSON's types, without the tasks that are not ready. Raises KeyError,
    TypeError or ValueError."""
    return Entry(
        id=str(raw["id"]),
        network=str(raw["network"]),
        name=str(raw["name"]),
        vip=str(raw.get("vip", "")),
        vip6=str(raw.get("vip6", "")),
        container=bool(raw.get("container", False)),
        aliases=tuple(map(str, raw.get("aliases", ()))),
        ports=tuple(
            Port(str(port["protocol"]), int(port["published"]), int(port["target"]))
            for port in raw.get("ports", ())
        ),
        tasks=tuple(_tasks(raw.get("endpoints", ()))),
    )


def _tasks(raw: Iterable[Mapping[str, Any]]) -> Iterator[Task]:
    for each in raw:
        if each.get("ready", True):
            yield Task(
                id=str(each["task"]),
                slot=int(each.get("slot", 0)),
                name=str(each["name"]),
                aliases=tuple(map(str, each.get("aliases", ()))),
                address=str(each.get("address", "")),
                address6=str(each.get("address6", "")),
            )
