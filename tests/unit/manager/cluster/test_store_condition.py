# SPDX-License-Identifier: Apache-2.0
"""Which member is defragmented, when, and when a full store has room again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.manager.cluster.store_condition import (
    StoreMember,
    alarms_in,
    defragmentation_order,
    is_fragmented,
    is_full,
    refusal_of_defragmentation,
    store_members,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.etcd_maintenance import Alarm
from orchestrator.model.administration.managers import Manager
from orchestrator.pb import managers_pb2

MIB = 1 << 20


def member(name: str, size: int = 0, used: int = 0, *, healthy: bool = True) -> StoreMember:
    return StoreMember(name, name, healthy, size=size * MIB, used=used * MIB, quota=4096 * MIB)


def members(states: str) -> list[StoreMember]:
    """One for each letter: h is healthy, d down, b healthy and being defragmented, l a learner."""
    return [
        replace(
            member(f"m{number}", healthy=state != "d"),
            defragmenting=state == "b",
            learner=state == "l",
        )
        for number, state in enumerate(states, 1)
    ]


@pytest.mark.parametrize(
    ("size", "used", "fragmented"),
    [(1024, 512, True), (1024, 513, False), (4000, 1000, True), (300, 10, True), (255, 0, False)],
)
def test_half_of_a_large_file_must_be_free(size: int, used: int, fragmented: bool) -> None:
    assert is_fragmented(member("m1", size, used)) is fragmented


def test_a_member_with_an_unknown_quota_is_left_alone() -> None:
    unknown = StoreMember("m1", "m1", healthy=True, size=1 << 30, used=1)
    assert not is_fragmented(unknown)
    assert unknown.has_room


def test_the_largest_comes_first_and_the_drivers_own_last() -> None:
    found = [
        member("m1", 3000, 100),
        member("m2", 1000, 100),
        member("m3", 2000, 100),
        member("m4", 2000, 1900),
        member("m5", 4000, 100, healthy=False),
    ]
    assert defragmentation_order(found, "m1") == ["m3", "m2", "m1"]


@pytest.mark.parametrize(
    ("states", "manager", "allowed"),
    [
        ("h", "m1", True),
        ("hh", "m1", True),
        ("hd", "m1", False),
        ("hhh", "m2", True),
        ("hhd", "m1", False),
        ("hhd", "m3", False),
        ("hhb", "m1", False),
        ("hhb", "m3", False),
        ("hhhhd", "m1", True),
        ("hhhdd", "m1", False),
        ("hhl", "m1", True),
        ("hhdl", "m4", True),
    ],
)
def test_a_quorum_of_the_others_is_healthy(states: str, manager: str, allowed: bool) -> None:
    assert (refusal_of_defragmentation(members(states), manager) == "") is allowed


def test_the_refusal_says_which_members_are_down() -> None:
    assert refusal_of_defragmentation(members("hhd"), "m1") == (
        "without m1, 1 of 3 members would be healthy, and a quorum needs 2 (down: m3)"
    )


def test_there_is_room_below_nine_tenths_of_the_quota() -> None:
    assert member("m1", 3686).has_room
    assert not member("m1", 3687).has_room


def test_members_are_those_of_all_managers() -> None:
    alarm = managers_pb2.StoreAlarm(member_id="a1", kind="NOSPACE")
    status = managers_pb2.ManagerStatus(
        etcd_version="3.5.16",
        database_size=9,
        database_used=4,
        database_quota=16,
        alarms=[alarm],
    )
    view = ClusterView.of(Manager(id=id, hostname=f"host-{id}") for id in ("m2", "m1"))
    assert store_members(view, {"m2": status}) == [
        StoreMember("m1", "host-m1", healthy=False),
        StoreMember("m2", "host-m2", healthy=True, size=9, used=4, quota=16),
    ]
    assert alarms_in([status, status]) == [Alarm("a1", "NOSPACE")]
    assert is_full(alarms_in([status]))
    assert not is_full([Alarm("a1", "CORRUPT")])
