# SPDX-License-Identifier: Apache-2.0
"""Which claims of a node about its tasks and itself are accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import node, task, task_spec

from orchestrator.manager.planning.reports.claims import (
    LONGEST_TEXT,
    LONGEST_WORD,
    MOST_IMAGES,
    MOST_WORDS,
    Claim,
    FalseClaim,
    accept_reports,
    credible_description,
    is_hostname,
    orphan_changes,
    sane,
    sane_images,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.orphans import Orphan
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Image, Network
from orchestrator.model.specs import NetworkAttachment, Resources
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus

DEFAULT = Network(
    id="d",
    name="default",
    subnet="10.128.0.0/14",
    slices={"a": "10.128.1.0/24", "b": "10.128.2.0/24"},
)
BACK = Network(
    id="k",
    name="back",
    subnet="10.5.0.0/16",
    subnet6="fd00:5::/48",
    gateway="10.5.0.9",
    slices={"a": "10.5.1.0/24", "b": "10.5.2.0/24"},
)
PLUGIN = Network(id="p", name="lan", driver="cni", subnet="192.168.7.0/24", conflist="{}")
WIRE = Network(
    id="w",
    name="wire",
    driver="cni",
    subnet="10.66.0.0/16",
    slices={"a": "10.66.1.0/24"},
    conflist='{"plugins": [{"type": "macvlan", "ipam": {"rangeStart": "{{.Node.First}}"}}]}',
)


def stored(
    addresses: dict[str, str],
    addresses6: dict[str, str] | None = None,
    networks: tuple[NetworkAttachment, ...] = (),
    slot: int = 1,
) -> tuple[TaskStatus, list[FalseClaim]]:
    """What is stored of a status of a task on node a, and what was refused."""
    known = task("t", TaskState.STARTING, node_id="a", slot=slot, spec=task_spec(networks=networks))
    view = ClusterView.of([node("a"), node("b"), DEFAULT, BACK, PLUGIN, WIRE, known])
    status = TaskStatus(TaskState.RUNNING, at=1.0, addresses=addresses, addresses6=addresses6 or {})
    refused: list[FalseClaim] = []
    changes = accept_reports(view, "a", {"t": status}, 5.0, refused.append)
    after = view.evolve(changes).tasks["t"].status
    assert after.state is TaskState.RUNNING  # what it says besides counts
    return after, refused


ON_BACK = (NetworkAttachment("back"),)


@pytest.mark.parametrize("address", ["10.128.1.2", "10.128.1.254"], ids=["first", "last"])
def test_an_address_of_the_nodes_slice_is_taken(address: str) -> None:
    status, refused = stored({"default": address})
    assert (status.addresses, refused) == ({"default": address}, [])


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.128.2.7", "in no slice of the node"),
        ("10.128.0.5", "in no slice of the node"),
        ("203.0.113.9", "in no slice of the node"),
        ("fd00:5:0:1::2", "in no slice of the node"),
        ("10.128.1.1", "no container has this address"),
        ("10.128.1.0", "no container has this address"),
        ("10.128.1.255", "no container has this address"),
        ("elsewhere", "not an IP address"),
    ],
    ids=[
        *("another node's", "a VIP's", "outside", "the other family", "gateway"),
        *("the slice's own", "broadcast", "nonsense"),
    ],
)
def test_another_address_is_refused(address: str, reason: str) -> None:
    status, (refused,) = stored({"default": address})
    assert status.addresses == {}
    assert (refused.node_id, refused.kind) == ("a", Claim.TASK_ADDRESS)
    assert reason in refused.reason


@pytest.mark.parametrize(
    ("address", "believed"),
    [
        ("fd00:5:0:1::2", True),
        ("fd00:5:0:2::2", False),
        ("fd00:5:0:1::", False),
        ("fd00:5:0:1::9", False),
    ],
    ids=["own slice", "another node's slice", "the slice's own", "gateway"],
)
def test_ipv6_addresses_are_checked_by_slice(address: str, believed: bool) -> None:
    status, refused = stored({"back": "10.5.1.2"}, {"back": address}, ON_BACK)
    assert (status.addresses6 == {"back": address}) is believed
    assert status.addresses == {"back": "10.5.1.2"}
    assert len(refused) == (0 if believed else 1)


def test_a_task_has_no_address_in_a_network_that_it_is_not_on() -> None:
    status, (refused,) = stored({"default": "10.128.1.2", "back": "10.5.1.2"}, networks=ON_BACK)
    assert status.addresses == {"back": "10.5.1.2"}
    assert "not on this network" in refused.reason


def test_a_fixed_address_is_only_the_one_of_its_slot() -> None:
    fixed = (NetworkAttachment("back", ip=("10.5.0.20", "10.5.0.21")),)
    assert stored({"back": "10.5.0.21"}, networks=fixed, slot=2)[0].addresses
    for address in ("10.5.0.20", "10.5.1.2"):
        status, (refused,) = stored({"back": address}, networks=fixed, slot=2)
        assert status.addresses == {}
        assert "the address of the task is 10.5.0.21" in refused.reason


def test_plugins_assign_addresses_of_their_own() -> None:
    lan = (NetworkAttachment("lan"),)
    assert stored({"lan": "192.168.7.33"}, networks=lan)[0].addresses == {"lan": "192.168.7.33"}
    assert stored({"lan": ""}, networks=lan)[0].addresses == {"lan": ""}


def test_plugins_may_give_each_address_of_a_nodes_slice() -> None:
    """Such as the first one, which is the gateway's in networks of Orc's own driver."""
    wire = (NetworkAttachment("wire"),)
    assert stored({"wire": "10.66.1.1"}, networks=wire)[0].addresses == {"wire": "10.66.1.1"}
    status, (refused,) = stored({"wire": "10.66.2.1"}, networks=wire)
    assert status.addresses == {}
    assert refused.reason == "the address is in no slice of the node"


def test_statuses_of_other_nodes_tasks_are_refused_and_the_rest_counts() -> None:
    mine, other = task("m", node_id="a"), task("o", node_id="b")
    view = ClusterView.of([node("a"), node("b"), mine, other])
    failed = TaskStatus(TaskState.FAILED, at=1.0)
    refused: list[FalseClaim] = []
    changes = accept_reports(
        view, "a", {"gone": failed, "m": failed, "o": failed}, 5.0, refused.append
    )
    assert [change.subject.id for change in changes] == ["m"]
    assert [(each.kind, each.reason) for each in refused] == [(Claim.TASK, "the task is on node b")]


def test_texts_are_cut_to_length() -> None:
    known = task("t", node_id="a")
    view = ClusterView.of([node("a"), known])
    long = TaskStatus(TaskState.RUNNING, at=1.0, message="x" * (1 << 20), health_output="y" * 9999)
    status = view.evolve(accept_reports(view, "a", {"t": long}, 5.0)).tasks["t"].status
    assert (len(status.message), len(status.health_output)) == (LONGEST_TEXT, LONGEST_TEXT)


def test_times_are_numbers() -> None:
    known = task("t", node_id="a")
    view = ClusterView.of([node("a"), known])
    nan, endless = float("nan"), float("inf")
    odd = TaskStatus(TaskState.FAILED, at=nan, started_at=endless, finished_at=-endless)
    status = view.evolve(accept_reports(view, "a", {"t": odd}, 5.0)).tasks["t"].status
    assert (status.state, status.at) == (TaskState.FAILED, 0.0)
    assert (status.started_at, status.finished_at) == (0.0, 0.0)


def test_values_that_nothing_can_be_are_left_out_of_a_description() -> None:
    honest = NodeDescription(
        hostname="alpha",
        address="10.0.0.1",
        resources=Resources(4096, 8 << 30),
        labels={"zone": "a"},
        routes=("192.168.0.0/16", "fd00::/8"),
        path_mtu=1500,
        generic_resources={"gpu": "/dev/a,/dev/b", "license": "3"},
        features=("files",),
        blob_port=7423,
    )
    assert sane(honest) == honest
    odd = replace(
        honest,
        resources=Resources(-1, 1 << 62),
        labels={"zone": "a", "big": "x" * 9999},
        routes=("192.168.0.0/16", "nowhere", "0.0.0.0/0", "10.0.0.1/8", "fd00::/8"),
        path_mtu=1,
        generic_resources={"gpu": "/dev/a,/dev/b", "license": "3", "n": "9" * 99, "../x": "1"},
        features=("files", *(f"f{number}" for number in range(9999))),
        kernel="x" * (1 << 20),
        blob_port=1 << 20,
    )
    found = sane(odd)
    assert (found.routes, found.generic_resources) == (honest.routes, honest.generic_resources)
    assert (found.resources.shares, found.path_mtu, found.blob_port) == (0, 0, 0)
    assert found.labels == {"zone": "a"}
    assert len(found.features) == MOST_WORDS
    assert len(found.kernel) == LONGEST_WORD


def test_an_inventory_is_of_digests_and_bounded() -> None:
    image = Image(
        id="sha256:" + "a" * 64,
        labels={"tier": "db" * 999},
        command=("sh", "-c", "x" * 9999),
        size=7,
    )
    odd = replace(
        image,
        id="sha256:" + "b" * 64,
        labels={"k": "x" * (1 << 20)},
        indexes=("../x",),
        layers=tuple(map(str, range(9999))),
        created_at=float("nan"),
        size=-1,
    )
    one, two = sane_images([image, Image(id="../nodes/n1"), Image(), odd])
    assert one == image
    assert (two.labels, two.indexes, two.created_at, two.size) == ({}, (), 0.0, 0)
    assert len(two.layers) == MOST_WORDS
    many = (Image(id=f"sha256:{number:064x}") for number in range(MOST_IMAGES + 5))
    assert len(sane_images(many)) == MOST_IMAGES


# -- hostname and address ----------------------------------------------------------------------

A = replace(node("a"), description=NodeDescription(hostname="alpha", address="10.0.0.1"))
B = replace(node("b"), description=NodeDescription(hostname="beta", address="10.0.0.2"))


def described(
    hostname: str = "alpha", address: str = "10.0.0.1", peer: str = "", *others: Node, of: Node = A
) -> tuple[str, str, list[Claim]]:
    view = ClusterView.of([of, *(others or (B,))])
    refused: list[FalseClaim] = []
    claimed = NodeDescription(hostname=hostname, address=address, kernel="6.12")
    found = credible_description(view, of, claimed, peer, refused.append)
    assert found.kernel == "6.12"
    return found.hostname, found.address, [each.kind for each in refused]


def test_a_node_keeps_its_hostname_rather_than_take_anothers() -> None:
    assert described("gamma") == ("gamma", "10.0.0.1", [])
    assert described("beta") == ("alpha", "10.0.0.1", [Claim.HOSTNAME])
    down = replace(B, state=NodeState.DOWN)
    assert described("beta", "10.0.0.1", "", down) == ("alpha", "10.0.0.1", [Claim.HOSTNAME])
    assert described("x\x1b[2J") == ("alpha", "10.0.0.1", [Claim.HOSTNAME])


def test_a_new_address_is_where_the_session_comes_from() -> None:
    assert described(address="10.0.0.7", peer="10.0.0.7") == ("alpha", "10.0.0.7", [])
    refused = ("alpha", "10.0.0.1", [Claim.NODE_ADDRESS])
    assert described(address="10.0.0.7", peer="10.0.0.1") == refused
    assert described(address="10.0.0.7") == refused
    assert described(address="0.0.0.0", peer="0.0.0.0") == refused
    assert described(address="-") == refused


def test_the_first_address_may_differ_from_the_sessions() -> None:
    new = replace(A, description=replace(A.description, address=""))
    assert described(peer="192.0.2.1", of=new) == ("alpha", "10.0.0.1", [])
    refused = ("alpha", "", [Claim.NODE_ADDRESS])
    assert described(address="10.0.0.2", peer="192.0.2.1", of=new) == refused


def test_an_address_of_another_node_is_refused_unless_that_one_is_gone() -> None:
    refused = ("alpha", "10.0.0.1", [Claim.NODE_ADDRESS])
    assert described(address="10.0.0.2", peer="10.0.0.2") == refused
    down = replace(B, state=NodeState.DOWN)
    assert described("alpha", "10.0.0.2", "10.0.0.2", down) == ("alpha", "10.0.0.2", [])
    assert described("alpha", "10.0.0.2", "10.0.0.1", down) == refused


@pytest.mark.parametrize("text", ["host-1", "a", "web_1.example.org", "9"])
def test_hostnames(text: str) -> None:
    assert is_hostname(text)


@pytest.mark.parametrize("text", ["", "-a", "a b", "a\n", "ä", "a" * 254, "<b>", "a/b"])
def test_not_hostnames(text: str) -> None:
    assert not is_hostname(text)


def test_orphans_are_followed_as_their_node_reports_them() -> None:
    known = Orphan(id="t1", node_id="a", task=task("t1", node_id="a"), found_at=1.0, removing=True)
    gone = Orphan(id="t2", node_id="a", task=task("t2", node_id="a"))
    elsewhere = Orphan(id="t3", node_id="b", task=task("t3", node_id="b"))
    assigned = task("t4", node_id="a")
    view = ClusterView.of([node("a"), node("b"), known, gone, elsewhere, assigned])
    healthy = replace(known.task, status=replace(known.task.status, pid=7))
    found = task("t5", node_id="b", revision=9)
    false: list[FalseClaim] = []
    reported = [healthy, elsewhere.task, assigned, found, task("../t6")]
    changes = list(orphan_changes(view, "a", reported, 50.0, false.append))
    assert [each.before for each in changes] == [gone, known, None]
    assert [each.after for each in changes] == [
        None,
        replace(known, task=healthy),
        Orphan(id="t5", node_id="a", task=task("t5", node_id="a"), found_at=50.0),
    ]
    assert [(each.node_id, each.kind) for each in false] == [("a", Claim.TASK)]
    settled = view.evolve(changes)
    assert list(orphan_changes(settled, "a", [healthy, found], 60.0)) == []
