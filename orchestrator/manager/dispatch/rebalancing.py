# SPDX-License-Identifier: Apache-2.0
"""Spreading sessions over managers: which manager takes over some of this one's (pure).

Agents choose a manager at random. After managers have joined or returned, the one with too many
sessions redirects a few of them at intervals, so that no manager gets many at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.manager.planning.view import ClusterView

INTERVAL = 2.0
"""Seconds between two redirections by one manager."""
SHARE = 20
"""A manager redirects one in so many of the sessions that it has too many, at least one."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Sessions that another manager is to take over."""

    address: str
    """HOST:PORT of that manager."""
    count: int


def handover(view: ClusterView, manager_id: str) -> Handover | None:
    """The sessions that this manager hands over now; None if it has at most one more than each of
    the managers that serve."""
    loads = Counter(record.manager_id for record in view.sessions.values() if not record.silent)
    serving = [
        manager
        for manager in view.managers.values()
        if manager.id in view.manager_presence and not manager.joining
    ]
    others = [manager for manager in serving if manager.id != manager_id]
    if not others:
        return None
    least = min(others, key=lambda manager: (loads[manager.id], manager.id))
    if loads[manager_id] - loads[least.id] < 2:
        return None
    fair = sum(loads[manager.id] for manager in serving) // len(serving)
    excess = min(loads[manager_id] - fair, fair - loads[least.id])
    return Handover(least.endpoint, max(1, excess // SHARE))
