# SPDX-License-Identifier: Apache-2.0
"""Docker's remote network driver and IPAM protocols: calls, and the allocation of addresses.

Addresses come from the node's subnet of the network, from an IPAM plugin, or from the network's
plugin itself (`null`). Source: moby's `daemon/libnetwork/docs/remote.md` and `ipam.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any, Self

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Interface, NetworkConfig
from orchestrator.agent.plugins import plugin_client
from orchestrator.agent.plugins.plugin_client import Address, call_long, call_plugin, with_retries
from orchestrator.model.networks import GLOBAL, LOCAL

log = logging.getLogger(__name__)

END_SECONDS = 5.0
"""Seconds of each releasing call: the end of a container waits for them."""

GENERIC = "com.docker.network.generic"
INTERNAL, IPV6 = "com.docker.network.internal", "com.docker.network.enable_ipv6"
GATEWAY = "com.docker.network.gateway"
REQUEST_KIND = "RequestAddressType"
MAC = "com.docker.network.endpoint.macaddress"
PORT_MAP = "com.docker.network.portmap"
EXPOSED = "com.docker.network.endpoint.exposedports"

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


class NetworkPlugin:
    """A plugin that implements networks, allocates addresses, or both."""

    def __init__(
        self,
        name: str,
        address: Address,
        *,
        scope: str,
        gives: bool,
        mac: bool,
    ) -> None:
        self.name = name
        self.scope = scope
        """The scope of its networks, `local` or `global`; empty: it implements none."""
        self.gives = gives
        """Whether it allocates addresses."""
        self.wants_mac = mac
        """Whether it needs the MAC address of a request."""
        self._address = address

    @classmethod
    async def activate(cls, name: str, address: Address, implements: list[str]) -> Self | None:
        """The network plugin of this name; None if it is of another kind. Raises PluginError."""
        scope, gives, mac = "", "IpamDriver" in implements, False
        if "NetworkDriver" in implements:
            answer = await call_plugin(address, "/NetworkDriver.GetCapabilities", {}, _driver(name))
            word = str(answer.get("ConnectivityScope") or answer.get("Scope")).lower()
            scope = GLOBAL if word == GLOBAL else LOCAL
        if gives:
            with suppress(plugin_client.UnknownCall):  # optional
                answer = await call_plugin(address, "/IpamDriver.GetCapabilities", {}, _ipam(name))
                mac = bool(answer.get("RequiresMACAddress"))
        return cls(name, address, scope=scope, gives=gives, mac=mac) if scope or gives else None

    async def drive(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Call `/NetworkDriver.<method>`, with retries while the plugin does not respond. Raises
        NetworkError."""
        return await self._ask(f"/NetworkDriver.{method}", body, _driver(self.name))

    async def ipam(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Call `/IpamDriver.<method>`, likewise."""
        return await self._ask(f"/IpamDriver.{method}", body, _ipam(self.name))

    async def release(self, path: str, body: Mapping[str, Any]) -> None:
        """Make a releasing call, without retries. An error of the plugin is ignored: there is
        nothing to release. Raises NetworkError if it does not respond."""
        try:
            await call_plugin(self._address, path, body, _driver(self.name), END_SECONDS)
        except plugin_client.PluginUnavailable as error:
            raise NetworkError(f"{_driver(self.name)} does not answer: {error}") from error
        except plugin_client.PluginError as error:
            log.info("%s", error)

    async def drive_if_known(self, method: str, body: Mapping[str, Any]) -> None:
        """Call `/NetworkDriver.<method>` if the plugin implements it. Raises NetworkError."""
        with of_networks(), suppress(plugin_client.UnknownCall):
            await call_plugin(self._address, f"/NetworkDriver.{method}", body, _driver(self.name))

    async def _ask(self, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
        with of_networks():
            try:
                return await with_retries(lambda: call_long(self._address, path, body, what))
            except plugin_client.PluginUnavailable as error:
                raise plugin_client.PluginUnavailable(f"{what} does not answer: {error}") from error


@contextmanager
def of_networks() -> Iterator[None]:
    """Convert errors of plugins to errors of networks."""
    try:
        yield
    except plugin_client.PluginError as error:
        raise NetworkError(str(error)) from error


def endpoint_options(interface: Interface) -> dict[str, Any]:
    """The options of an endpoint: its published ports and driver options."""
    ports = [(_PROTOCOLS[port.protocol], port) for port in interface.ports]
    options: dict[str, Any] = dict(interface.options)
    if ports:
        options[PORT_MAP] = [
            {
                "Proto": protocol,
                "IP": "",
                "Port": port.container_port,
                "HostIP": port.host_ip,
                "HostPort": port.host_port,
                "HostPortEnd": port.host_port,
            }
            for protocol, port in ports
        ]
        options[EXPOSED] = [
            {"Proto": protocol, "Port": port.container_port} for protocol, port in ports
        ]
    return options


def _driver(name: str) -> str:
    return f"network plugin {name}"


def _ipam(name: str) -> str:
    return f"ipam plugin {name}"


NOWHERE = "0.0.0.0/0"
"""The pool of a network whose plugin allocates the addresses (`null`)."""


async def request_pool(plugin: NetworkPlugin, config: NetworkConfig) -> dict[str, str]:
    """A pool of an IPAM plugin: its `id`, `pool` and `gateway`, with prefix lengths."""
    spaces = await plugin.ipam("GetDefaultAddressSpaces", {})
    space = str(spaces.get("LocalDefaultAddressSpace", ""))
    body = {
        "AddressSpace": space,
        "Pool": config.cluster_cidr,
        "SubPool": "",
        "Options": dict(config.ipam_options),
        "V6": False,
    }
    answer = await plugin.ipam("RequestPool", body)
    pool = {"space": space, "id": str(answer.get("PoolID", "")), "pool": str(answer.get("Pool"))}
    try:
        IPv4Network(pool["pool"], strict=False)
    except ValueError:
        raise NetworkError(
            f"ipam plugin {plugin.name} answered with an invalid pool: {pool['pool']}"
        ) from None
    data = answer.get("Data")
    gateway = str(data.get(GATEWAY) or "") if isinstance(data, dict) else ""
    if not gateway:
        answer = await plugin.ipam(
            "RequestAddress",
            {"PoolID": pool["id"], "Address": config.gateway, "Options": {REQUEST_KIND: GATEWAY}},
        )
        gateway = str(answer.get("Address", ""))
        pool["given"] = gateway
    return pool | {"gateway": gateway}


async def request_address(
    plugin: NetworkPlugin, pool: Mapping[str, str], interface: Interface
) -> str:
    """An address of an IPAM plugin, with its prefix length."""
    body = {
        "PoolID": pool["id"],
        "Address": interface.ip,
        "Options": {MAC: interface.mac} if plugin.wants_mac else {},
    }
    return str((await plugin.ipam("RequestAddress", body)).get("Address", ""))


def data_of(config: NetworkConfig, pool: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The addresses of a network in its plugin's format."""
    found = {"IPv4Data": [_data(pool.get("space", ""), pool["pool"], pool["gateway"])]}
    found["IPv6Data"] = []
    if config.subnet6 and config.cluster_cidr6:
        gateway = with_length(str(IPv6Network(config.subnet6)[1]), config.cluster_cidr6)
        found["IPv6Data"].append(_data("", config.cluster_cidr6, gateway))
    return found


def _data(space: str, pool: str, gateway: str) -> dict[str, Any]:
    return {"AddressSpace": space, "Pool": pool, "Gateway": gateway, "AuxAddresses": {}}


def own_pool(config: NetworkConfig) -> dict[str, str]:
    """The pool of a network of which each node has a subnet. The gateway is in the node's subnet,
    so that nodes in one broadcast domain do not use the same address."""
    return {
        "pool": config.cluster_cidr,
        "gateway": with_length(config.own_address, config.cluster_cidr),
    }


def free_address(config: NetworkConfig, taken: Collection[str], last: str) -> str:
    """A free address of the node's subnet: the one after the last allocated, so that a released
    address is not reused at once. Raises NetworkError."""
    part = IPv4Network(config.subnet)
    used = {*taken, config.own_address}
    first, count = int(part.network_address) + 1, part.num_addresses - 2
    begin = int(IPv4Address(last)) - first + 1 if last and IPv4Address(last) in part else 0
    for step in range(count):
        address = str(IPv4Address(first + (begin + step) % count))
        if address not in used:
            return address
    raise NetworkError(f"all addresses of {part} are in use")


def twin(config: NetworkConfig, address: str) -> str:
    """The IPv6 address with the same offset in the node's subnet as an IPv4 address; empty if the
    network has no IPv6, or the address is outside of the subnet."""
    if not config.subnet6 or ip_address(address) not in IPv4Network(config.subnet):
        return ""
    place = int(IPv4Address(address)) - int(IPv4Network(config.subnet)[0])
    return str(IPv6Network(config.subnet6)[place])


def with_length(address: str, subnet: str) -> str:
    """An address with the prefix length of a subnet."""
    return f"{address}/{subnet.rpartition('/')[2]}"
