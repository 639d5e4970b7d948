# SPDX-License-Identifier: Apache-2.0
"""Reconciles this node's networks with the manager's order, and attaches containers to them.

The order is applied on each change and every few seconds, level-triggered, so manual changes in the
kernel are repaired. Containers are connected only after the first pass, which also releases the
attachments of containers that no longer exist. A network that is no longer ordered is removed once
no container is attached.

The helper's records have the networks and interfaces of each container. So `connect` treats a new
container, one that an earlier agent connected, and one whose networks have changed alike.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from orchestrator.agent.network.encryption import Encryption, TunnelOrder, tunnel_order
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import (
    Attachment,
    Exposure,
    Guest,
    Interface,
    NetworkConfig,
    Peer,
    PortMapping,
)
from orchestrator.model.networks import (
    ALLOWED_SOURCES,
    BRIDGE,
    MTU,
    SCOPE,
    SOURCE_CHECK,
    allowed_sources,
    checks_sources,
    is_ours,
    network_container,
    own_addresses,
    stands_alone,
)
from orchestrator.model.specs import HOST_NETWORK, NetworkAttachment, PublishMode
from orchestrator.model.tasks import Task
from orchestrator.model.validation.host_access import METADATA, METADATA_ADDRESSES, closed_ports
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

APPLY_PERIOD = 5.0
"""Seconds between two passes without a change."""

MOST_NAMESERVERS = 3
"""The maximum that resolvers use (resolv.conf(5))."""


class NodeNetworking(Protocol):
    """The methods of `node_network.NodeNetwork` that are used here; see there."""

    async def apply(self, config: NetworkConfig) -> None: ...

    async def expose(self, exposure: Exposure) -> None: ...

    async def attach(self, network: str, container_id: str, interface: Interface) -> Attachment: ...

    async def disconnect(self, network: str, container_id: str) -> None: ...

    async def detach(self, container_id: str) -> None: ...

    async def collect(self, valid: Collection[str]) -> None: ...

    async def namespace(self, container_id: str) -> str: ...

    async def interfaces(self, container_id: str) -> Mapping[str, str]: ...

    async def unused(self) -> Collection[str]: ...

    async def remove(self, network: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Connected:
    """How a container is connected."""

    netns: Path | None
    """None: the node's own namespace."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Network name → IPv4 address, no prefix length."""
    addresses6: Mapping[str, str] = field(default_factory=dict)
    nameservers: tuple[str, ...] = ()
    """Its name servers; empty: the node's."""


@dataclass(slots=True)
class _Network:
    """An ordered network."""

    config: NetworkConfig
    tunnels: TunnelOrder | None
    """Those of an encrypted network."""
    passed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once this configuration was applied, successfully or not."""
    failure: NetworkError | None = None


class NetworkReconciler:
    """Applies the ordered networks and connects containers to them."""

    def __init__(
        self,
        network: NodeNetworking,
        node_address: str,
        held: Callable[[], Collection[str]],
        running: Callable[[str], Task | None],
        encryption: Encryption,
        period: float = APPLY_PERIOD,
        unordered: Collection[str] = (),
        exposure: Callable[[Collection[str]], Exposure] = lambda nodes: Exposure(tuple(nodes)),
    ) -> None:
        """`held` returns the ids of containers that may hold an address; it is called once, after
        the first pass. `running` finds a running task by name or id. `unordered` are networks that
        the agent creates itself. `exposure` returns the ports and addresses to close to containers,
        from the addresses of all known nodes."""
        self._network = network
        self._node_address = node_address
        self._held = held
        self._running = running
        self._encryption = encryption
        self._period = period
        self._unordered = frozenset(unordered)
        self._exposure = exposure
        self._exposure_error: NetworkError | None = None
        """Why the last pass could not apply the exposure."""
        self._networks: dict[str, _Network] = {}
        """By id."""
        self._peers: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._ready = asyncio.Event()
        """Set after the first pass."""
        self._cleared: asyncio.Event | None = None
        """Set once no network is left; None unless all are being removed."""
        self._collected = False
        self._attached: set[str] = set()
        """Containers that may be attached to networks; all others are not."""
        self._failure: NetworkError | None = None
        """Why the remains of earlier containers could not be released."""

    def order(self, networks: Sequence[dispatch_pb2.AssignedNetwork]) -> None:
        """Take the complete list of this node's networks; empty: not known yet."""
        if not networks:
            return
        wanted = {}
        for each in networks:
            new = _Network(network_config(each, self._node_address), tunnel_order(each))
            known = self._networks.get(each.id)
            same = known is not None and (known.config, known.tunnels) == (new.config, new.tunnels)
            wanted[each.id] = known if known is not None and same else new
        if wanted == self._networks:
            return
        for id, before in self._networks.items():
            if wanted.get(id) is not before:
                # Waiting tasks continue with the new configuration.
                before.passed.set()
        self._networks = wanted
        addresses = {peer.address for each in wanted.values() for peer in each.config.peers}
        self._peers = frozenset(addresses - {self._node_address})
        self._changed.set()

    def peers(self) -> frozenset[str]:
        """The addresses of the other nodes of these networks."""
        return self._peers

    def applied(self) -> Mapping[str, NetworkConfig]:
        """The networks that were applied, by id."""
        return {id: each.config for id, each in self._networks.items() if each.passed.is_set()}

    def subnets(self) -> frozenset[str]:
        """The IPv4 subnets of the networks."""
        configs = [each.config for each in self._networks.values()]
        return frozenset({s for c in configs for s in (c.cluster_cidr, c.subnet) if s})

    def plain(self) -> NetworkConfig | None:
        """The first network by id that is applied, spans nodes and is not encrypted."""
        for id, config in sorted(self.applied().items()):
            if config.vni and not config.encrypted and id not in self.failures():
                return config
        return None

    def failures(self) -> Mapping[str, str]:
        """Why the last pass over a network failed, by the network's id."""
        return {
            id: str(each.failure) for id, each in self._networks.items() if each.failure is not None
        }

    @property
    def count(self) -> int:
        """Networks in the order."""
        return len(self._networks)

    async def run(self) -> None:
        """Apply the order until cancelled."""
        while True:
            self._changed.clear()
            if self._cleared is not None:
                await self._clear(self._cleared)
            elif self._networks:
                await self._pass()
            clearing = self._cleared is not None and not self._cleared.is_set()
            try:
                async with asyncio.timeout(self._period if self._networks or clearing else None):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def exposure_changed(self) -> None:
        """Make a pass now, since the exposure has changed."""
        self._changed.set()

    async def clear(self) -> None:
        """Remove all networks of the cluster from this host; return when they are removed. Call it
        when no container is left and while `run` is running."""
        self._networks, self._peers = {}, frozenset()
        self._cleared = cleared = asyncio.Event()
        self._changed.set()
        await cleared.wait()

    async def _clear(self, cleared: asyncio.Event) -> None:
        try:
            await self._encryption.apply(())
            await self._network.collect(())
            for id in await self._network.unused():
                await self._network.remove(id)
        except NetworkError as error:
            log.error("networks cannot be removed; retrying: %s", error)
        else:
            cleared.set()

    async def _expose(self) -> None:
        before = self._exposure_error
        try:
            nodes = sorted({self._node_address, *self._peers})
            await self._network.expose(self._exposure(nodes))
        except NetworkError as error:
            self._exposure_error = error
            if str(error) != str(before):
                log.error("ports of hosts cannot be closed to containers: %s", error)
        else:
            self._exposure_error = None

    async def _pass(self) -> None:
        await self._expose()
        orders = (each.tunnels for each in self._networks.values())
        await self._encryption.apply(order for order in orders if order is not None)
        # New networks first: containers may wait for them.
        for each in sorted(self._networks.values(), key=lambda each: each.passed.is_set()):
            await self._apply(each)
        try:
            if not self._collected:
                held = self._held()
                await self._network.collect(held)
                self._attached.update(held)
                self._collected = True
            for id in await self._network.unused():
                if id not in self._networks and id not in self._unordered:
                    await self._network.remove(id)
            self._failure = None
        except NetworkError as error:
            if str(error) != str(self._failure):
                log.error("unused networks cannot be removed: %s", error)
            self._failure = error
        self._ready.set()

    async def _apply(self, network: _Network) -> None:
        before, name = network.failure, network.config.name
        try:
            config = network.config
            if network.tunnels is not None:
                config = self._encryption.through(config)
            await self._network.apply(config)
        except NetworkError as error:
            network.failure = error
            if str(error) != str(before):
                log.error("network %s cannot be applied: %s", name, error)
        else:
            network.failure = None
            if before is not None:
                log.info("network %s is applied again", name)
        network.passed.set()

    async def ready(self) -> None:
        """Wait until the attachments and namespaces of earlier containers are released, which would
        otherwise include those of new ones. Raises NetworkError."""
        if not self._networks:
            raise NetworkError("this node has not received its networks from a manager yet")
        await self._ready.wait()
        if not self._collected and self._failure is not None:
            raise self._failure

    async def connect(self, task: Task) -> Connected:
        """Attach a task's container to the networks of its spec, once these are applied, and to no
        others. New interfaces are named eth0, eth1, … in the order of the spec; its default route
        is through the first network with external access. Raises NetworkError."""
        await self.ready()
        if word := network_container(task.spec):
            neighbour = self._running(word)
            if neighbour is None:
                raise NetworkError(f"container {word}, whose network it shares, is not running")
            shared = await self.connect(neighbour)
            return Connected(shared.netns, nameservers=shared.nameservers)
        attachments = task.spec.attachments
        if task.spec.network_names == (HOST_NETWORK,):
            return Connected(None)
        wanted = [
            (each, await self._applied(each.network))
            for each in attachments
            if not stands_alone(each.network)
        ]
        # Each request delays the start: a new container needs none but its attachments.
        new = task.id not in self._attached
        self._attached.add(task.id)
        has = {} if new else dict(await self._network.interfaces(task.id))
        for id in has.keys() - {config.id for _, config in wanted}:
            await self._network.disconnect(id, task.id)
            del has[id]
        netns = "" if new and wanted else await self._network.namespace(task.id)
        free = _free_names(list(has.values()))
        addresses, addresses6, gateways = {}, {}, []
        others: list[str] = []
        leads_out = False
        for index, (attachment, config) in enumerate(wanted):
            interface = _interface(
                task,
                attachment,
                ifname=has.get(config.id) or next(free),
                default_route=not leads_out and not config.internal,
                publishes=index == 0,
            )
            made = await self._network.attach(config.id, task.id, interface)
            netns = made.netns
            leads_out = leads_out or (made.leads_out and not config.internal)
            if made.address or not made.address6:
                addresses[config.name] = made.address
            if made.gateway:
                gateways.append(made.gateway)
            others += made.nameservers
            if made.address6:
                addresses6[config.name] = made.address6
        if any(config.driver for _, config in wanted):
            await self._expose()  # before the container starts, not with the next pass
        # Each gateway resolves the names of all networks of the container; with several, one
        # remains when the container is disconnected from a network.
        nameservers = gateways or others
        return Connected(Path(netns), addresses, addresses6, tuple(nameservers[:MOST_NAMESERVERS]))

    async def detach(self, container_id: str) -> None:
        """Disconnect a container and free its addresses and ports. Raises NetworkError."""
        if not self._networks:
            return
        await self.ready()
        await self._network.detach(container_id)
        self._attached.discard(container_id)

    async def _applied(self, name: str) -> NetworkConfig:
        """The network of this name, once it is applied. Raises NetworkError."""
        while (network := self._named(name)) is not None:
            await network.passed.wait()
            if self._named(name) is network:
                if network.failure is not None:
                    raise network.failure
                return network.config
        raise NetworkError(f"network {name} is not assigned to this node")

    def _named(self, name: str) -> _Network | None:
        found = (each for each in self._networks.values() if each.config.name == name)
        return next(found, None)


def _free_names(taken: Collection[str]) -> Iterator[str]:
    return (name for n in itertools.count() if (name := f"eth{n}") not in taken)


def _interface(
    task: Task,
    attachment: NetworkAttachment,
    *,
    ifname: str,
    default_route: bool,
    publishes: bool,
) -> Interface:
    ip, ip6 = own_addresses(attachment, task.slot)
    # Ingress ports follow the endpoint table.
    ports = [port for port in task.spec.ports if port.mode is PublishMode.HOST and publishes]
    return Interface(
        ifname=ifname,
        ip=ip,
        ip6=ip6,
        mac=attachment.mac,
        default_route=default_route,
        ports=tuple(
            PortMapping(port.published, port.target, port.protocol.name.lower()) for port in ports
        ),
        aliases=attachment.aliases,
        options=attachment.options,
    )


def _of_plugin(options: Mapping[str, str]) -> dict[str, str]:
    """The options for the network's plugin."""
    ours = (SCOPE, SOURCE_CHECK, ALLOWED_SOURCES)
    return {key: value for key, value in options.items() if key not in ours}


def exposure_of(
    nodes: Collection[str],
    *,
    managers: Iterable[str],
    ports: tuple[int, int],
    access: Collection[str],
    guests: Collection[str] = (),
    checked: Sequence[Guest] = (),
) -> Exposure:
    """The ports and addresses to close to containers. `nodes` are addresses, `managers` HOST:PORT,
    `ports` those of this node's images and metrics, `access` the open ones by name. `guests` are
    the addresses of containers on networks of plugins, `checked` their interfaces with source
    checks."""
    places = [manager.rpartition(":") for manager in managers]
    hosts = {host for host, _, _ in places if _is_address(host)}
    return Exposure(
        hosts=tuple(sorted({*nodes, *hosts})),
        ports=closed_ports(access, (int(port) for _, _, port in places), *ports),
        addresses=() if METADATA in access else METADATA_ADDRESSES,
        guests=tuple(sorted(guests)),
        checked=tuple(checked),
    )


def _is_address(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True


def network_config(network: dispatch_pb2.AssignedNetwork, node_address: str) -> NetworkConfig:
    """The configuration of an ordered network on this node."""
    alone = network.driver == BRIDGE
    third_party = bool(network.driver) and not is_ours(network.driver)
    return NetworkConfig(
        id=network.id,
        name=network.name,
        vni=0 if alone else network.vni,
        cluster_cidr=network.cluster_cidr,
        subnet=network.subnet,
        mtu=0 if third_party else int(network.options.get(MTU, 0)),
        node_address=node_address,
        peers=tuple(
            Peer(peer.subnet, peer.address, peer.subnet6, tuple(peer.addresses))
            for peer in network.peers
        ),
        subnet6=network.subnet6,
        cluster_cidr6=network.cluster_cidr6,
        gateway=network.gateway,
        internal=network.internal,
        path_mtu=network.path_mtu,
        encrypted=network.encrypted,
        source_check=checks_sources(network.options),
        allowed_sources=allowed_sources(network.options),
        driver=network.driver if third_party else "",
        conflist=network.conflist,
        options=_of_plugin(network.options) if third_party else {},
        ipam_driver=network.ipam_driver,
        ipam_options=dict(network.ipam_options),
    )
