# SPDX-License-Identifier: Apache-2.0
"""The network of image builds: a bridge on this node with external access and without peers.

It is not a network of the cluster, so a RUN cannot reach containers through their networks. This
node chooses a subnet that neither a route nor a network of the cluster uses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Protocol

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Attachment, NetworkConfig
from orchestrator.agent.runtime.isolation.userns import keep

BUILD_NETWORK = "build"
_CANDIDATES = (IPv4Network("172.31.0.0/16"), IPv4Network("10.255.0.0/16"))
_PREFIX = 24


class Networking(Protocol):
    """The methods of `node_network.NodeNetwork` that are used here; see there."""

    async def apply(self, config: NetworkConfig) -> None: ...

    async def attach(self, network: str, container_id: str) -> Attachment: ...

    async def detach(self, container_id: str) -> None: ...

    async def remove(self, network: str) -> None: ...


class BuildNetwork:
    """Connects the network namespaces of builds."""

    def __init__(
        self,
        network: Networking,
        netns_dir: Path,
        node_address: str,
        taken: Callable[[], Iterable[str]],
    ) -> None:
        """`netns_dir`: the folder of `network` with namespaces. `taken`: subnets in use."""
        self._network = network
        self._netns_dir = netns_dir
        self._node_address = node_address
        self._taken = taken
        self._attached: set[str] = set()
        self._config: NetworkConfig | None = None
        self._turn = asyncio.Lock()

    @property
    def attached(self) -> frozenset[str]:
        """Names of the connected namespaces."""
        return frozenset(self._attached)

    async def attach(self, name: str, netns: int) -> None:
        """Connect a network namespace, given by a file descriptor. Raises ImageError."""
        try:
            async with self._turn:
                config = await self._configured()
                self._attached.add(name)
            await asyncio.to_thread(keep, netns, self._netns_dir / name)
            await self._network.apply(config)
            await self._network.attach(BUILD_NETWORK, name)
        except (NetworkError, OSError) as error:
            raise ImageError(
                f"the build has no network: {error}; --network none builds without one"
            ) from error

    async def detach(self, name: str) -> None:
        """Disconnect it and free its address, if it is connected. Raises ImageError."""
        try:
            await self._network.detach(name)
        except NetworkError as error:
            raise ImageError(f"the network of the build cannot be removed: {error}") from error
        finally:
            self._attached.discard(name)

    async def _configured(self) -> NetworkConfig:
        """The network, on another subnet if its own is in use elsewhere since the last build."""
        taken = [
            subnet for each in self._taken() if isinstance(subnet := ip_network(each), IPv4Network)
        ]
        before = self._config
        if before is not None and (
            self._attached or not _overlaps(IPv4Network(before.subnet), taken)
        ):
            return before
        await self._network.remove(BUILD_NETWORK)
        self._config = self._chosen(taken)
        return self._config

    def _chosen(self, taken: Iterable[IPv4Network]) -> NetworkConfig:
        for pool in _CANDIDATES:
            for subnet in reversed(list(pool.subnets(new_prefix=_PREFIX))):
                if not _overlaps(subnet, taken):
                    return NetworkConfig(
                        id=BUILD_NETWORK,
                        name=BUILD_NETWORK,
                        vni=0,
                        cluster_cidr=str(subnet),
                        subnet=str(subnet),
                        mtu=0,
                        node_address=self._node_address,
                    )
        raise ImageError(
            f"the build has no network: no subnet of {_CANDIDATES[0]} or {_CANDIDATES[1]} is free; "
            "--network host builds with the node's"
        )


def _overlaps(subnet: IPv4Network, taken: Iterable[IPv4Network]) -> bool:
    return any(subnet.overlaps(each) for each in taken)
