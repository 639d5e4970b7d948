# SPDX-License-Identifier: Apache-2.0
"""The VIP that a service gets, and keeps."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from builders import World, node, service, task, task_spec

from orchestrator.manager.planning.networking.allocation import (
    allocate_slices,
    allocate_vips,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import EndpointMode, NetworkAttachment
from orchestrator.model.states import TaskState

NETWORK = Network(id="net", name="default", subnet="10.128.0.0/16", node_prefix=24, vni=1)
BACK = Network(id="back", name="back", subnet="10.200.0.0/16", subnet6="fd00:1::/48", vni=2)


def given(view: ClusterView, *ids: str) -> ClusterView:
    return view.evolve(allocate_vips(view, ids or view.services.keys()))


def test_each_service_has_an_address_of_its_own_in_the_first_slice() -> None:
    services = [service(f"s{number}") for number in range(200)]
    view = given(ClusterView.of([NETWORK, *services]))
    vips = [ip_address(each.vips["net"]) for each in view.services.values()]
    assert len(set(vips)) == 200
    first = ip_network("10.128.0.0/24")
    assert all(vip in first for vip in vips)
    # The network's, what would be the gateway's, and the broadcast address belong to none.
    assert not {first[0], first[1], first[-1]} & set(vips)


def test_when_the_first_slice_is_full_they_come_from_slices_that_no_node_has() -> None:
    nodes = [node(f"n{number}") for number in range(3)]
    small = replace(NETWORK, subnet="10.128.0.0/21")
    view = ClusterView.of([small, *nodes, *(service(f"s{number}") for number in range(600))])
    view = view.evolve(allocate_slices(view))
    view = given(view)
    vips = {ip_address(each.vips["net"]) for each in view.services.values()}
    assert len(vips) == 600
    slices = [ip_network(each) for each in view.networks["net"].slices.values()]
    assert not any(vip in slice_ for vip in vips for slice_ in slices)
    # A node that comes now gets a slice without a VIP in it.
    view = view.evolve([Change(None, node("late"))])
    view = view.evolve(allocate_slices(view))
    late = ip_network(view.networks["net"].slices["late"])
    assert not any(vip in late for vip in vips)


def test_service_keeps_its_vip_until_its_removal() -> None:
    world = World(NETWORK, node("n1"), service("web"))
    world.settle()
    vip = world.view.services["web-id"].vips["net"]
    changed = replace(world.view.services["web-id"], updated_at=5.0)
    world.write(Change(world.view.services["web-id"], changed))
    assert given(world.view).services["web-id"].vips == {"net": vip}
    gone = world.view.evolve([Change(world.view.services["web-id"], None)])
    again = gone.evolve([Change(None, service("web"))])
    assert given(again).services["web-id"].vips == {"net": vip}


def test_an_address_that_came_back_is_not_the_next_one_given() -> None:
    view = given(ClusterView.of([NETWORK, service("first")]))
    vip = view.services["first-id"].vips["net"]
    view = view.evolve([Change(view.services["first-id"], None), Change(None, service("second"))])
    assert given(view).services["second-id"].vips["net"] != vip


def test_one_address_a_network_and_no_more_when_it_leaves_one() -> None:
    spec = task_spec(networks=(NetworkAttachment("default"), NetworkAttachment("back")))
    view = given(ClusterView.of([NETWORK, BACK, service(spec=spec)]))
    web = view.services["web-id"]
    assert set(web.vips) == {"net", "back"}
    assert ip_address(web.vips6["back"]) in ip_network("fd00:1::/64")
    left = replace(web, spec=replace(web.spec, task=task_spec()))
    view = given(view.evolve([Change(web, left)]))
    assert view.services["web-id"].vips == {"net": web.vips["net"]}
    assert view.services["web-id"].vips6 == {}


def test_none_with_dnsrr_and_none_where_networks_end_at_the_node() -> None:
    robin = service()
    robin = replace(robin, spec=replace(robin.spec, endpoint_mode=EndpointMode.DNSRR))
    assert given(ClusterView.of([NETWORK, robin])).services["web-id"].vips == {}
    local = Network(id="b", name="bridge", driver="bridge", subnet="10.88.0.0/16")
    host = service("host", spec=task_spec(networks=(NetworkAttachment("host"),)))
    inside = service("in", spec=task_spec(networks=(NetworkAttachment("bridge"),)))
    view = given(ClusterView.of([NETWORK, local, host, inside]))
    assert not any(each.vips for each in view.services.values())


def test_a_fixed_address_is_not_given_to_a_service() -> None:
    tiny = replace(NETWORK, subnet="10.9.0.0/29", node_prefix=29)
    fixed = task_spec(networks=(NetworkAttachment("default", ip=("10.9.0.2", "10.9.0.3")),))
    one = task("c", TaskState.RUNNING, of=Service(), spec=fixed)
    view = given(ClusterView.of([tiny, one, *(service(f"s{number}") for number in range(4))]))
    vips = [each.vips.get("net") for each in view.services.values()]
    assert sorted(filter(None, vips)) == ["10.9.0.4", "10.9.0.5", "10.9.0.6"]
