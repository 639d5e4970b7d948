# SPDX-License-Identifier: Apache-2.0
"""Spreading sessions over managers: which manager takes over some of this one's (pure).

Agents choose a manager at random. After managers have joined or returned, the one with too many
sessions redirects a few of them at intervals, so that no manager gets many at once.

A manager that has just died counts as serving until its presence expires, and has no sessions: one
gets sessions only after it has had fewer for longer than that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.manager.cluster.registration import PRESENCE_TTL
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.managers import Manager

INTERVAL = 2.0
"""Seconds between two redirections by one manager."""
STEADY = 2 * PRESENCE_TTL
"""Seconds for which a manager must have had fewer sessions. Its lease may outlive it by more than
its time to live, see `store.leased_key`."""
SHARE = 20
"""A manager redirects one in so many of the sessions that it has too many, at least one."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Sessions that another manager is to take over."""

    address: str
    """HOST:PORT of that manager."""
    count: int


class Rebalancer:
    """What one manager hands over, and when."""

    def __init__(self, manager_id: str) -> None:
        self._manager_id = manager_id
        self._since: dict[str, float] = {}
        """Managers that have fewer sessions than this one → since when."""

    def handover(self, view: ClusterView, now: float) -> Handover | None:
        """The sessions to hand over at `now`, in monotonic seconds; None: none."""
        least = less_loaded(view, self._manager_id)
        self._since = {each.id: self._since.get(each.id, now) for each in least}
        steady = [each for each in least if now - self._since[each.id] >= STEADY]
        return handover(view, self._manager_id, steady)


def less_loaded(view: ClusterView, manager_id: str) -> list[Manager]:
    """The managers that serve and have at least two sessions less than this one, the one with the
    fewest first."""
    loads = _loads(view)
    found = [
        manager
        for manager in _serving(view)
        if manager.id != manager_id and loads[manager_id] - loads[manager.id] >= 2
    ]
    return sorted(found, key=lambda manager: (loads[manager.id], manager.id))


def handover(view: ClusterView, manager_id: str, to: Sequence[Manager]) -> Handover | None:
    """The sessions that this manager hands over to the first of these; None without any."""
    if not to:
        return None
    loads, serving = _loads(view), _serving(view)
    fair = sum(loads[manager.id] for manager in serving) // len(serving)
    excess = min(loads[manager_id] - fair, fair - loads[to[0].id])
    return Handover(to[0].endpoint, max(1, excess // SHARE))


def _loads(view: ClusterView) -> Counter[str]:
    return Counter(record.manager_id for record in view.sessions.values() if not record.silent)


def _serving(view: ClusterView) -> list[Manager]:
    return [
        manager
        for manager in view.managers.values()
        if manager.id in view.manager_presence and not manager.joining
    ]
