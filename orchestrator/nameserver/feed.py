# SPDX-License-Identifier: Apache-2.0
"""The endpoint table that the agent sends, as JSON. Pure.

    {"revision": 8, "base": 7,
     "entries": [{"id": "s1", "network": "n1", "name": "web", "vip": "10.128.0.9",
                  "aliases": ["www"],
                  "ports": [{"protocol": "tcp", "published": 8080, "target": 80}],
                  "endpoints": [{"task": "t1", "slot": 1, "name": "web.1",
                                 "address": "10.128.3.2", "ready": true}]}],
     "removed": [["s2", "n1"]],
     "networks": [{"id": "n1", "gateways": ["10.128.3.1"], "ranges": ["10.128.0.0/14"],
                   "internal": false}],
     "clients": {"t1": {"addresses": {"n1": ["10.128.3.2"], "n2": ["10.129.3.2"]},
                        "servers": ["9.9.9.9"]}}}

`base` null: this is the whole table. `networks` is sent in full when any of them has changed.
Clients are the node's own containers that are on several networks or have upstream servers of
their own. `clients` has all of them, by task; alternatively, `changed_clients` has those that have
changed (null: removed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from orchestrator.nameserver.answers import Range, Scope
from orchestrator.nameserver.zones import Entry, Key, parse_entry

PROTOCOL = 2
"""Version of the format; the agent replaces a server with another one."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network of this node."""

    id: str
    gateways: tuple[str, ...]
    """This node's addresses in it, on which the server listens."""
    ranges: tuple[Range, ...]
    """All its addresses, on all nodes: queries from others are ignored."""
    internal: bool
    """It has no route to the outside, and queries are not forwarded."""

    def has(self, address: str) -> bool:
        """Whether an address is in it."""
        found = ip_address(address.partition("%")[0])
        return any(found in each for each in self.ranges)


@dataclass(frozen=True, slots=True)
class Client:
    """A container of this node."""

    addresses: Mapping[str, tuple[str, ...]]
    """Network id → its addresses there, in the order in which networks are searched."""
    servers: tuple[str, ...] = ()
    """Its upstream servers; empty: the host's."""

    def places(self) -> list[tuple[str, str]]:
        """The (network id, address) pairs from which it sends queries."""
        return [
            (network_id, address)
            for network_id, addresses in self.addresses.items()
            for address in addresses
        ]


def scope_of(asked: Network, networks: Mapping[str, Network], client: Client | None) -> Scope:
    """What a client may resolve; `client` None: only names of the network in which it asks. A
    client's networks have one order wherever it asks, since some resolvers query all servers."""
    mine = [networks[id_] for id_ in client.addresses if id_ in networks] if client else [asked]
    return Scope(
        networks=tuple(each.id for each in mine),
        ranges=tuple(one for each in mine for one in each.ranges),
        forwards=not all(each.internal for each in mine),
        servers=client.servers if client else (),
    )


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table (`base` None), or a change of that of revision `base`."""

    revision: int
    base: int | None
    entries: tuple[Entry, ...]
    removed: tuple[Key, ...]
    networks: tuple[Network, ...] | None
    clients: Mapping[str, Client] | None
    """All of them, by task; None: see `changed_clients`."""
    changed_clients: Mapping[str, Client | None]
    """By task; None: removed."""


def parse(raw: Mapping[str, Any]) -> Table:
    """A table from JSON's types. Raises KeyError, TypeError or ValueError."""
    base, networks, clients = raw.get("base"), raw.get("networks"), raw.get("clients")
    return Table(
        revision=int(raw["revision"]),
        base=None if base is None else int(base),
        entries=tuple(map(parse_entry, raw.get("entries", ()))),
        removed=tuple(Key(str(id_), str(network)) for id_, network in raw.get("removed", ())),
        networks=None if networks is None else tuple(map(_network, networks)),
        clients=None if clients is None else {t: _client(each) for t, each in clients.items()},
        changed_clients={
            task: None if each is None else _client(each)
            for task, each in raw.get("changed_clients", {}).items()
        },
    )


def _network(raw: Mapping[str, Any]) -> Network:
    return Network(
        id=str(raw["id"]),
        gateways=tuple(map(str, raw["gateways"])),
        ranges=tuple(ip_network(text) for text in raw["ranges"]),
        internal=bool(raw.get("internal", False)),
    )


def _client(raw: Mapping[str, Any]) -> Client:
    return Client(
        addresses={
            str(network): tuple(map(str, addresses))
            for network, addresses in raw["addresses"].items()
        },
        servers=tuple(map(str, raw.get("servers", ()))),
    )
