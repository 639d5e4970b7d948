# SPDX-License-Identifier: Apache-2.0
"""What a new network is given, and which addresses a spec may fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from builders import node, service, task_spec

from orchestrator.manager.planning.networking.addresses import (
    AddressRefused,
    NewNetwork,
    check_fixed,
    complete,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import NodeDescription
from orchestrator.model.objects import Cluster, Network
from orchestrator.model.specs import NetworkAttachment, ServiceMode

CLUSTER = Cluster(id="c", network_cidr="10.128.0.0/14")
DEFAULT = Network(id="net", name="default", subnet="10.128.0.0/14", vni=4096)
HOST = replace(
    node("n1"),
    description=NodeDescription(
        hostname="node1", address="192.0.2.7", routes=("10.133.0.0/16", "fd00:9::/64")
    ),
)
VIEW = ClusterView.of([CLUSTER, DEFAULT, HOST])


def new(name: str = "back", *subnets: str, ipv6: bool = False, **fields: Any) -> NewNetwork:
    return NewNetwork(Network(id=name, name=name, **fields), subnets, ipv6)


def test_unset_subnets_and_vnis_avoid_those_in_use() -> None:
    view, made = VIEW, []
    for number in range(3):
        made.append(complete(view, new(f"n{number}", ipv6=True)))
        view = view.evolve([Change(None, made[-1])])
    assert [(each.subnet, each.vni) for each in made] == [
        ("10.132.0.0/16", 4097),
        ("10.134.0.0/16", 4098),
        ("10.135.0.0/16", 4099),
    ]
    assert {each.node_prefix for each in made} == {24}
    subnets6 = [ip_network(each.subnet6) for each in made]
    assert len(set(subnets6)) == 3
    assert all(each.prefixlen == 48 and each.is_private for each in subnets6)


def test_exhausted_subnets_are_an_error() -> None:
    full = [
        Network(id=text, name=f"n{number}", subnet=text, vni=number)
        for number, text in enumerate(("10.0.0.0/8", "172.16.0.0/12"), 5000)
    ]
    with pytest.raises(AddressRefused, match="no subnet is left"):
        complete(ClusterView.of([CLUSTER, *full]), new())


@pytest.mark.parametrize(
    ("subnet", "prefix"),
    [("10.5.0.0/12", 24), ("10.5.0.0/20", 26), ("10.5.0.0/24", 28), ("10.5.0.0/27", 29)],
)
def test_a_subnet_is_cut_so_that_there_are_nodes_and_addresses(subnet: str, prefix: int) -> None:
    subnet = str(ip_network(subnet, strict=False))
    assert complete(VIEW, new("back", subnet)).node_prefix == prefix


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (lambda: new("back", "10.129.0.0/16"), "overlaps network 'default'"),
        (lambda: new("back", "10.133.8.0/24"), r"a route of node node1 \(10.133.0.0/16\)"),
        (lambda: new("back", "fd00:9::/48"), "a route of node node1"),
        (lambda: new("back", "192.0.2.0/24"), "the address 192.0.2.7 of a node"),
        (lambda: new("back", "10.5.0.0/16", "10.6.0.0/16"), "one subnet of IPv4"),
        (lambda: new("back", "224.0.0.0/16"), "is not for hosts"),
        (lambda: new("back", options={"mtu": "1200"}, ipv6=True), "not in 1280-65485"),
        (lambda: new("back", driver="bridge", encrypted=True), "leaves no node"),
        (lambda: new("back", "fd6f:7263:1::/48"), "which encrypted networks have between nodes"),
    ],
)
def test_invalid_networks_are_refused_in_one_line(
    wanted: Callable[[], NewNetwork], words: str
) -> None:
    with pytest.raises((AddressRefused, ValueError), match=words) as refusal:
        complete(VIEW, wanted())
    assert "\n" not in str(refusal.value)


BACK = Network(
    id="back",
    name="back",
    subnet="10.5.0.0/16",
    subnet6="fd00:5::/48",
    gateway="10.5.0.9",
    slices={"n1": "10.5.3.0/24"},
    vni=5000,
)


def fixing(name: str, *ip: str, ip6: tuple[str, ...] = (), **fields: Any) -> Any:
    attachment = NetworkAttachment("back", ip=ip, ip6=ip6)
    return replace(
        service(name, **fields),
        spec=replace(service(name, **fields).spec, task=task_spec(networks=(attachment,))),
    )


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (fixing("web", "10.6.0.2"), "is not in network 'back'"),
        (fixing("web", "10.5.0.0"), "is not one that a container can have"),
        (fixing("web", "10.5.3.7"), "that node node1 gives out; choose one in 10.5.0.0/24"),
        (
            fixing("web", "10.5.0.2", ip6=("fd00:5:0:3::7",)),
            "that node node1 gives out; choose one in fd00:5::/64",
        ),
        (fixing("web", "10.5.0.9"), "belongs to gateway"),
        (fixing("web", "10.5.0.5"), "belongs to service db"),
        (fixing("web", "10.5.0.6"), "belongs to service db"),
        (fixing("web", "10.5.0.2", replicas=2), "2 replicas and 1 fixed addresses"),
        (fixing("web", "10.5.0.2", mode=ServiceMode.GLOBAL), "a global service"),
    ],
)
def test_unavailable_address_is_refused(wanted: Any, words: str) -> None:
    other = replace(fixing("db", "10.5.0.5"), vips={"back": "10.5.0.6"})
    view = ClusterView.of([CLUSTER, BACK, HOST, other])
    with pytest.raises(AddressRefused, match=words):
        check_fixed(view, wanted.spec, f"service {wanted.spec.name}")


def test_fixed_address_may_be_its_own_or_outside_the_slices_of_nodes() -> None:
    mine = fixing("web", "10.5.0.5", "10.5.77.1", replicas=2)
    view = ClusterView.of([CLUSTER, BACK, HOST, mine])
    check_fixed(view, mine.spec, "service web")


def test_network_without_ipv6_names_the_flag_for_it() -> None:
    view = ClusterView.of([CLUSTER, replace(BACK, subnet6=""), HOST])
    wanted = fixing("web", ip6=("fd00:5::7",))
    with pytest.raises(AddressRefused, match="orc network create --ipv6"):
        check_fixed(view, wanted.spec, "service web")
