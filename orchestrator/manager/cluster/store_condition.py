# SPDX-License-Identifier: Apache-2.0
"""The condition of the managers' etcd: which member to defragment, when that is safe, and whether
there is room to write again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.manager.cluster.quorum import quorum_of
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.etcd_maintenance import NOSPACE, Alarm

FREE_SHARE = 0.5
"""Share of free pages in a database's file from which it is defragmented."""

LEAST_FREE = 1 / 16
"""Free pages from which that is worth it, as a share of the quota."""

ROOM_BELOW = 0.9
"""Share of the quota below which a database has room for writes again."""


@dataclass(frozen=True, slots=True)
class StoreMember:
    """The etcd member of a manager, as its manager reports it."""

    manager: str
    """Id."""
    hostname: str
    healthy: bool
    """Whether it answers and has a leader."""
    learner: bool = False
    size: int = 0
    """Bytes of the database's file."""
    used: int = 0
    """Bytes without free pages."""
    quota: int = 0
    """Bytes of the file at which it refuses writes; 0: unknown, the manager is older."""
    defragmenting: bool = False

    @property
    def free(self) -> int:
        """Bytes of free pages."""
        return max(0, self.size - self.used)

    @property
    def has_room(self) -> bool:
        """Whether it accepts writes once no alarm is raised."""
        return not self.quota or self.size < ROOM_BELOW * self.quota


def store_members(view: ClusterView, statuses: Mapping[str, Any]) -> list[StoreMember]:
    """The members of all managers, by id. `statuses` are ManagerStatus messages by manager id, of
    those that answer."""
    found = []
    for manager in sorted(view.managers.values(), key=lambda each: each.id):
        status = statuses.get(manager.id)
        if status is None:
            found.append(
                StoreMember(manager.id, manager.hostname, healthy=False, learner=manager.joining)
            )
            continue
        found.append(
            StoreMember(
                manager.id,
                manager.hostname,
                healthy=bool(status.etcd_version) and not status.etcd_errors,
                learner=status.learner or manager.joining,
                size=status.database_size,
                used=status.database_used,
                quota=status.database_quota,
                defragmenting=status.defragmenting,
            )
        )
    return found


def alarms_in(statuses: Iterable[Any]) -> list[Alarm]:
    """The alarms that ManagerStatus messages report, without repetitions."""
    found = {(each.member_id, each.kind) for status in statuses for each in status.alarms}
    return [Alarm(*each) for each in sorted(found)]


def is_full(alarms: Iterable[Alarm]) -> bool:
    """Whether the alarms make the store read-only for lack of space."""
    return any(each.kind == NOSPACE for each in alarms)


def is_fragmented(member: StoreMember) -> bool:
    """Whether so much of the file is free pages that it is defragmented without a request."""
    return (
        member.free >= FREE_SHARE * member.size
        and member.free >= LEAST_FREE * member.quota
        and member.quota > 0
    )


def defragmentation_order(members: Sequence[StoreMember], driver: str) -> list[str]:
    """Ids of the managers whose members are fragmented, the largest file first, that of the driving
    manager last: the defragmentation blocks its own requests."""
    wanted = [each for each in members if each.healthy and is_fragmented(each)]
    wanted.sort(key=lambda each: (each.manager == driver, -each.size, each.manager))
    return [each.manager for each in wanted]


def refusal_of_defragmentation(members: Sequence[StoreMember], manager: str) -> str:
    """Why the member of a manager must not be defragmented now; empty if it may be.

    The other members must be a quorum of healthy ones without it. Where they cannot be (one or two
    members in all), all must be healthy.
    """
    member = next(each for each in members if each.manager == manager)
    if busy := next((each for each in members if each.defragmenting), None):
        return f"the member of {busy.hostname} is being defragmented; one at a time"
    if not member.healthy:
        return f"the member of {member.hostname} is not healthy"
    voters = [each for each in members if not each.learner]
    others = [each for each in voters if each is not member]
    healthy, needed = sum(each.healthy for each in others), quorum_of(len(voters))
    if member.learner or healthy >= needed or (len(voters) < 3 and healthy == len(others)):
        return ""
    down = ", ".join(sorted(each.hostname for each in others if not each.healthy))
    return (
        f"without {member.hostname}, {healthy} of {len(voters)} members would be healthy, and a "
        f"quorum needs {needed} (down: {down})"
    )
