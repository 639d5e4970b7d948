# SPDX-License-Identifier: Apache-2.0
"""`orc manager store`: the table, what to do about a full database, one member after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.pb import managers_pb2 as pb

Run = Callable[..., Result]
GIB = 1 << 30


def row(number: int, *, leader: bool = False, member: bool = True, **status: Any) -> Any:
    manager = {"id": f"abcdefghijkl{number}", "hostname": f"host{number}"}
    found = {"manager": manager, "leader": leader, "state": "ready"}
    if member:
        manager["member_id"] = f"a{number}"
        found["status"] = {
            "member_id": f"a{number}",
            "etcd_version": "3.5.16",
            "etcd_leader": leader,
            "raft_term": 4,
            "database_size": 2 * GIB,
            "database_used": GIB,
            "database_quota": 4 * GIB,
            **status,
        }
    return found


def listed(manager: Any, *rows: Any) -> Any:
    manager.script.answers["ListManagers"] = pb.ListManagersReply(managers=rows)
    return manager.script


def test_the_table_has_sizes_and_alarms_by_member(manager: Any, run: Run) -> None:
    alarms = [{"member_id": "a2", "kind": "NOSPACE"}]
    listed(
        manager, row(1, leader=True, alarms=alarms), row(2, alarms=alarms), row(3, alarms=alarms)
    )
    result = run("manager", "store", "status")
    assert result.exit_code == 0
    heading, first, second, third = result.stdout.splitlines()
    columns = "ID HOSTNAME STATUS ROLE SIZE IN USE QUOTA TERM LAG ALARMS"
    assert heading.split() == columns.split()
    for text in ("host1", "Ready", "leader", "2GiB", "1GiB", "4GiB"):
        assert text in first
    assert ["NOSPACE" in line for line in (first, second, third)] == [False, True, False]
    assert "The store is read-only" in result.stderr
    assert "orc manager store disarm" in result.stderr


def test_the_json_has_bytes(manager: Any, run: Run) -> None:
    listed(manager, row(1, leader=True))
    [found] = json.loads(run("manager", "store", "status", "--format", "json").stdout)
    promised = {"member": "a1", "role": "leader", "size": 2 * GIB, "used": GIB, "alarms": []}
    assert found.items() >= promised.items()


def test_all_members_are_defragmented_the_leaders_last(manager: Any, run: Run) -> None:
    script = listed(manager, row(1, leader=True), row(2), row(3))
    reply = pb.DefragmentStoreReply(before=2 * GIB, after=GIB, seconds=12.34)
    script.answers["DefragmentStore"] = reply
    result = run("manager", "store", "defrag")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"host{number}: 2GiB → 1GiB in 12.3 s" for number in (2, 3, 1)
    ]


def test_a_refusal_does_not_stop_the_others(manager: Any, run: Run) -> None:
    script = listed(manager, row(1), row(2))

    def answer(request: Any) -> Any:
        if request.manager == "host1":
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "not defragmented: host9 is down")
        return pb.DefragmentStoreReply(before=2, after=1)

    script.answers["DefragmentStore"] = answer
    result = run("manager", "store", "defrag", "host1", "host2")
    assert result.exit_code == 1
    assert result.stderr == "orc: not defragmented: host9 is down\n"
    assert result.stdout.startswith("host2: ")


def test_an_external_etcd_is_its_operators_concern(manager: Any, run: Run) -> None:
    listed(manager, row(1, member=False))
    result = run("manager", "store", "defrag")
    assert result.exit_code == 1
    assert "external etcd" in result.stderr


@pytest.mark.parametrize(("flags", "force"), [((), False), (("--force",), True)])
def test_disarming_prints_the_members(
    manager: Any, run: Run, flags: tuple[str, ...], force: bool
) -> None:
    alarm = pb.StoreAlarm(member_id="a2", kind="NOSPACE")
    manager.script.answers["DisarmStore"] = pb.DisarmStoreReply(alarms=[alarm])
    result = run("manager", "store", "disarm", *flags)
    assert (result.exit_code, result.stdout) == (0, "a2\n")
    assert manager.script.request("DisarmStore").force is force
