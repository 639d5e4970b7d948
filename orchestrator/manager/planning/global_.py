"""Services with one task on each node that its operator and the service's constraints allow.

A node's slot is the one whose newest task is bound to it. A task that waits is bound to its node
already (it has a `node_id` while it is PENDING), and the scheduler considers no other.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.planning import reaper, rollout, update
from orchestrator.manager.planning.constraints import welcome
from orchestrator.manager.planning.lost import give_up_lost
from orchestrator.manager.planning.restart import decide
from orchestrator.manager.planning.slots import Draft, Start, is_current
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.services import Service


def reconcile_global(view: ClusterView, service: Service, draft: Draft) -> None:
    """Bring the service's tasks one step nearer to one on each node that may have it."""
    give_up_lost(view, draft)
    homes = {id for id, node in view.nodes.items() if welcome(node, service)}
    served: set[str] = set()
    for slot in draft.kept_slots():
        home = slot.newest.node_id
        if home not in homes or home in served:
            draft.abandon(slot)
        served.add(home)
    new = [
        id
        for id in sorted(homes - served)
        if view.nodes[id].state is NodeState.READY
        and view.nodes[id].availability is Availability.ACTIVE
    ]
    new = new[: draft.may_add(len(new))]
    known = draft.slots()
    for number, home in zip(draft.free_numbers(len(new)), new, strict=True):
        draft.create(service, number, Start(node_id=home), known.get(number))
    service = rollout.follow(service, draft)
    update.advance(view, service, draft)
    for slot in draft.kept_slots():
        home = slot.newest.node_id
        if not slot.vacant or view.nodes[home].state is NodeState.DOWN:
            continue
        current = is_current(service, slot.newest)
        start = decide(service, slot, draft.now) if current else Start()
        if start is not None:
            draft.create(service, slot.number, replace(start, node_id=home), slot)
    reaper.reap(service, draft)
