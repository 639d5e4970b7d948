"""This node's network: `NodeNetwork`, and the values that go in and out of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.cni.endpoints import Table

from .balance import Connections, balance, connections
from .helper import COMMAND, NOT_AVAILABLE, HelperProcess, NetworkError

REQUEST_SECONDS = 30.0
CNI_VERSION = "1.1.0"

__all__ = [
    "Attachment",
    "NetworkConfig",
    "NetworkError",
    "NodeNetwork",
    "Peer",
    "PortMapping",
]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node of the network: its `subnet` ("10.128.3.0/24"), its underlay `address`."""

    subnet: str
    address: str


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A network as this node is to have it.

    `subnet` is this node's part of `cluster_cidr`; `mtu` in bytes, 0 derives it from the interface
    that has `node_address`, less the overhead of VXLAN. `peers` may name this node too.
    """

    id: str
    name: str
    vni: int
    cluster_cidr: str
    subnet: str
    mtu: int
    node_address: str
    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True)
class PortMapping:
    """`host_port` of this node leads to `container_port`; an empty `host_ip` is any address."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A connected container.

    `netns` is the path of its network namespace, `address` its IP without prefix length, `result`
    the CNI result.
    """

    container_id: str
    netns: str
    network: str
    address: str
    gateway: str
    mac: str
    ifname: str
    result: Mapping[str, Any]


class NodeNetwork:
    """Connects the containers of this node; owns the helper process while its context lasts.

    `state_dir` keeps addresses over restarts and reboots, `run_dir` holds the namespaces' files
    and may be emptied by a reboot. `timeout` is in seconds, a request; `command` starts the helper,
    which serves the network namespace that it is started in. All methods raise `NetworkError` and
    may be called again.
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
        self._config: NetworkConfig | None = None

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
        """Have the network as configured: bridge, tunnel, peers, rules, published ports.

        Level-triggered: what is missing or differs in the kernel is mended, the rest left alone.
        Call it at every change and periodically.
        """
        self._config = config
        await self._helper.request("apply", {"conf": _document(config, with_peers=True)})

    async def attach(self, container_id: str, ports: Sequence[PortMapping] = ()) -> Attachment:
        """Make the container's network namespace and connect it, with these ports published.

        Doing it again returns the same address. If it fails, nothing of it remains.
        """
        config = self._configured()
        body = {
            "conf": _document(config),
            "container": container_id,
            "ports": [
                {
                    "hostPort": port.host_port,
                    "containerPort": port.container_port,
                    "protocol": port.protocol,
                    "hostIP": port.host_ip,
                }
                for port in ports
            ],
        }
        try:
            result = await self._helper.request("attach", body)
        except NetworkError as error:
            if error.code != NOT_AVAILABLE:
                raise
            # Somebody removed the bridge since the last pass.
            await self.apply(config)
            result = await self._helper.request("attach", body)
        return _attachment(container_id, config, result)

    async def detach(self, container_id: str) -> None:
        """Disconnect the container, remove its namespace, free its address and ports."""
        await self._helper.request("detach", self._about(container_id))

    async def collect(self, valid: Collection[str]) -> None:
        """Remove whatever belongs to containers that are not in `valid`."""
        body = {"conf": _document(self._configured()), "valid": sorted(valid)}
        await self._helper.request("collect", body)

    async def balance(self, change: Table, whole: Callable[[], Table]) -> None:
        """Have VIPs, published ports and policies follow the endpoint table; see `balance`."""
        await balance(self._helper, change, whole)

    async def connections(self) -> Connections:
        """How many connections the kernel of this node tracks, and whether it has room."""
        return await connections(self._helper)

    async def check(self, container_id: str) -> None:
        """Raise `NetworkError`, with the reason, unless the container is connected as it was."""
        await self._helper.request("check", self._about(container_id))

    async def status(self) -> None:
        """Raise `NetworkError`, with the reason, if the next `attach` could not work."""
        await self._helper.request("status", {"conf": _document(self._configured())})

    async def remove(self) -> None:
        """Remove the network from this node, and disconnect everything in it."""
        await self._helper.request("remove", {"conf": _document(self._configured())})

    def _configured(self) -> NetworkConfig:
        if self._config is None:
            raise NetworkError(
                "this node has no network yet: it gets one from a manager", NOT_AVAILABLE
            )
        return self._config

    def _about(self, container_id: str) -> dict[str, Any]:
        return {"conf": _document(self._configured()), "container": container_id}


def _document(config: NetworkConfig, *, with_peers: bool = False) -> dict[str, Any]:
    """The configuration as the helper reads it; only `apply` needs a thousand peers."""
    document: dict[str, Any] = {
        "cniVersion": CNI_VERSION,
        "name": config.id,
        "bridge": f"orcbr{config.vni}",
        "subnet": config.subnet,
        "clusterCIDR": config.cluster_cidr,
        "mtu": config.mtu,
        "vni": config.vni,
        "nodeAddress": config.node_address,
    }
    if with_peers:
        document["peers"] = [
            {"subnet": peer.subnet, "address": peer.address} for peer in config.peers
        ]
    return document


def _attachment(container_id: str, config: NetworkConfig, result: Mapping[str, Any]) -> Attachment:
    inside = result["interfaces"][-1]
    given = result["ips"][0]
    return Attachment(
        container_id=container_id,
        netns=inside["sandbox"],
        network=config.id,
        address=given["address"].partition("/")[0],
        gateway=given["gateway"],
        mac=inside["mac"],
        ifname=inside["name"],
        result=result,
    )
