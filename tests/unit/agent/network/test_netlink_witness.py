# SPDX-License-Identifier: Apache-2.0
"""Another netlink library reads from the kernel what ours wrote into it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any

import pytest
from nshosts import NsHost, within
from pyroute2 import IPRoute

from orchestrator.agent.network.network_types import NetworkConfig, Peer
from orchestrator.agent.network.node_network import NodeNetwork

pytestmark = pytest.mark.root

PEER = Peer("10.128.2.0/24", "192.0.2.12")


Attributes = dict[str, Any]


def attributes(message: Any) -> Attributes:
    return dict(message["attrs"])


@dataclass(frozen=True)
class Picture:
    """What pyroute2 reads of a host: links and addresses by name, the rest as dumped."""

    links: dict[str, Attributes]
    addresses: dict[str, set[str]]
    routes: list[Attributes]
    neighbours: list[Attributes]
    forwarding: list[Attributes]


def look(host: NsHost) -> Picture:
    # A netlink socket belongs to the namespace it was made in.
    with within(host.netns, IPRoute) as ipr:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
        addresses: dict[str, set[str]] = {}
        for address in ipr.get_addr():
            found = addresses.setdefault(names[address["index"]], set())
            found.add(attributes(address)["IFA_ADDRESS"])
        tunnels = [index for index, name in names.items() if name.startswith("orcvx")]
        return Picture(
            {link.get_attr("IFLA_IFNAME"): attributes(link) for link in ipr.get_links()},
            addresses,
            [attributes(route) for route in ipr.get_routes(family=socket.AF_INET)],
            [attributes(n) for i in tunnels for n in ipr.get_neighbours(ifindex=i)],
            [attributes(entry) for i in tunnels for entry in ipr.fdb("dump", ifindex=i)],
        )


async def test_devices_and_peers_in_the_kernel_match_the_order(host: NsHost) -> None:
    config = NetworkConfig(
        id="net1",
        name="default",
        vni=7,
        cluster_cidr="10.128.0.0/14",
        subnet="10.128.1.0/24",
        mtu=0,
        node_address=host.address,
        peers=(PEER,),
    )
    async with NodeNetwork(host.state, host.run, command=host.helper) as network:
        await network.apply(config)
        attachment = await network.attach("net1", "c1")
        seen = await asyncio.to_thread(look, host)
        await network.remove("net1")
        after = await asyncio.to_thread(look, host)

    vxlan, bridge = seen.links["orcvx7"], seen.links["orcbr7"]
    tunnel = attributes(attributes(vxlan["IFLA_LINKINFO"])["IFLA_INFO_DATA"])
    assert tunnel["IFLA_VXLAN_ID"] == 7
    assert tunnel["IFLA_VXLAN_PORT"] in (4789, socket.htons(4789))
    assert tunnel["IFLA_VXLAN_LEARNING"] == 0
    assert tunnel["IFLA_VXLAN_LOCAL"] == host.address
    assert vxlan["IFLA_MTU"] == bridge["IFLA_MTU"] == 1450
    assert attachment.gateway in seen.addresses["orcbr7"]

    (route,) = [r for r in seen.routes if r.get("RTA_DST") == "10.128.2.0"]
    assert route["RTA_GATEWAY"] == "10.128.2.0"
    lladdr = {n["NDA_DST"]: n["NDA_LLADDR"] for n in seen.neighbours if "NDA_LLADDR" in n}
    ends = {entry["NDA_LLADDR"]: entry.get("NDA_DST") for entry in seen.forwarding}
    # The peer's tunnel end has its subnet's own address, and is to be found at its host's.
    assert ends[lladdr["10.128.2.0"]] == PEER.address

    assert sum("IFLA_MASTER" in link for link in seen.links.values()) == 1
    assert not [name for name in after.links if name.startswith("orc")]
