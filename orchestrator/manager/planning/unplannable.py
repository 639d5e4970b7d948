# SPDX-License-Identifier: Apache-2.0
"""Services that cannot be planned, after an error or because objects cannot be decoded.

Neither delays any other service. Planning also excludes any service whose tasks might be among the
undecodable objects: a task that is merely unreadable may still run, and must not get a double.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.reconcile.job_runs import active_runs
from orchestrator.manager.planning.view import ClusterView, Quarantined
from orchestrator.model.nodes import NodeState
from orchestrator.model.services import Service
from orchestrator.model.specs import ServiceMode
from orchestrator.model.states import is_terminal

log = logging.getLogger(__name__)


class PlanningErrors:
    """Collects the errors of one pass, by service or standalone container."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        """Id → the first error, in one line."""

    @contextmanager
    def of(self, owner: str) -> Iterator[None]:
        """Record an exception of the block for `owner`, and suppress it."""
        try:
            yield
        except Exception as error:
            self.note(owner, error)

    def note(self, owner: str, error: Exception) -> None:
        """Record an exception for `owner`; in its handler."""
        log.exception("a service cannot be planned", extra={"service": owner})
        self.found.setdefault(owner, f"{type(error).__name__}: {error}")


def quarantined_services(view: ClusterView) -> Mapping[str, Quarantined]:
    """The services that must not be planned, by id, each with the object that is the reason."""
    held = {id: each for each in view.quarantined.values() for id in each.services}
    lost = [each for each in view.quarantined.values() if each.kind == "network"]
    if lost:
        # Their names are unknown, so any network that is missing may be one of them.
        for service in view.services.values():
            networks = (each.network for each in service.spec.task.networks)
            if any(view.network_by_name(name) is None for name in networks):
                held.setdefault(service.id, lost[0])
    return held


def incomplete_services(view: ClusterView) -> Iterable[Service]:
    """The services with fewer tasks than slots: a task that cannot be attributed may be theirs.

    A slot whose task has failed or waits for a node is not missing, for that task is known.
    """
    for service in view.services.values():
        tasks = view.tasks_of_service(service.id).values()
        if service.spec.mode.is_job:
            incomplete = bool(active_runs(service)) and all(
                is_terminal(t.status.state) for t in tasks
            )
        elif service.spec.mode is ServiceMode.GLOBAL:
            covered = {task.node_id for task in tasks}
            incomplete = any(
                node.state is not NodeState.DOWN
                and is_eligible(node, service)
                and node.id not in covered
                for node in view.nodes.values()
            )
        else:
            slots = {task.slot for task in tasks}
            incomplete = not slots.issuperset(range(1, service.replicas + 1))
        if incomplete and not service.removed:
            yield service
