"""Services with a number of replicas, and what every service's slots have in common.

The order of the steps matters: what is lost is given up first, so that its slots are seen to be
vacant; the number of slots comes before the update, so that nothing is updated that is about to
go; vacant slots are filled last, with the present spec.
"""

from __future__ import annotations

from collections import defaultdict

from orchestrator.manager.planning import reaper, rollout, update
from orchestrator.manager.planning.lost import give_up_lost
from orchestrator.manager.planning.restart import decide
from orchestrator.manager.planning.slots import Draft, Slot, Start, is_current, waits
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.services import Service
from orchestrator.model.states import TaskState


def reconcile_replicated(view: ClusterView, service: Service, draft: Draft) -> None:
    """Bring the service's tasks one step nearer to its spec."""
    give_up_lost(view, draft)
    _scale(service, draft)
    service = rollout.follow(service, draft)
    update.advance(view, service, draft)
    for slot in draft.kept_slots():
        if slot.vacant:
            start = (
                Start()
                if not is_current(service, slot.newest)
                else decide(service, slot, draft.now)
            )
            if start is not None:
                draft.create(service, slot.number, start, slot)
    reaper.reap(service, draft)


def _scale(service: Service, draft: Draft) -> None:
    kept = draft.kept_slots()
    missing = service.spec.replicas - len(kept)
    if missing > 0:
        known = draft.slots()
        for number in draft.free_numbers(draft.may_add(missing)):
            draft.create(service, number, Start(), known.get(number))
    elif missing < 0:
        for slot in leaving(kept, -missing):
            draft.abandon(slot)


def leaving(slots: list[Slot], count: int) -> list[Slot]:
    """The `count` slots that go first: those with nothing running, then those on the nodes with
    most tasks of the service, the newest task of such a node first.

    A slot's rank counts how full its node is once those before it have left, so that what stays
    is spread evenly.
    """
    by_node: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots:
        by_node[slot.newest.node_id if _stage(slot) >= _ON_NODE else ""].append(slot)
    ranked: list[tuple[tuple[int, int, float, int], Slot]] = []
    for node_id, on_node in by_node.items():
        on_node.sort(key=lambda slot: (_stage(slot), -slot.newest.created_at, -slot.number))
        for gone, slot in enumerate(on_node):
            fullness = len(on_node) - gone if node_id else 0
            rank = (_stage(slot), -fullness, -slot.newest.created_at, -slot.number)
            ranked.append((rank, slot))
    ranked.sort(key=lambda item: item[0])
    return [slot for _, slot in ranked[:count]]


_VACANT, _WAITING, _ON_NODE, _RUNNING = range(4)


def _stage(slot: Slot) -> int:
    """How far the slot's task has come, in the order in which slots may go."""
    task = slot.runnable
    if task is None:
        return _VACANT
    if waits(task):
        return _WAITING
    return _RUNNING if task.status.state is TaskState.RUNNING else _ON_NODE
