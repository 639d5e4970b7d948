# SPDX-License-Identifier: Apache-2.0
"""What the web page shows of managers."""

from __future__ import annotations

from typing import Any

from orchestrator.manager.web.manager_table import manager_table
from orchestrator.pb import managers_pb2, types_pb2


def row(id: str, state: str = "ready", *, member: str = "", **status: Any) -> Any:
    found = managers_pb2.ManagerRow(
        manager=types_pb2.Manager(id=id, hostname=f"host-{id}", member_id=member), state=state
    )
    if status:
        found.status.CopyFrom(managers_pb2.ManagerStatus(member_id=member, **status))
    return found


def table(*rows: Any) -> dict[str, Any]:
    return manager_table(managers_pb2.ListManagersReply(managers=rows))


def test_the_quorum_is_of_voting_members() -> None:
    found = table(
        row("m1", member="a1", etcd_version="3.5.16", etcd_leader=True, raft_term=4),
        row("m2", member="a2", etcd_version="3.5.16"),
        row("m3", "down", member="a3"),
        row("m4", "joining", member="a4", etcd_version="3.5.16", learner=True),
    )
    assert (found["voters"], found["healthy"], found["quorum"]) == (3, 2, 2)
    assert [each["role"] for each in found["managers"]] == ["leader", "follower", "", "learner"]


def test_a_member_without_a_leader_is_not_healthy() -> None:
    found = table(row("m1", member="a1", etcd_version="3.5.16", etcd_errors=["no leader"]))
    assert (found["voters"], found["healthy"], found["quorum"]) == (1, 0, 1)


def test_an_alarm_belongs_to_the_member_that_raised_it() -> None:
    alarm = managers_pb2.StoreAlarm(member_id="a2", kind="NOSPACE")
    found = table(
        row("m1", member="a1", etcd_version="3.5.16", alarms=[alarm]),
        row("m2", member="a2", etcd_version="3.5.16", alarms=[alarm]),
    )
    assert [each["alarms"] for each in found["managers"]] == [[], ["NOSPACE"]]


def test_an_external_etcd_has_no_members_here() -> None:
    found = table(row("m1", version="1"))
    assert (found["voters"], found["managers"][0]["role"]) == (0, "external")
