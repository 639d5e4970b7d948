# SPDX-License-Identifier: Apache-2.0
"""Slices of networks."""

from __future__ import annotations

from dataclasses import replace

from builders import World, node, service, task, task_spec

from orchestrator.manager.planning.networking.addresses import slice6
from orchestrator.manager.planning.networking.allocation import allocate_slices
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.objects import Network
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState

NETWORK = Network(id="n1", name="default", subnet="10.128.0.0/14", node_prefix=24)


def slices(network: Network, *node_ids: str) -> dict[str, str]:
    view = ClusterView.of([network, *(node(id) for id in node_ids)])
    changes = allocate_slices(view)
    assert len(changes) <= 1
    after = changes[0].after if changes else network
    assert isinstance(after, Network)
    return after.slices


def test_each_node_gets_the_lowest_free_slice_after_the_first() -> None:
    assert slices(NETWORK, "b", "a") == {"a": "10.128.1.0/24", "b": "10.128.2.0/24"}


def test_a_slice_is_kept_and_that_of_a_node_which_left_is_given_again() -> None:
    held = replace(NETWORK, slices={"a": "10.128.1.0/24", "b": "10.128.2.0/24"})
    assert slices(held, "b", "c") == {"b": "10.128.2.0/24", "c": "10.128.1.0/24"}
    assert slices(held, "a", "b") == held.slices


def test_nothing_is_written_when_nothing_changes() -> None:
    held = replace(NETWORK, slices={"a": "10.128.1.0/24"})
    assert allocate_slices(ClusterView.of([held, node("a")])) == ()


def test_full_network_leaves_nodes_without_slices_with_a_message() -> None:
    small = replace(NETWORK, subnet="10.0.0.0/23", node_prefix=24)
    assert slices(small, "a", "b") == {"a": "10.0.1.0/24"}
    world = World(small, node("a", shares=128), node("b"), service(replicas=2))
    world.settle()
    assert world.slots_on() == {"a": [1]}
    assert world.task(2).status.message == (
        "no suitable node (1 node: no subnet of network default left for it;"
        " 1 node: insufficient shares)"
    )


def test_a_large_network_is_cut_quickly_and_without_doubles() -> None:
    ids = [f"n{number:04}" for number in range(1000)]
    given = slices(NETWORK, *ids)
    assert len(set(given.values())) == 1000
    assert given["n0999"] == "10.131.232.0/24"


def test_to_the_nth_slice_belongs_the_nth_slice_of_ipv6() -> None:
    both = replace(NETWORK, subnet6="fd00:1::/48")
    assert slice6(both, slices(both, "a")["a"]) == "fd00:1:0:1::/64"
    assert slice6(NETWORK, "10.128.1.0/24") == ""


def test_with_an_ip_range_the_slices_are_of_that() -> None:
    part = replace(NETWORK, subnet="10.9.0.0/16", ip_range="10.9.128.0/20", subnet6="fd00:1::/48")
    assert slices(part, "a", "b") == {"a": "10.9.129.0/24", "b": "10.9.130.0/24"}
    assert slice6(part, "10.9.130.0/24") == "fd00:1:0:2::/64"


def test_a_slice_in_which_a_spec_has_fixed_an_address_is_no_nodes() -> None:
    fixed = NetworkAttachment("default", ip=("10.128.1.9",))
    first = replace(task("c", 0), service_id="", spec=task_spec(networks=(fixed,)))
    sixth = NetworkAttachment("default", ip6=("fd00:1:0:2::9",))
    second = replace(task("d", 0), service_id="", spec=task_spec(networks=(sixth,)))
    both = replace(NETWORK, subnet6="fd00:1::/48")
    view = ClusterView.of([both, node("a"), first, second])
    (change,) = allocate_slices(view)
    assert isinstance(change.after, Network)
    assert change.after.slices == {"a": "10.128.3.0/24"}


def test_tasks_are_placed_in_the_pass_that_gives_their_node_its_slice() -> None:
    world = World(NETWORK, node("a"), service())
    plans = world.plan()
    assert [plan.reason for plan in plans] == [
        "networks: slices of nodes",
        "services: VIPs",
        "web: 1 new",
    ]
    assert world.task().status.state is TaskState.ASSIGNED
