# SPDX-License-Identifier: Apache-2.0
"""Networks of plugins that speak Docker's remote network driver protocol.

A plugin creates an interface on this host (CreateEndpoint, Join). The network helper moves it into
the container's namespace with its addresses, and back to the host before the plugin is called to
remove it (Leave, DeleteEndpoint).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import Any, Protocol

from orchestrator.agent.netplugins import remote_driver
from orchestrator.agent.netplugins.attachment_records import (
    AttachmentRecord,
    AttachmentRecords,
    ReleaseRetries,
    namespace_created,
    namespace_stamp,
    same_namespace,
)
from orchestrator.agent.netplugins.plugin_results import Place, answers_here, places_of
from orchestrator.agent.netplugins.remote_driver import (
    GENERIC,
    INTERNAL,
    IPV6,
    NetworkPlugin,
    endpoint_options,
    of_networks,
)
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Attachment, Guest, Interface, NetworkConfig
from orchestrator.agent.plugins.plugin_discovery import PluginSet
from orchestrator.model.networks import NO_IPAM

log = logging.getLogger(__name__)

_PERIOD = 5.0
"""Seconds between two discoveries of plugins."""


class Mover(Protocol):
    """The methods of `node_network.NodeNetwork` that are used here; see there."""

    async def bring(self, container_id: str, interface: Mapping[str, Any]) -> None: ...

    async def take_back(self, container_id: str, interface: Mapping[str, Any]) -> None: ...


class RemoteNetworks:
    """The networks of Docker plugins on this node; see `composite.Driver`."""

    def __init__(
        self, records: AttachmentRecords, plugins: PluginSet[NetworkPlugin], mover: Mover
    ) -> None:
        self._records = records
        self._plugins = plugins
        self._mover = mover
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One operation per container, or network, at a time."""
        self._releases = ReleaseRetries(records)
        self._leaving: set[str] = set()
        """Networks to remove from this node."""
        self.changed = asyncio.Event()
        """Set when the set of plugins that respond has changed."""

    @property
    def scopes(self) -> dict[str, str]:
        """Name → `local` or `global` of plugins that implement networks."""
        return {name: each.scope for name, each in self._plugins.all().items() if each.scope}

    @property
    def ipam(self) -> tuple[str, ...]:
        """Names of plugins that allocate addresses."""
        return tuple(name for name, each in self._plugins.all().items() if each.gives)

    async def apply(self, config: NetworkConfig) -> None:
        """Check that this node can have a network; its first container creates it in the plugin.
        Raises NetworkError."""
        wanted = {config.driver, config.ipam_driver} - {"", NO_IPAM}
        for name in sorted(wanted - self._plugins.all().keys()):
            why = self._plugins.silent.get(name, "start it")
            raise NetworkError(f"network plugin {name} does not answer on this node: {why}")
        self._leaving.discard(config.id)
        if (kept := self._records.networks.get(config.id)) is not None:
            self._records.put_network(config.id, {**kept, **_sources(config)})

    async def attach(
        self, config: NetworkConfig, container: str, interface: Interface, netns: str
    ) -> Attachment:
        """Connect a container; repeated, repair what is missing."""
        plugin = await self._plugin(config.driver)
        async with self._turns[container]:
            body = {
                "driver": config.driver,
                "ipam": config.ipam_driver,
                "asked": _asked(interface),
                "created": namespace_created(netns),
            }
            wanted = AttachmentRecord(
                config.id, container, interface.ifname, netns, namespace_stamp(netns), body
            )
            known = self._records.get(*wanted.key)
            if known is not None:
                same = known.ifname == wanted.ifname and same_namespace(known, wanted)
                if same and known.body.get("joined") and known.body["asked"] == body["asked"]:
                    ways = known.body["gateways"] if interface.default_route else []
                    placed = {**known.body["interface"], "gateways": ways}
                    await self._mover.bring(container, placed)
                    return _attachment(self._note(known, interface=placed))
                await self._release(known)
            self._releases.forget(wanted.key)
            await self._make(plugin, config)
            try:
                joined = await self._connect(plugin, config, interface, wanted)
            except NetworkError:
                await self._try_to_release(self._records.get(*wanted.key))
                raise
            return _attachment(joined)

    async def disconnect(self, network: str, container: str) -> None:
        """Disconnect a container from a network; a release that fails is retried later."""
        if self._records.get(network, container) is not None:
            async with self._turns[container]:
                await self._try_to_release(self._records.get(network, container))

    async def detach(self, container: str) -> None:
        """Disconnect a container from all networks, while its namespace still exists."""
        for record in reversed(self._records.of_container(container)):
            await self.disconnect(*record.key)
        self._turns.pop(container, None)

    def collect(self, valid: Collection[str]) -> None:
        """Schedule the release of all other containers' attachments."""
        for record in self._records.all():
            if record.container not in valid:
                self._releases.note(record.key)

    def interfaces(self, container: str) -> dict[str, str]:
        """Network → interface of a container."""
        return {each.network: each.ifname for each in self._records.of_container(container)}

    def unused(self) -> list[str]:
        """Networks without a container."""
        networks = self._records.networks.keys() - self._leaving
        return [id for id in sorted(networks) if not self._records.of_network(id)]

    async def remove(self, network: str) -> None:
        """Schedule the removal of a network, also from its plugin."""
        if network in self._records.networks:
            self._leaving.add(network)
            self._releases.changed.set()

    def places(self) -> dict[str, Place]:
        """Network id → where this node can serve DNS in it."""
        return places_of(
            (
                (record.network, gateway, str(subnet))
                for record in self._records.all()
                if record.body.get("joined")
                for gateway in record.body["gateways"]
                for subnet in (ip_interface(each).network for each in record.body["addresses"])
                if subnet.version == ip_address(gateway).version
            ),
            answers_here,
        )

    def addresses(self) -> frozenset[str]:
        """The addresses of all containers on these networks, without prefix length."""
        return frozenset(
            str(ip_interface(each).ip)
            for record in self._records.all()
            if record.body.get("joined")
            for each in record.body["addresses"]
        )

    def checked(self) -> list[Guest]:
        """The interfaces of containers whose source addresses are checked."""
        return [
            Guest(
                network=record.network,
                container=record.container,
                netns=record.netns,
                ifname=record.ifname,
                mac=record.body["interface"]["mac"],
                addresses=tuple(str(ip_interface(each).ip) for each in record.body["addresses"]),
                allowed=self._records.allowed(record.network),
            )
            for record in self._records.all()
            if record.body.get("joined") and self._records.checks(record.network)
        ]

    async def run(self) -> None:
        """Release the remains of earlier agents, and discover plugins, until cancelled."""
        while True:
            self._releases.changed.clear()
            for network, container in self._releases.due():
                async with self._turns[container]:
                    if (network, container) in self._releases:
                        await self._try_to_release(self._records.get(network, container))
                if self._records.get(network, container) is None:
                    self._releases.forget((network, container))
            for network in sorted(self._leaving):
                await self._forget(network)
            before = self.scopes, self.ipam
            await self._plugins.discover()
            if (self.scopes, self.ipam) != before:
                self.changed.set()
            await self._releases.wait(_PERIOD)

    async def _forget(self, network: str) -> None:
        async with self._turns[network]:
            if network not in self._leaving or self._records.of_network(network):
                return
            try:
                await self._delete_network(network)
            except NetworkError as error:
                log.warning("network %s is not removed yet: %s", network, error)
            else:
                self._leaving.discard(network)

    # -- calls to plugins --------------------------------------------------------------------------

    async def _make(self, plugin: NetworkPlugin, config: NetworkConfig) -> None:
        """Create a network in its plugin, once."""
        async with self._turns[config.id]:
            self._leaving.discard(config.id)
            if self._records.networks.get(config.id, {}).get("made"):
                return
            if config.id in self._records.networks:
                await self._delete_network(config.id)  # creation was interrupted
            kept: dict[str, Any] = {
                "name": config.name,
                "driver": config.driver,
                "ipam": config.ipam_driver,
                **_sources(config),
            }
            self._records.put_network(config.id, kept)
            kept = {**kept, "pool": await self._pool(config)}
            self._records.put_network(config.id, kept)
            options = {GENERIC: dict(config.options), IPV6: bool(config.subnet6)}
            if config.internal:
                options[INTERNAL] = True
            body = {"NetworkID": config.id, "Options": options}
            await plugin.drive("CreateNetwork", body | remote_driver.data_of(config, kept["pool"]))
            self._records.put_network(config.id, {**kept, "made": True})

    async def _connect(
        self,
        plugin: NetworkPlugin,
        config: NetworkConfig,
        interface: Interface,
        record: AttachmentRecord,
    ) -> AttachmentRecord:
        """Create an endpoint and connect the container. Each step is recorded first."""
        ids = {"NetworkID": config.id, "EndpointID": _endpoint(record)}
        self._records.put(record)
        address, address6 = await self._addresses(config, interface)
        record = self._note(record, addresses=[each for each in (address, address6) if each])
        options = endpoint_options(interface)
        asked = {"Address": address, "AddressIPv6": address6, "MacAddress": interface.mac}
        body = {**ids, "Options": options, "Interface": asked}
        answer = (await plugin.drive("CreateEndpoint", body)).get("Interface")
        given = answer if isinstance(answer, dict) else {}
        for key, requested in asked.items():
            if requested and given.get(key):
                raise NetworkError(
                    f"network plugin {plugin.name} changed the requested {key} {requested}"
                )
        chosen = {key: value or str(given.get(key) or "") for key, value in asked.items()}
        addresses = [each for each in (chosen["Address"], chosen["AddressIPv6"]) if each]
        record = self._note(record, addresses=addresses)
        joined = await plugin.drive("Join", {**ids, "SandboxKey": record.netns, "Options": options})
        placed = _placed(plugin.name, joined, interface, addresses, chosen["MacAddress"])
        gateways = [str(joined.get(key) or "") for key in ("Gateway", "GatewayIPv6")]
        record = self._note(record, interface=placed, gateways=list(filter(None, gateways)))
        await self._mover.bring(record.container, placed)
        await plugin.drive_if_known("ProgramExternalConnectivity", {**ids, "Options": options})
        return self._note(record, joined=True)

    async def _addresses(self, config: NetworkConfig, interface: Interface) -> tuple[str, str]:
        kept = self._records.networks[config.id]
        if config.ipam_driver == NO_IPAM:
            return "", ""
        if config.ipam_driver:
            plugin = await self._plugin(config.ipam_driver)
            address = await remote_driver.request_address(plugin, kept["pool"], interface)
            try:
                ip_interface(address)
            except ValueError:
                raise NetworkError(
                    f"ipam plugin {plugin.name} answered with an invalid address: {address}"
                ) from None
            return address, ""
        address = interface.ip
        if not address:
            taken = {
                each.partition("/")[0]
                for record in self._records.of_network(config.id)
                for each in record.body.get("addresses", ())
            }
            address = remote_driver.free_address(config, taken, kept.get("last", ""))
            self._records.put_network(config.id, {**kept, "last": address})
        address6 = interface.ip6 or remote_driver.twin(config, address)
        return (
            remote_driver.with_length(address, config.cluster_cidr),
            remote_driver.with_length(address6, config.cluster_cidr6) if address6 else "",
        )

    async def _pool(self, config: NetworkConfig) -> dict[str, str]:
        if config.ipam_driver == NO_IPAM:
            return {"pool": remote_driver.NOWHERE, "gateway": ""}
        if config.ipam_driver:
            return await remote_driver.request_pool(await self._plugin(config.ipam_driver), config)
        return remote_driver.own_pool(config)

    async def _release(self, record: AttachmentRecord) -> None:
        """Release an attachment and delete its record. After a NetworkError it can be repeated."""
        plugin = await self._plugin(record.body["driver"])
        ids = {"NetworkID": record.network, "EndpointID": _endpoint(record)}
        await plugin.release("/NetworkDriver.RevokeExternalConnectivity", ids)
        await plugin.release("/NetworkDriver.Leave", ids)
        if (placed := record.body.get("interface")) and namespace_stamp(record.netns):
            await self._mover.take_back(record.container, placed)
        await plugin.release("/NetworkDriver.DeleteEndpoint", ids)
        ipam = record.body.get("ipam", "")
        if ipam not in ("", NO_IPAM):
            pool = self._records.networks.get(record.network, {}).get("pool") or {}
            ipam_plugin = await self._plugin(ipam)
            for address in record.body.get("addresses", ()):
                await _release_address(ipam_plugin, pool, address)
        self._records.drop(record)
        self._releases.forget(record.key)

    async def _try_to_release(self, record: AttachmentRecord | None) -> None:
        if record is not None:
            try:
                await self._release(record)
            except NetworkError as error:
                self._releases.failed(record.key, error)

    async def _delete_network(self, network: str) -> None:
        kept = self._records.networks[network]
        plugin = await self._plugin(kept["driver"])
        await plugin.release("/NetworkDriver.DeleteNetwork", {"NetworkID": network})
        pool = kept.get("pool") or {}
        if kept["ipam"] not in ("", NO_IPAM) and "id" in pool:
            ipam_plugin = await self._plugin(kept["ipam"])
            if given := pool.get("given"):
                await _release_address(ipam_plugin, pool, given)
            await ipam_plugin.release("/IpamDriver.ReleasePool", {"PoolID": pool["id"]})
        self._records.drop_network(network)

    async def _plugin(self, name: str) -> NetworkPlugin:
        with of_networks():
            return await self._plugins.get(name)

    def _note(self, record: AttachmentRecord, **more: Any) -> AttachmentRecord:
        record = replace(record, body={**record.body, **more})
        self._records.put(record)
        return record


def _sources(config: NetworkConfig) -> dict[str, Any]:
    """The source checks in a network's record."""
    return {
        "source_check": config.source_check,
        "allowed_sources": list(config.allowed_sources),
    }


async def _release_address(plugin: NetworkPlugin, pool: Mapping[str, str], address: str) -> None:
    body = {"PoolID": pool.get("id", ""), "Address": address.partition("/")[0]}
    await plugin.release("/IpamDriver.ReleaseAddress", body)


def _asked(interface: Interface) -> dict[str, Any]:
    """The requests of a container, in a comparable form."""
    return {
        "ips": [interface.ip, interface.ip6],
        "mac": interface.mac,
        "options": endpoint_options(interface),
    }


def _endpoint(record: AttachmentRecord) -> str:
    """The endpoint's id; some plugins name interfaces by its first characters."""
    return hashlib.sha256(f"{record.network}/{record.container}".encode()).hexdigest()


def _placed(
    plugin: str, joined: Mapping[str, Any], interface: Interface, addresses: list[str], mac: str
) -> dict[str, Any]:
    """The answer of Join as `orchestrator.cni.attachments.interfacemove` reads it. Raises
    NetworkError."""
    name = joined.get("InterfaceName")
    source = name.get("SrcName") if isinstance(name, dict) else None
    if not source:
        raise NetworkError(f"network plugin {plugin} returned no InterfaceName in answer to Join")
    routes = joined.get("StaticRoutes")
    gateways = [joined.get(key) for key in ("Gateway", "GatewayIPv6")]
    return {
        "source": source,
        "ifname": interface.ifname,
        "mac": mac,
        "addresses": addresses,
        "gateways": [each for each in gateways if each] if interface.default_route else [],
        "routes": [
            {"to": each.get("Destination"), "by": each.get("NextHop") or ""}
            for each in (routes if isinstance(routes, list) else ())
            if isinstance(each, dict)
        ],
    }


def _attachment(record: AttachmentRecord) -> Attachment:
    """A container's attachment by its record."""
    addresses = [ip_interface(each) for each in record.body["addresses"]]
    by_version = {each.version: str(each.ip) for each in reversed(addresses)}
    return Attachment(
        container_id=record.container,
        netns=record.netns,
        network=record.network,
        address=by_version.get(4, ""),
        gateway=next((each for each in record.body["gateways"] if answers_here(each)), ""),
        mac=record.body["interface"]["mac"],
        ifname=record.ifname,
        result={},
        address6=by_version.get(6, ""),
        leads_out=bool(record.body["gateways"]),
    )
