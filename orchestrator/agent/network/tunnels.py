"""The tunnels of encrypted networks, asked of the helper: values and their documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.agent.network.helper import HelperProcess


@dataclass(frozen=True, slots=True)
class TunnelKey:
    """A public key of a node, and the UDP port at which the node answers to it."""

    public: str
    port: int


@dataclass(frozen=True, slots=True)
class TunnelHost:
    """Another node: its `address` on the underlay and its keys, the oldest first."""

    address: str
    keys: tuple[TunnelKey, ...]


@dataclass(frozen=True, slots=True)
class TunnelSession:
    """What the kernel tells of a tunnel to `address`, by one of this node's `device`s.

    `handshake` is the Unix time of the last one, which in use is never older than three minutes (0:
    there was none); `received` and `sent` are bytes.
    """

    address: str
    device: str
    handshake: float
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Tunnels:
    """This node's tunnels: its keys, the oldest first; the address inside the tunnels by which each
    other node (by its address) is reached; what the kernel tells."""

    keys: tuple[TunnelKey, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    sessions: tuple[TunnelSession, ...] = ()


async def tunnels(
    helper: HelperProcess,
    address: str,
    hosts: Sequence[TunnelHost],
    *,
    rotation: int,
    most_age: float,
) -> Tunnels:
    """Have tunnels to these nodes; see `NodeNetwork.tunnels`."""
    wanted = {
        "address": address,
        "rotation": rotation,
        "mostAge": most_age,
        "hosts": [
            {
                "address": host.address,
                "keys": [{"public": key.public, "port": key.port} for key in host.keys],
            }
            for host in hosts
        ],
    }
    return _tunnels(await helper.request("tunnels", {"tunnels": wanted}))


def tunnel_keys(found: Mapping[str, Any]) -> tuple[TunnelKey, ...]:
    """The keys in an answer of the helper's."""
    return tuple(TunnelKey(**key) for key in found["keys"])


def _tunnels(found: Mapping[str, Any]) -> Tunnels:
    return Tunnels(
        keys=tunnel_keys(found),
        hosts=found["hosts"],
        sessions=tuple(TunnelSession(**session) for session in found["sessions"]),
    )
