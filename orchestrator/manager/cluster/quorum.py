# SPDX-License-Identifier: Apache-2.0
"""Which changes of the etcd cluster's members keep a quorum. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Voter:
    """A voting member of the etcd cluster."""

    manager: str
    """Hostname or id of its manager."""
    member_id: str
    healthy: bool
    """Whether it answers now."""


def quorum_of(voters: int) -> int:
    """How many of that many voting members must be healthy for the cluster to write."""
    return voters // 2 + 1


def refusal_of_removal(voters: Iterable[Voter], member_id: str) -> str:
    """Why a member cannot be removed safely, with the numbers; empty if it can. A learner can
    always be removed."""
    before = list(voters)
    after = [each for each in before if each.member_id != member_id]
    if len(after) == len(before):
        return ""
    removed = next(each for each in before if each.member_id == member_id)
    if not after:
        return f"{removed.manager} is the only manager"
    healthy, needed = sum(each.healthy for each in after), quorum_of(len(after))
    if healthy >= needed:
        return ""
    down = ", ".join(sorted(each.manager for each in after if not each.healthy))
    return (
        f"without {removed.manager} there are {len(after)} managers, which need {needed} healthy "
        f"ones for a quorum, and {healthy} {'is' if healthy == 1 else 'are'} healthy (down: {down})"
    )
