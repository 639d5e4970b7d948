# SPDX-License-Identifier: Apache-2.0
"""What `orc cluster upgrade --check` finds in the way."""

from __future__ import annotations

import pytest

from orchestrator.cli.cluster.upgrade_check import (
    BackupFacts,
    ClusterFacts,
    Finding,
    ManagerFacts,
    NodeFacts,
    SchemaFacts,
    findings,
)
from orchestrator.model.compatibility.agent_features import AGENT_FEATURES
from orchestrator.model.compatibility.releases import within_skew

MANAGER = ManagerFacts("manager1", "0.1.0", etcd_member=True)
NODE = NodeFacts("node1", "0.1.0", features=AGENT_FEATURES)
THREE = tuple(ManagerFacts(f"manager{n}", "0.2.0", etcd_member=True) for n in (1, 2, 3))


def checked(cluster: ClusterFacts, target: str) -> list[Finding]:
    """The findings, each of which has a remedy."""
    found = findings(cluster, target)
    assert all(each.remedy for each in found), found
    return found


def blocking(cluster: ClusterFacts, target: str = "0.2.0") -> list[str]:
    return [f"{each.subject}: {each.text}" for each in checked(cluster, target) if each.blocking]


def notes(cluster: ClusterFacts, target: str = "0.2.0") -> list[str]:
    found = checked(cluster, target)
    return [f"{each.subject}: {each.text}" for each in found if not each.blocking]


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        ("0.1.0", "0.2.0.dev0", True),
        ("0.2.0rc1", "0.1.7", True),
        ("0.1.0", "0.3.0", False),
        ("0.9.0", "1.0.0", False),
        ("", "0.1.0", False),
        ("0.10.0", "0.1.0", False),
    ],
)
def test_versions_may_differ_by_one_minor_release(one: str, other: str, fits: bool) -> None:
    assert within_skew(one, other) is within_skew(other, one) is fits


def test_nothing_blocks_the_upgrade_of_a_healthy_cluster() -> None:
    assert blocking(ClusterFacts((MANAGER,), (NODE,))) == []
    assert findings(ClusterFacts(THREE, (NODE,)), "0.2.0") == []


def test_one_manager_interrupts_commands() -> None:
    assert notes(ClusterFacts((MANAGER,), (NODE,))) == [
        "quorum: one manager: no command is served while it restarts; containers are not affected"
    ]


def test_hosts_more_than_one_minor_release_apart_block_the_upgrade() -> None:
    found = blocking(ClusterFacts((MANAGER,), (NODE,)), "0.3.0")
    assert found == [
        f"{host}: has version 0.1.0, more than 1 minor release from 0.3.0"
        for host in ("manager manager1", "node node1")
    ]


def test_host_of_an_older_release_is_upgraded_first() -> None:
    behind = NodeFacts("node2", "0.1.0", features=AGENT_FEATURES)
    ahead = tuple(ManagerFacts(f"manager{n}", "0.3.0", etcd_member=True) for n in (1, 2, 3))
    found = blocking(ClusterFacts(ahead, (behind,)), "0.2.0")
    assert found == [
        "node node2: has version 0.1.0, more than 1 minor release from 0.3.0, which the cluster "
        "already has"
    ]


def test_quorum_without_margin_blocks_the_upgrade() -> None:
    down = ManagerFacts("manager3", "0.2.0", state="down", reason="lost", etcd_member=True)
    assert blocking(ClusterFacts((*THREE[:2], down), ())) == [
        "manager manager3: is down: lost",
        "quorum: 2 of 3 etcd members are healthy, and 2 are needed: none can be restarted without "
        "an interruption",
    ]


def test_down_nodes_block_the_upgrade() -> None:
    down = [NodeFacts(f"node{n}", "0.2.0", "down", AGENT_FEATURES) for n in range(7)]
    [found] = blocking(ClusterFacts(THREE, tuple(down)))
    assert found == "nodes node0, node1, node2, node3, node4 and 2 more: down"


def test_a_schema_that_is_not_final_can_be_finalized() -> None:
    waiting = SchemaFacts(version=2, requested=1, finalized=1, known=2)
    [found] = findings(ClusterFacts(THREE, (), waiting), "0.2.0")
    assert not found.blocking
    assert "orc cluster upgrade --finalize" in found.remedy
    running = SchemaFacts(version=2, requested=2, finalized=1, known=2)
    assert blocking(ClusterFacts(THREE, (), running)) == ["schema: version 2 is being finalized"]


def test_features_wait_for_older_hosts() -> None:
    newer = ManagerFacts("m2", "0.2.0", features=("schema-1", "schema-2"), etcd_member=True)
    older = ManagerFacts("m1", "0.1.0", features=("schema-1",), etcd_member=True)
    node = NodeFacts("node1", "0.1.0", features=AGENT_FEATURES[1:])
    found = notes(ClusterFacts((newer, older, newer), (node,)))
    assert "feature schema-2: off until manager m1 is upgraded" in found
    assert any("tasks that need it are not placed on node node1" in each for each in found)


def test_undecodable_objects_block_the_upgrade_after_the_managers() -> None:
    keys = ("/orc/novelties/x",)
    assert blocking(ClusterFacts(THREE, (), undecodable=keys)) == [
        "store: objects cannot be decoded: /orc/novelties/x"
    ]
    assert blocking(ClusterFacts((MANAGER,), (), undecodable=keys)) == []


def test_a_release_that_knows_one_manager_is_returned_to_with_one() -> None:
    one = ManagerFacts("manager1", "0.2.0", etcd_member=True)
    assert blocking(ClusterFacts((one,), (NODE,)), "0.1.0") == []
    assert blocking(ClusterFacts(THREE, (NODE,)), "0.1.0") == [
        "managers: 3, and release 0.1.0 knows only one"
    ]
    assert blocking(ClusterFacts(THREE, (NODE,)), "0.2.0") == []


def test_a_return_is_noted_that_a_final_schema_may_prevent() -> None:
    final = SchemaFacts(version=2, requested=2, finalized=2, known=2)
    later = tuple(ManagerFacts(f"m{n}", "0.4.0", etcd_member=True) for n in (1, 2, 3))
    [found] = notes(ClusterFacts(later, (), final), "0.3.0")
    assert found.startswith("schema: version 2 is final: managers of a release that does not know")
    assert notes(ClusterFacts(later, (), final), "0.4.0") == []


def test_updates_in_progress_are_noted() -> None:
    assert notes(ClusterFacts(THREE, (), updating=("web",))) == [
        "services web: are being updated: an update pauses while the leader restarts"
    ]


@pytest.mark.parametrize(
    ("backups", "wanted"),
    [
        (BackupFacts(3600.0), []),
        (BackupFacts(None), ["backup: there is none since this cluster's managers began"]),
        (BackupFacts(72 * 3600.0), ["backup: the newest is of 3 days ago"]),
        (
            BackupFacts(60.0, ("manager2",)),
            ["backup: the last scheduled one failed on manager manager2"],
        ),
    ],
)
def test_an_old_or_failed_backup_is_noted(backups: BackupFacts, wanted: list[str]) -> None:
    assert notes(ClusterFacts(THREE, (NODE,), backups=backups)) == wanted
