# SPDX-License-Identifier: Apache-2.0
"""The endpoint table of a node's load balancing: parsed, validated, typed; pure.

A `Table` is complete (`base` None) or a change of the table of revision `base`. A change has the
entries that are new or differ, each in full, and the keys of removed ones; `networks` and
`policies` are complete lists if one of them changed. An empty change (`base` = `revision`) requests
a comparison of the kernel with the applied table, and a repair.

As JSON, in the helper's request `balance`:

    {"revision": 8, "base": 7,
     "services": [{"id": "s1", "network": "n1", "name": "web",
                   "vip": "10.128.0.9", "vip6": "fd00::9",
                   "endpoints": [{"address": "10.128.3.2", "address6": "fd00:3::2", "ready": true}],
                   "ports": [{"protocol": "tcp", "port": 8080, "target": 80}]}],
     "removed": [["s2", "n1"]],
     "networks": [{"id": "n1", "bridge": "orcbr7", "device": "orcvx7",
                   "cluster": "10.128.0.0/14", "cluster6": "fd00::/48",
                   "nodes": [{"subnet": "10.128.3.0/24", "subnet6": "fd00:0:0:3::/64",
                             "address": "192.0.2.13", "addresses": ["10.128.0.77"]}]}],
     "policies": [{"id": "p1", "network": "n1", "allow": false, "sources": ["web"],
                   "destination": "db", "ports": [{"protocol": "tcp", "port": 80}]}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, NamedTuple

from orchestrator.cni.errors import CniError, Code

TRANSPORTS = ("tcp", "udp")


class Key(NamedTuple):
    """The key of an entry: a service, or a standalone container, in one network."""

    id: str
    network: str


class Label(NamedTuple):
    """The name of a service or standalone container in policies."""

    name: str
    network: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A task's addresses in the network. `ready`: it gets new connections."""

    address: IPv4Address | None = None
    address6: IPv6Address | None = None
    ready: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Published:
    """`port` of every node leads to `target` of the endpoints; protocol tcp or udp."""

    protocol: str
    port: int
    target: int


@dataclass(frozen=True, slots=True)
class Service:
    """A service, or a standalone container, in one network; without a VIP it has only ports.

    `name` is its name in policies. `endpoints` are those of all nodes, ready or not: policies apply
    to all. `ports` are published on all nodes, for one of the service's networks only.
    """

    id: str
    network: str
    vip: IPv4Address | None = None
    vip6: IPv6Address | None = None
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[Published, ...] = ()
    name: str = ""

    @property
    def key(self) -> Key:
        """The key in the table."""
        return Key(self.id, self.network)

    @property
    def label(self) -> Label:
        """The name in policies."""
        return Label(self.name, self.network)


@dataclass(frozen=True, slots=True)
class Node:
    """Another node: its subnet of the network, and its `address` on the underlay.

    `addresses` are those of its containers outside its subnet.
    """

    subnet: IPv4Network
    subnet6: IPv6Network | None = None
    address: IPv4Address | None = None
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A network on this node. `device` is its VXLAN device, empty without one.

    `nodes` are the other nodes, and may include this one. `cluster` and `cluster6` are the address
    ranges of the whole network; sources outside are clients of published ports.
    """

    id: str
    bridge: str
    cluster: IPv4Network
    device: str = ""
    cluster6: IPv6Network | None = None
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule for connections to the service `destination` from `sources` (services; empty: all).

    These are names, so that a policy also applies to a service that is created again.

    `ports` are (protocol, port) of the container; empty: all. Connections are allowed unless a
    policy denies them; policies that allow are exceptions to those that deny.
    """

    id: str
    network: str
    allow: bool
    destination: str
    sources: tuple[str, ...] = ()
    ports: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table (`base` None), or a change of that of revision `base`."""

    revision: int
    base: int | None = None
    services: tuple[Service, ...] = ()
    removed: tuple[Key, ...] = ()
    networks: tuple[Network, ...] | None = None
    policies: tuple[Policy, ...] | None = None


# -- JSON ----------------------------------------------------------------------------------------


def document(table: Table) -> dict[str, Any]:
    """The table as JSON's types; the reverse of `parse`."""
    found: dict[str, Any] = {
        "revision": table.revision,
        "base": table.base,
        "services": [_service_document(service) for service in table.services],
        "removed": [list(key) for key in table.removed],
    }
    if table.networks is not None:
        found["networks"] = [
            {
                "id": network.id,
                "bridge": network.bridge,
                "device": network.device,
                "cluster": str(network.cluster),
                "cluster6": _text(network.cluster6),
                "nodes": [
                    {
                        "subnet": str(node.subnet),
                        "subnet6": _text(node.subnet6),
                        "address": _text(node.address),
                        "addresses": [str(address) for address in node.addresses],
                    }
                    for node in network.nodes
                ],
            }
            for network in table.networks
        ]
    if table.policies is not None:
        found["policies"] = [
            {
                "id": policy.id,
                "network": policy.network,
                "allow": policy.allow,
                "destination": policy.destination,
                "sources": list(policy.sources),
                "ports": [{"protocol": protocol, "port": port} for protocol, port in policy.ports],
            }
            for policy in table.policies
        ]
    return found


def _service_document(service: Service) -> dict[str, Any]:
    return {
        "id": service.id,
        "network": service.network,
        "name": service.name,
        "vip": _text(service.vip),
        "vip6": _text(service.vip6),
        "endpoints": [
            {
                "address": _text(endpoint.address),
                "address6": _text(endpoint.address6),
                "ready": endpoint.ready,
            }
            for endpoint in service.endpoints
        ],
        "ports": [
            {"protocol": port.protocol, "port": port.port, "target": port.target}
            for port in service.ports
        ],
    }


def parse(raw: Mapping[str, Any]) -> Table:
    """Validate a decoded table; raises `CniError` INVALID_CONFIG with the reason."""
    try:
        return _table(raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CniError(
            Code.INVALID_CONFIG, f"not an endpoint table: {error}", repr(error)
        ) from error


def _table(raw: Mapping[str, Any]) -> Table:
    base = raw.get("base")
    networks, policies = raw.get("networks"), raw.get("policies")
    return Table(
        revision=int(raw["revision"]),
        base=None if base is None else int(base),
        services=tuple(_service(entry) for entry in raw.get("services", ())),
        removed=tuple(Key(str(id_), str(network)) for id_, network in raw.get("removed", ())),
        networks=None if networks is None else tuple(_network(entry) for entry in networks),
        policies=None if policies is None else tuple(_policy(entry) for entry in policies),
    )


def _service(raw: Mapping[str, Any]) -> Service:
    return Service(
        id=str(raw["id"]),
        network=str(raw["network"]),
        name=str(raw.get("name") or ""),
        vip=_ipv4(raw.get("vip")),
        vip6=_ipv6(raw.get("vip6")),
        endpoints=tuple(
            Endpoint(
                _ipv4(entry.get("address")),
                _ipv6(entry.get("address6")),
                bool(entry.get("ready", True)),
            )
            for entry in raw.get("endpoints", ())
        ),
        ports=tuple(
            Published(*_transport(entry), target=_port(entry.get("target") or entry["port"]))
            for entry in raw.get("ports", ())
        ),
    )


def _network(raw: Mapping[str, Any]) -> Network:
    return Network(
        id=str(raw["id"]),
        bridge=str(raw["bridge"]),
        device=str(raw.get("device") or ""),
        cluster=IPv4Network(raw["cluster"]),
        cluster6=IPv6Network(raw["cluster6"]) if raw.get("cluster6") else None,
        nodes=tuple(
            Node(
                IPv4Network(entry["subnet"]),
                IPv6Network(entry["subnet6"]) if entry.get("subnet6") else None,
                _ipv4(entry.get("address")),
                tuple(ip_address(address) for address in entry.get("addresses", ())),
            )
            for entry in raw.get("nodes", ())
        ),
    )


def _policy(raw: Mapping[str, Any]) -> Policy:
    return Policy(
        id=str(raw["id"]),
        network=str(raw["network"]),
        allow=bool(raw["allow"]),
        destination=str(raw["destination"]),
        sources=tuple(str(source) for source in raw.get("sources", ())),
        ports=_transports(raw.get("ports", ())),
    )


def _transports(raw: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    return tuple(_transport(entry) for entry in raw)


def _transport(raw: Mapping[str, Any]) -> tuple[str, int]:
    protocol = str(raw.get("protocol") or "tcp")
    if protocol not in TRANSPORTS:
        raise ValueError(f"protocol {protocol!r}: use one of {', '.join(TRANSPORTS)}")
    return protocol, _port(raw["port"])


def _port(value: object) -> int:
    number = int(str(value))
    if not 1 <= number <= 65535:
        raise ValueError(f"port {number} is not from 1 to 65535")
    return number


def _ipv4(value: Any) -> IPv4Address | None:
    return IPv4Address(value) if value else None


def _ipv6(value: Any) -> IPv6Address | None:
    return IPv6Address(value) if value else None


def _text(value: object) -> str:
    return "" if value is None else str(value)
