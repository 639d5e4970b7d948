# SPDX-License-Identifier: Apache-2.0
"""Networks in the assignments of nodes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from builders import node, service, task, task_spec

from orchestrator.agent.session.session import changed_network
from orchestrator.manager.dispatch.network_assignments import (
    NetworkAssignments,
    SentNetworks,
    fixed_addresses,
)
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.networks import ENCRYPTED
from orchestrator.model.nodes import Node, NodeDescription, NodeState, TunnelKey
from orchestrator.model.objects import Network
from orchestrator.model.specs import NetworkAttachment
from orchestrator.model.states import TaskState

DEFAULT = Network(
    id="n1",
    name="default",
    subnet="10.128.0.0/16",
    vni=4096,
    slices={"a": "10.128.1.0/24", "b": "10.128.2.0/24"},
)
BACK = Network(
    id="n2",
    name="back",
    subnet="10.132.0.0/16",
    subnet6="fd00:1::/48",
    vni=4097,
    slices={"a": "10.132.1.0/24", "b": "10.132.2.0/24"},
    options={"mtu": "1400"},
    internal=True,
)
HOSTS = [
    replace(node(id), description=replace(node(id).description, address=f"192.0.2.{number}"))
    for number, id in enumerate("ab", 1)
]


def on_back(name: str, *ip: str, ports: tuple[int, ...] = ()) -> Any:
    networks = (NetworkAttachment("back", ip=ip),)
    return service(name, spec=task_spec(networks=networks, ports=ports))


def names(orders: list[Any]) -> list[str]:
    return [order.name for order in orders]


def test_a_node_has_the_networks_of_its_tasks_and_the_default_one() -> None:
    orders, db = NetworkAssignments(), on_back("db")
    view = ClusterView.of([DEFAULT, BACK, *HOSTS, db, task("t", node_id="a", of=db)])
    assert names(orders.of(view, "a")) == ["default", "back"]
    assert names(orders.of(view, "b")) == ["default"]
    ended = task("t", TaskState.COMPLETE, node_id="a", of=db)
    view = view.evolve([Change(view.tasks["t"], ended)])
    assert names(orders.of(view, "a")) == ["default"]


def test_every_node_has_the_networks_of_published_ports() -> None:
    view = ClusterView.of([DEFAULT, BACK, *HOSTS, on_back("web", ports=(8080,))])
    assert names(NetworkAssignments().of(view, "b")) == ["default", "back"]


def test_sent_changes_describe_the_whole_network() -> None:
    db = on_back("db")
    view = ClusterView.of([DEFAULT, BACK, *HOSTS, db, task("t", node_id="b", of=db)])
    _, order = NetworkAssignments().of(view, "b")
    assert (order.vni, order.driver, order.internal) == (4097, "overlay", True)
    assert (order.cluster_cidr, order.subnet) == ("10.132.0.0/16", "10.132.2.0/24")
    assert (order.cluster_cidr6, order.subnet6) == ("fd00:1::/48", "fd00:1:0:2::/64")
    assert dict(order.options) == {"mtu": "1400"}
    (peer,) = order.peers
    assert (peer.subnet, peer.subnet6, peer.address) == (
        "10.132.1.0/24",
        "fd00:1:0:1::/64",
        "192.0.2.1",
    )


def test_the_gateway_has_the_same_place_in_each_nodes_part() -> None:
    db = on_back("db")
    back = replace(BACK, gateway="10.132.0.254")
    view = ClusterView.of([DEFAULT, back, *HOSTS, db, task("t", node_id="b", of=db)])
    _, order = NetworkAssignments().of(view, "b")
    assert order.gateway == "10.132.2.254"


def test_a_bridge_of_its_own_has_no_peers() -> None:
    db = on_back("db")
    view = ClusterView.of(
        [DEFAULT, replace(BACK, driver="bridge"), *HOSTS, db, task("t", node_id="b", of=db)]
    )
    _, order = NetworkAssignments().of(view, "b")
    assert (order.driver, list(order.peers)) == ("bridge", [])


def test_a_fixed_address_is_where_the_newest_task_of_it_is() -> None:
    db = on_back("db", "10.132.0.5", "10.132.0.6")
    old = task("t1", node_id="a", of=db, created_at=1.0)
    second = task("t2", node_id="a", of=db, slot=2, created_at=1.0)
    view = ClusterView.of([DEFAULT, BACK, *HOSTS, db, old, second])
    assert fixed_addresses(view) == {"back": {"a": ["10.132.0.5", "10.132.0.6"]}}
    new = task("t3", TaskState.ASSIGNED, node_id="b", of=db, created_at=2.0)
    view = view.evolve([Change(None, new)])
    assert fixed_addresses(view) == {"back": {"a": ["10.132.0.6"], "b": ["10.132.0.5"]}}
    orders = NetworkAssignments()
    (peer,) = orders.of(view, "b")[1].peers
    assert peer.addresses == ["10.132.0.6"]
    view = view.evolve([Change(second, replace(second, status=task("", TaskState.FAILED).status))])
    (peer,) = orders.of(view, "b")[1].peers
    assert not peer.addresses


def test_network_gets_the_smallest_path_mtu_between_nodes() -> None:
    orders, (one, two) = NetworkAssignments(), HOSTS
    view = ClusterView.of([DEFAULT, one, two])
    for node_id, size, least in (("a", 1500, 1500), ("b", 1400, 1400), ("b", 9000, 1500)):
        before = view.nodes[node_id]
        description = replace(before.description, path_mtu=size)
        view = view.evolve([Change(before, replace(before, description=description))])
        assert [orders.of(view, host)[0].path_mtu for host in "ab"] == [least, least]


def encrypting(host: Node, *keys: str, **more: Any) -> Node:
    found = tuple(TunnelKey(key, 51840 + number) for number, key in enumerate(keys))
    return replace(
        host,
        description=replace(host.description, network_features=(ENCRYPTED,), tunnel_keys=found),
        **more,
    )


def test_encrypted_network_is_sent_with_its_peers_keys() -> None:
    one, two = HOSTS
    secret, db = replace(BACK, encrypted=True), on_back("db")
    here, there = task("t", node_id="b", of=db), task("u", node_id="a", of=db)
    hosts = [encrypting(one, "old", "new"), encrypting(two, "mine", key_rotation=3)]
    view = ClusterView.of([DEFAULT, secret, *hosts, db, here, there])
    orders = NetworkAssignments()
    default, order = orders.of(view, "b")
    (peer,) = order.peers
    assert [(key.public, key.port) for key in peer.tunnel_keys] == [("old", 51840), ("new", 51841)]
    assert (order.encrypted, order.key_rotation) == (True, 3)
    assert orders.of(view, "a")[1].key_rotation == 0
    # A node that needs none gets none, and no changes of them.
    assert (default.key_rotation, [list(each.tunnel_keys) for each in default.peers]) == (0, [[]])
    view = view.evolve([Change(view.nodes["a"], encrypting(one, "new"))])
    assert orders.of(view, "b")[0] == default
    assert len(orders.of(view, "b")[1].peers[0].tunnel_keys) == 1


def test_node_that_cannot_encrypt_gets_no_encrypted_network() -> None:
    """Not even where every node has it, as with published ports."""
    one, two = HOSTS
    web = on_back("web", ports=(8080,))
    view = ClusterView.of([DEFAULT, replace(BACK, encrypted=True), encrypting(one), two, web])
    assert names(NetworkAssignments().of(view, "a")) == ["default", "back"]
    assert names(NetworkAssignments().of(view, "b")) == ["default"]


class Follower:
    """A node that takes changes of its networks, as an agent does."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.told = SentNetworks()
        self.networks: dict[str, Any] = {}
        self.peers_told = 0

    def follow(self, orders: NetworkAssignments, view: ClusterView, *, again: bool = False) -> None:
        changes, removed = orders.changes(view, self.node_id, self.told)
        for _ in range(1 + again):  # a change that is applied twice changes nothing more
            for change in changes:
                known = self.networks.get(change.network.id)
                self.networks[change.network.id] = changed_network(known, change)
        self.peers_told += sum(len(change.network.peers) for change in changes)
        for network_id in removed:
            del self.networks[network_id]

    def has(self, complete: list[Any]) -> bool:
        """Whether it has what a complete list says."""
        for order in complete:
            order.peers.sort(key=lambda peer: peer.subnet)
        return [self.networks[id] for id in sorted(self.networks)] == complete


def test_a_node_that_joins_costs_the_others_one_peer() -> None:
    default = replace(DEFAULT, slices={f"h{n}": f"10.128.{n}.0/24" for n in range(100)})
    hosts = [
        replace(node(f"h{n}"), description=NodeDescription(address=f"192.0.2.{n}"))
        for n in range(100)
    ]
    view, orders, follower = ClusterView.of([default, *hosts]), NetworkAssignments(), Follower("h0")
    follower.follow(orders, view)
    assert follower.peers_told == 100
    joined = replace(node("new"), description=NodeDescription(address="192.0.2.200"))
    with_it = replace(default, slices={**default.slices, "new": "10.128.200.0/24"})
    view = view.evolve([Change(None, joined), Change(default, with_it)])
    follower.follow(orders, view)
    assert follower.peers_told == 101
    changed = replace(hosts[1], state=NodeState.DOWN, message="silent")
    follower.follow(orders, view.evolve([Change(hosts[1], changed)]))
    assert follower.peers_told == 101


@pytest.mark.parametrize("seed", range(20))
def test_changes_add_up_to_the_complete_lists(seed: int) -> None:
    rng = random.Random(seed)
    ids = [f"h{number}" for number in range(6)]
    view, orders = ClusterView(), NetworkAssignments()
    followers = [Follower(id) for id in ids]
    services = [on_back("db"), on_back("fixed", "10.132.0.5"), on_back("web", ports=(80,))]
    for step in range(60):
        view = view.evolve(_something(rng, view, ids, services, step))
        for follower in followers:
            if follower.node_id in view.nodes and rng.random() < 0.7:
                follower.follow(orders, view, again=rng.random() < 0.3)
                assert follower.has(NetworkAssignments().of(view, follower.node_id))
                if rng.random() < 0.1:
                    follower.told, follower.networks = SentNetworks(), {}  # another session


def _something(
    rng: random.Random, view: ClusterView, ids: list[str], services: list[Any], step: int
) -> list[Change]:
    """Something that happens to nodes, networks or tasks."""
    id = rng.choice(ids)
    match rng.randrange(6):
        case 0 if id in view.nodes:
            return [Change(view.nodes[id], None)]
        case 0 | 1:
            before = view.nodes.get(id)
            description = NodeDescription(
                address=f"192.0.2.{rng.randrange(3)}" if rng.random() < 0.9 else "",
                path_mtu=rng.choice((0, 1400, 1500)),
                network_features=(ENCRYPTED,),
                tunnel_keys=(TunnelKey(str(rng.randrange(2)), 1),),
            )
            after = replace(node(id), description=description, key_rotation=rng.randrange(2))
            return [Change(before, after)]
        case 2:
            network = rng.choice((DEFAULT, BACK))
            known = view.networks.get(network.id)
            return [Change(known, None if known and rng.random() < 0.2 else network)]
        case 3:
            network = view.networks.get(rng.choice((DEFAULT.id, BACK.id))) or DEFAULT
            part = network.subnet.rpartition(".")[0].rpartition(".")[0]
            slices = {**network.slices, id: f"{part}.{1 + rng.randrange(40)}.0/24"}
            if rng.random() < 0.3:
                slices.pop(rng.choice(sorted(slices)))
            after = replace(
                network,
                slices=slices if len({*slices.values()}) == len(slices) else network.slices,
                encrypted=network.name == "back" and rng.random() < 0.3,
            )
            return [Change(view.networks.get(network.id), after)]
        case 4:
            of = rng.choice(services)
            return [Change(view.services.get(of.id), None if of.id in view.services else of)]
        case _:
            of = rng.choice(services)
            state = rng.choice((TaskState.RUNNING, TaskState.COMPLETE))
            made = task(f"t{rng.randrange(8)}", state, node_id=id, of=of, created_at=float(step))
            return [Change(view.tasks.get(made.id), made)]
