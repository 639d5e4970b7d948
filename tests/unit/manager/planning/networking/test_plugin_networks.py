# SPDX-License-Identifier: Apache-2.0
"""Networks of plugins: defaults, which nodes support them, and their configuration for a node."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from builders import node, service, task, task_spec

from orchestrator.manager.dispatch.network_assignments import NetworkAssignments
from orchestrator.manager.operations.published_ports import with_effective_port_modes
from orchestrator.manager.planning.networking.addresses import AddressRefused, NewNetwork
from orchestrator.manager.planning.networking.allocation import allocate_slices, allocate_vips
from orchestrator.manager.planning.networking.plugin_networks import complete_plugin_network
from orchestrator.manager.planning.scheduling.scheduler import Placement, Unplaced, schedule
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Network
from orchestrator.model.specs import NetworkAttachment, PortSpec, PublishMode
from orchestrator.model.states import TaskState


def conflist(*plugins: dict[str, Any], name: str = "lan") -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": plugins})


BRIDGE = {"type": "bridge", "ipam": {"type": "host-local"}}
SLICED = {"type": "macvlan", "ipam": {"type": "host-local", "subnet": "{{.Node.Subnet}}"}}


def host(id: str, *plugins: str, features: tuple[str, ...] = ("cni",), **more: Any) -> Node:
    made = node(id)
    description = replace(made.description, cni_plugins=plugins, network_features=features, **more)
    return replace(made, description=description)


def chain(*plugins: dict[str, Any], **fields: Any) -> Network:
    text = conflist(*plugins) if plugins else ""
    return Network(id="lan-id", name="lan", driver="cni", conflist=text, **fields)


def completed(network: Network, *others: Any, subnets: tuple[str, ...] = ()) -> Network:
    return complete_plugin_network(ClusterView.of(others), NewNetwork(network, subnets))


def placed(*nodes: Node, network: Network) -> Placement | Unplaced:
    spec = task_spec(networks=(NetworkAttachment("lan"),))
    web = service(spec=spec)
    waiting = task("t", TaskState.PENDING, of=web)
    view = ClusterView.of([*nodes, network, web, waiting])
    (decision,) = schedule(view, [waiting], 0.0)
    return decision


def test_a_chain_gives_out_its_addresses_itself() -> None:
    network = completed(chain(BRIDGE))
    assert (network.subnet, network.vni, network.options) == ("", 0, {"scope": "local"})
    view = ClusterView.of([network, host("a")])
    assert allocate_slices(view) == ()
    web = service(spec=task_spec(networks=(NetworkAttachment("lan"),)))
    assert allocate_vips(ClusterView.of([network, web]), [web.id]) == ()


def test_the_scope_is_given_or_guessed_from_the_first_plugin() -> None:
    assert completed(chain({"type": "calico"})).options == {"scope": "global"}
    local = chain({"type": "calico"}, options={"scope": "local"})
    assert completed(local).options == {"scope": "local"}


def test_conflist_with_node_subnets_has_slices() -> None:
    lan = host("a", routes=("192.168.0.0/24",))
    network = completed(chain(SLICED), lan, subnets=("192.168.0.0/24",))
    assert (network.subnet, network.node_prefix) == ("192.168.0.0/24", 28)
    assert completed(chain(SLICED), lan).subnet == "10.0.0.0/16"
    (change,) = allocate_slices(ClusterView.of([network, lan]))
    assert isinstance(change.after, Network)
    assert change.after.slices == {"a": "192.168.0.16/28"}


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (chain(), "a CNI network needs --opt conflist=FILE"),
        (chain(BRIDGE, encrypted=True), "--opt encrypted is not ours to give a CNI network"),
        (chain(BRIDGE, internal=True), "--internal is not ours to give a CNI network"),
        (
            chain(BRIDGE, options={"mtu": "1400"}),
            "network option 'mtu' is unknown to a CNI network",
        ),
        (chain(BRIDGE, options={"scope": "all"}), "network option scope=all is neither local nor"),
        (chain(BRIDGE, ipam_driver="x"), "a CNI network has its ipam in the conflist"),
        (chain({"typ": "x"}), "conflist: plugins[0].type: it is missing; is 'typ' meant to be it?"),
        (replace(chain(), driver="overly"), "network driver 'overly' is unknown; did you mean 'ov"),
    ],
)
def test_invalid_plugin_networks_are_refused(network: Network, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        completed(network)


def test_unused_and_overlapping_subnets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--subnet is for a conflist that speaks of \{\{"):
        completed(chain(BRIDGE), subnets=("10.5.0.0/16",))
    other = Network(id="o", name="other", subnet="10.5.0.0/16")
    with pytest.raises(AddressRefused, match="overlaps network 'other'"):
        completed(chain(SLICED), other, subnets=("10.5.1.0/24",))
    with pytest.raises(ValueError, match="'lan' is what the plugins call network 'lan'"):
        completed(replace(chain(BRIDGE), name="two"), chain(BRIDGE))


def test_task_is_placed_where_its_plugins_are_or_lists_missing_ones() -> None:
    network = chain(BRIDGE)
    found = placed(host("a"), host("b", "bridge", "host-local"), network=network)
    assert isinstance(found, Placement)
    assert found.node.id == "b"
    waits = placed(host("a", "host-local"), host("b", features=()), network=network)
    assert isinstance(waits, Unplaced)
    assert waits.reason == (
        "unschedulable: no node meets its requirements (1 node: an agent that knows no CNI "
        "plugins, for network lan, on host-b; "
        "1 node: no CNI plugin bridge, for network lan, in /opt/cni/bin or /usr/lib/cni on host-a)"
    )


def test_a_node_gets_the_list_with_its_own_values() -> None:
    text = {
        "type": "macvlan",
        "master": "{{.Node.Labels.nic}}",
        "host": "{{.Node.Hostname}}",
        "range": "{{.Network.Subnet}} {{.Node.First}}-{{.Node.Last}}",
    }
    network = replace(
        chain(SLICED, text), subnet="10.5.0.0/16", slices={"a": "10.5.1.0/24", "b": "10.5.2.0/24"}
    )
    a = replace(host("a"), labels={"nic": "eth7"})
    web = service(spec=task_spec(networks=(NetworkAttachment("lan"),)))
    view = ClusterView.of([network, a, host("b"), web, task("t", node_id="a", of=web)])
    orders = NetworkAssignments()
    (order,) = orders.of(view, "a")
    plugins = json.loads(order.conflist)["plugins"]
    assert plugins[0]["ipam"]["subnet"] == "10.5.1.0/24"
    assert (plugins[1]["master"], plugins[1]["host"]) == ("eth7", "host-a")
    assert plugins[1]["range"] == "10.5.0.0/16 10.5.1.1-10.5.1.254"
    assert not order.peers


def test_its_ports_are_published_where_its_containers_are() -> None:
    ports = (PortSpec(8080, 80),)
    spec = task_spec(networks=(NetworkAttachment("lan"),))
    web = service(spec=replace(spec, ports=ports))
    view = ClusterView.of(
        [chain(BRIDGE), host("a"), host("b"), web, task("t", node_id="a", of=web)]
    )
    assert with_effective_port_modes(view, web.spec.task).ports[0].mode is PublishMode.HOST
    orders = NetworkAssignments()
    assert [order.name for order in orders.of(view, "a")] == ["lan"]
    assert orders.of(view, "b") == []
