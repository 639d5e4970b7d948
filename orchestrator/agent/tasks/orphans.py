# SPDX-License-Identifier: Apache-2.0
"""Orphans: running tasks that a cluster restored from a backup does not know.

When the cluster's incarnation has changed, the store may have less than the node runs. Running
tasks that the first full set lacks are held until a user removes them; nothing else stops them.
Which are held is recorded, so it outlasts the agent.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

_MOST_NAMED = 5


class Orphans:
    """The orphans among a node's tasks."""

    def __init__(self, db: StateDb, runners: Mapping[str, TaskRunner]) -> None:
        self._db = db
        self._runners = runners
        self._ids = db.orphans()
        self._leaving: set[str] = set()
        """Ids of orphans that are being removed."""

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._ids

    @property
    def text(self) -> str:
        """What a user should know about them; empty without any."""
        found = [self._runners[id].task for id in sorted(self._ids) if id in self._runners]
        if not found:
            return ""
        names = [f"{task.name} ({task.id})" for task in found[:_MOST_NAMED]]
        if len(found) > _MOST_NAMED:
            names.append(f"{len(found) - _MOST_NAMED} more")
        return (
            f"orphans, which the restored cluster does not know, run here: {', '.join(names)}; "
            "'orc orphan' adopts or removes them"
        )

    @property
    def tasks(self) -> list[Task]:
        """All orphans with their present statuses, those that are being removed included."""
        return [
            replace(runner.task, status=runner.status_with_addresses) for runner in self._found()
        ]

    @property
    def state(self) -> tuple[object, ...]:
        """What managers know of the orphans: they are reported when it changes."""
        return tuple(
            (runner.id, runner.status.state, runner.status.pid, runner.status.health)
            for runner in self._found()
        )

    def _found(self) -> list[TaskRunner]:
        if not self._ids and not self._leaving:
            return []
        ids = sorted(self._ids | self._leaving)
        return [self._runners[id] for id in ids if id in self._runners]

    def hold(self, assigned: Collection[str], incarnation: str) -> None:
        """Determine which running tasks are orphans, from the ids of a full set."""
        renewed = incarnation != self._db.incarnation()
        held = frozenset(
            id
            for id, runner in self._runners.items()
            if id not in assigned
            and (renewed or id in self._ids)
            and TaskState.STARTING <= runner.status.state <= TaskState.RUNNING
        )
        if renewed or held != self._ids:
            if new := held - self._ids:
                log.warning("tasks are held as orphans", extra={"tasks": " ".join(sorted(new))})
            self._ids = held
            self._db.put_orphans(incarnation, held)

    def release(self, ids: Collection[str]) -> None:
        """These tasks are orphans no more: they are assigned again, or are to be removed."""
        if not self._ids.isdisjoint(ids):
            self._ids -= frozenset(ids)
            self._db.put_orphans(self._db.incarnation(), self._ids)

    def ended(self, id: str) -> None:
        """This task was removed."""
        self._leaving.discard(id)
        self.release([id])

    def taken(self, times: int, tasks: Collection[str]) -> frozenset[str]:
        """Release and return the orphans to remove: those in `tasks`, or all if a user has asked
        for that more often than before."""
        asked = times > self._db.orphan_removals()
        if times != self._db.orphan_removals():
            self._db.put_orphan_removals(times)
        ids = self._ids if asked else self._ids & frozenset(tasks)
        self._leaving |= ids
        self.release(ids)
        return ids

    def with_networks(
        self, networks: Collection[dispatch_pb2.AssignedNetwork]
    ) -> list[dispatch_pb2.AssignedNetwork]:
        """The networks, and those on which only orphans are."""
        used = {
            attachment.network
            for id in self._ids
            if id in self._runners
            for attachment in self._runners[id].task.spec.networks
        }
        ids = {network.id for network in networks}
        kept = [
            network
            for network in self._db.networks()
            if network.name in used and network.id not in ids
        ]
        return [*networks, *kept]
