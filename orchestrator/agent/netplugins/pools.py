"""Which addresses a network of a plugin has, and a container in it: of the node's own part, of an
IPAM plugin, or none that anybody but the network's plugin knows (`null`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any

from orchestrator.agent.netplugins.driverapi import (
    GATEWAY,
    MAC,
    REQUEST_KIND,
    NetworkPlugin,
)
from orchestrator.agent.network.helper import NetworkError
from orchestrator.agent.network.values import Interface, NetworkConfig

NOWHERE = "0.0.0.0/0"
"""The pool of a network whose addresses only its plugin knows."""


async def request_pool(plugin: NetworkPlugin, config: NetworkConfig) -> dict[str, str]:
    """A pool of an IPAM plugin: its `id`, `pool` and `gateway`, with prefix lengths."""
    spaces = await plugin.give("GetDefaultAddressSpaces", {})
    space = str(spaces.get("LocalDefaultAddressSpace", ""))
    body = {
        "AddressSpace": space,
        "Pool": config.cluster_cidr,
        "SubPool": "",
        "Options": dict(config.ipam_options),
        "V6": False,
    }
    answer = await plugin.give("RequestPool", body)
    pool = {"space": space, "id": str(answer.get("PoolID", "")), "pool": str(answer.get("Pool"))}
    try:
        IPv4Network(pool["pool"], strict=False)
    except ValueError:
        raise NetworkError(
            f"ipam plugin {plugin.name} answered with a pool that is none: {pool['pool']}"
        ) from None
    data = answer.get("Data")
    told = data.get(GATEWAY, "") if isinstance(data, dict) else ""
    gateway = str(told or "")
    if not gateway:
        answer = await plugin.give(
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
    return str((await plugin.give("RequestAddress", body)).get("Address", ""))


def data_of(config: NetworkConfig, pool: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What a network's plugin is told of its addresses."""
    found = {"IPv4Data": [_data(pool.get("space", ""), pool["pool"], pool["gateway"])]}
    found["IPv6Data"] = []
    if config.subnet6 and config.cluster_cidr6:
        gateway = with_length(str(IPv6Network(config.subnet6)[1]), config.cluster_cidr6)
        found["IPv6Data"].append(_data("", config.cluster_cidr6, gateway))
    return found


def _data(space: str, pool: str, gateway: str) -> dict[str, Any]:
    return {"AddressSpace": space, "Pool": pool, "Gateway": gateway, "AuxAddresses": {}}


def own_pool(config: NetworkConfig) -> dict[str, str]:
    """The pool of a network of which each node gives out a part; a node's gateway is of its own
    part, so that nodes on one wire do not take each other's."""
    return {
        "pool": config.cluster_cidr,
        "gateway": with_length(config.own_address, config.cluster_cidr),
    }


def free_address(config: NetworkConfig, taken: Collection[str], last: str) -> str:
    """An address of the node's part that nobody has: the one after the last given, so that one that
    has come back is not given again at once. Raises NetworkError."""
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
    """The IPv6 address at the place that an IPv4 address has in the node's part; empty where the
    network has no IPv6, or the address is not of that part."""
    if not config.subnet6 or ip_address(address) not in IPv4Network(config.subnet):
        return ""
    place = int(IPv4Address(address)) - int(IPv4Network(config.subnet)[0])
    return str(IPv6Network(config.subnet6)[place])


def with_length(address: str, subnet: str) -> str:
    """An address with the prefix length of a subnet."""
    return f"{address}/{subnet.rpartition('/')[2]}"
