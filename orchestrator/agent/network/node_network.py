# SPDX-License-Identifier: Apache-2.0
"""This node's networks, as requests to the network helper: `NodeNetwork`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.agent.network.helper_process import (
    COMMAND,
    NOT_AVAILABLE,
    HelperProcess,
    NetworkError,
)
from orchestrator.agent.network.network_types import (
    Attachment,
    Exposure,
    Forgery,
    Interface,
    NetworkConfig,
    Underlay,
    attachment_document,
    attachment_of,
    network_document,
)
from orchestrator.cni.balancing.endpointtable import Table, document

_TRY_AGAIN_LATER = 11


@dataclass(frozen=True, slots=True)
class Connections:
    """The connections that the kernel tracks: `count` of at most `limit`.

    `refused` counts the connections refused since the host started because the table was full.
    """

    count: int
    limit: int
    refused: int

    @property
    def full(self) -> bool:
        """Whether new connections are refused, or soon will be."""
        return self.limit > 0 and self.count >= self.limit * 0.95


async def _balance(helper: HelperProcess, change: Table, whole: Callable[[], Table]) -> None:
    """Apply the table to VIPs, published ports and policies; return when the kernel has it.

    `change` may be a difference. `whole` returns the complete table, for a new helper that lacks
    the base of `change`. An empty change (`base` equal to `revision`) repairs drift in the kernel.
    Raises `NetworkError`.
    """
    try:
        await helper.request("balance", {"table": document(change)})
    except NetworkError as error:
        if error.code != _TRY_AGAIN_LATER or change.base is None:
            raise
        await helper.request("balance", {"table": document(whole())})


async def _connections(helper: HelperProcess) -> Connections:
    """The connections that the kernel of this node tracks. Raises `NetworkError`."""
    found = await helper.request("connections", {})
    return Connections(found["count"], found["limit"], found["refused"])


@dataclass(frozen=True, slots=True)
class TunnelKey:
    """A public key of a node, and the UDP port at which the node uses it."""

    public: str
    port: int


@dataclass(frozen=True, slots=True)
class TunnelHost:
    """Another node: its `address` on the underlay and its keys, the oldest first."""

    address: str
    keys: tuple[TunnelKey, ...]


@dataclass(frozen=True, slots=True)
class TunnelSession:
    """The kernel's view of a tunnel to `address`, by one of this node's `device`s.

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
    """This node's tunnels: its keys, oldest first; the address inside the tunnels of each other
    node, by its underlay address; the sessions as the kernel reports them."""

    keys: tuple[TunnelKey, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)
    sessions: tuple[TunnelSession, ...] = ()


async def _ensure_tunnels(
    helper: HelperProcess,
    address: str,
    hosts: Sequence[TunnelHost],
    *,
    rotation: int,
    most_age: float,
) -> Tunnels:
    """Ensure tunnels to these nodes; see `NodeNetwork.tunnels`."""
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


def _tunnel_keys(found: Mapping[str, Any]) -> tuple[TunnelKey, ...]:
    """The keys in a response of the helper."""
    return tuple(TunnelKey(**key) for key in found["keys"])


def _tunnels(found: Mapping[str, Any]) -> Tunnels:
    return Tunnels(
        keys=_tunnel_keys(found),
        hosts=found["hosts"],
        sessions=tuple(TunnelSession(**session) for session in found["sessions"]),
    )


REQUEST_SECONDS = 30.0
ANY_INTERFACE = Interface()


class NodeNetwork:
    """Connects the containers of this node; owns the helper process while its context lasts.

    `state_dir` keeps networks and addresses across restarts and reboots, `run_dir` has the files of
    namespaces and may be emptied by a reboot. `timeout` is that of a request in seconds; `command`
    starts the helper, which serves the network namespace that it is started in. Networks are named
    by their ids. All methods raise `NetworkError` and may be repeated.
    """

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        *,
        timeout: float = REQUEST_SECONDS,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._helper = HelperProcess(state_dir, run_dir / "netns", timeout, command)
        self._configs: dict[str, NetworkConfig] = {}

    async def __aenter__(self) -> Self:
        await self._helper.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._helper.__aexit__(kind, error, trace)

    @property
    def helper_pid(self) -> int | None:
        """The helper's process id, for metrics; None before the first request."""
        return self._helper.pid

    async def apply(self, config: NetworkConfig) -> None:
        """Ensure a network as configured: bridge, tunnel, peers, rules, veth pairs, published
        ports.

        Level-triggered: repairs what is missing or differs in the kernel. Call it at every change
        and periodically.
        """
        self._configs[config.id] = config
        await self._helper.request("apply", {"conf": network_document(config, with_peers=True)})

    async def attach(
        self, network: str, container_id: str, interface: Interface = ANY_INTERFACE
    ) -> Attachment:
        """Connect a container to a network; create its network namespace if it has none yet.

        Repeated, it returns the same address and applies all other settings again. A failed call
        leaves nothing behind.
        """
        config = self._configured(network)
        body = {
            "conf": attachment_document(config, interface),
            "container": container_id,
            "ifname": interface.ifname,
        }
        try:
            result = await self._helper.request("attach", body)
        except NetworkError as error:
            if error.code != NOT_AVAILABLE:
                raise
            # The bridge was removed since the last pass.
            await self.apply(config)
            result = await self._helper.request("attach", body)
        return attachment_of(container_id, config, result)

    async def namespace(self, container_id: str) -> str:
        """The path of the container's network namespace, created if it has none yet."""
        body = {"container": container_id}
        return str((await self._helper.request("namespace", body))["path"])

    async def interfaces(self, container_id: str) -> dict[str, str]:
        """Network → the container's interface in it, of those that it is connected to."""
        body = {"container": container_id}
        found: dict[str, str] = (await self._helper.request("interfaces", body))["interfaces"]
        return found

    async def bring(self, container_id: str, interface: Mapping[str, Any]) -> None:
        """Move an interface of a plugin into the container's existing namespace; the format is that
        of `orchestrator.cni.attachments.interfacemove`."""
        body = {"container": container_id, "interface": interface}
        await self._helper.request("move_interface_in", body)

    async def take_back(self, container_id: str, interface: Mapping[str, Any]) -> None:
        """Move such an interface back to this host, under its name."""
        body = {"container": container_id, "interface": interface}
        await self._helper.request("move_interface_out", body)

    async def disconnect(self, network: str, container_id: str) -> None:
        """Disconnect a container, which may be running, from one network."""
        body = {"network": network, "container": container_id}
        await self._helper.request("disconnect", body)

    async def detach(self, container_id: str) -> None:
        """Disconnect the container from all networks, remove its namespace, free addresses and
        ports."""
        await self._helper.request("detach", {"container": container_id})

    async def collect(self, valid: Collection[str]) -> None:
        """Remove what belongs to containers that are not in `valid`, in all networks."""
        await self._helper.request("collect", {"valid": sorted(valid)})

    async def networks(self) -> list[str]:
        """The networks that this node has: applied now or by an earlier process, not removed."""
        found: list[str] = (await self._helper.request("networks", {}))["networks"]
        return found

    async def unused(self) -> list[str]:
        """Those of `networks` without a container."""
        found: list[str] = (await self._helper.request("networks", {}))["unused"]
        return found

    async def balance(self, change: Table, whole: Callable[[], Table]) -> None:
        """Apply the endpoint table to VIPs, published ports and policies; see `_balance`."""
        await _balance(self._helper, change, whole)

    async def expose(self, exposure: Exposure) -> None:
        """Apply an exposure: close hosts to containers, and accept tunnel packets only from hosts
        of the cluster. Level-triggered, as `apply`."""
        await self._helper.request("expose", {"exposure": asdict(exposure)})

    async def connections(self) -> Connections:
        """The connections that the kernel of this node tracks."""
        return await _connections(self._helper)

    async def deviations(self, network: str) -> list[str]:
        """Descriptions of what the next pass would repair of a network as last applied. Raises the
        error that would end that pass."""
        document = network_document(self._configured(network), with_peers=True)
        found = await self._helper.request("deviations", {"conf": document})
        return list(found["deviations"])

    async def unbalanced(self) -> list[str]:
        """Descriptions of what the next pass would repair of VIPs, published ports and policies."""
        return list((await self._helper.request("balance_deviations", {}))["deviations"])

    async def unexposed(self) -> list[str]:
        """Descriptions of what the next pass would repair of the exposure, and of source checks on
        networks of plugins."""
        return list((await self._helper.request("exposure_deviations", {}))["deviations"])

    async def forgeries(self) -> list[Forgery]:
        """Containers whose packets were recently dropped for spoofed source addresses."""
        found = await self._helper.request("forgeries", {})
        return [Forgery(**each) for each in found["forgeries"]]

    async def underlay(self, network: str) -> Underlay:
        """The interface below the network's tunnel, as the kernel has it now."""
        config = self._configured(network)
        body = {"address": config.node_address, "vxlan": config.device}
        found = await self._helper.request("underlay", body)
        return Underlay(found["device"], found["mtu"], found["tunnel"])

    async def encryption(self) -> tuple[str, tuple[TunnelKey, ...]]:
        """Why this node's kernel cannot encrypt, empty if it can; and the node's current public
        keys, oldest first."""
        found = await self._helper.request("encryption", {})
        return found["why"], _tunnel_keys(found)

    async def tunnels(
        self, address: str, hosts: Sequence[TunnelHost], *, rotation: int, most_age: float
    ) -> Tunnels:
        """Ensure tunnels from this node, which has `address` on the underlay, to other hosts.

        Level-triggered, as `apply`. The node's key is created when first needed, and rotated
        without packet loss when the number `rotation` grows or the key is `most_age` seconds old
        (0: never); see `orchestrator.cni.overlay.tunnelkeys`. During a rotation there are two.
        """
        return await _ensure_tunnels(
            self._helper, address, hosts, rotation=rotation, most_age=most_age
        )

    async def remove_tunnels(self) -> None:
        """Remove all tunnels; the key is kept for later ones."""
        await self._helper.request("remove_tunnels", {})

    async def check(self, network: str, container_id: str, ifname: str = "eth0") -> None:
        """Raise `NetworkError`, with the reason, if the container's attachment has drifted."""
        document = network_document(self._configured(network))
        body = {"conf": document, "container": container_id, "ifname": ifname}
        await self._helper.request("check", body)

    async def remove(self, network: str) -> None:
        """Remove a network from this node, and disconnect everything in it."""
        self._configs.pop(network, None)
        await self._helper.request("remove", {"network": network})

    def _configured(self, network: str) -> NetworkConfig:
        config = self._configs.get(network)
        if config is None:
            raise NetworkError(
                "this node has not received the network from a manager yet", NOT_AVAILABLE
            )
        return config
