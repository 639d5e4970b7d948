"""Rolling updates: which tasks stop now, so that others take their slots.

A task is *outdated* when it is of an older spec, or on a node that has no place for it any more (it
is drained, or no longer meets the constraints). `parallelism` slots are on the way at a time; a
slot has arrived when its new task works, which is RUNNING and, where that is probed, healthy (or
has done its work). A new task that fails is restarted with back-off and keeps its place among those
on the way, so that a spec which does not work takes down no more than `parallelism` slots.

Stop first: a slot's old task is told to end, and its slot is filled with the service's present
spec once it has. What must leave its node leaves it at once, all of it, unless a drain is told to
take less at a time (`drain`).

Start first: the new task is made beside the old one, which is told to end when the new one works.
Until then the old one is left alone, whatever becomes of the new one: such an update, or a drained
node, never makes less of the service than there was.

Nothing is stored of its progress but the tasks themselves (`rollout` says what becomes of it). With
a delay, the next batch starts that long after the last new task began to run, by that task's own
record.
"""

from __future__ import annotations

from orchestrator.manager.planning.constraints import welcome
from orchestrator.manager.planning.drain import keep_deadlines, must_leave
from orchestrator.manager.planning.restart import decide, finished
from orchestrator.manager.planning.rollout import waits_for_promotion
from orchestrator.manager.planning.slots import (
    Draft,
    Slot,
    Start,
    ended,
    is_current,
    placed,
    waits,
)
from orchestrator.manager.planning.views import ClusterView
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import ServiceMode, UpdateOrder
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

_STANDING = (UpdateState.CANARY, UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)


def advance(view: ClusterView, service: Service, draft: Draft) -> None:
    """Stop the next outdated tasks, or make the next new ones beside them, as far as the
    service's update policy allows now."""
    start_first = starts_first(service)
    keep_deadlines(view, draft)
    for slot in draft.kept_slots():
        _hand_over(view, service, slot, draft)
    for slot in draft.kept_slots():
        task = slot.runnable
        if task is None or not outdated(view, service, task):
            continue
        if waits(task):  # nothing runs here, so nothing is lost by going on at once
            draft.stop(task, TaskState.SHUTDOWN, "updated before it had a node")
        elif not start_first and is_current(service, task):
            if must_leave(view, task, draft):
                draft.stop(task, TaskState.SHUTDOWN)
        elif _failed_beside(view, service, slot) and not slot.stopping:
            _start_beside(service, slot, decide(service, slot, draft.now), draft)
    slots = draft.kept_slots()
    old = [
        slot
        for slot in slots
        if (task := slot.runnable) is not None
        and outdated(view, service, task)
        and not slot.stopping
        and not _failed_beside(view, service, slot)
        # What stops first and only has to leave its node has been seen to.
        and (start_first or not is_current(service, task))
    ]
    old = _allowed(service, slots, old)
    if not old:
        return
    # Those that do not work yet go first: they may never do so.
    old.sort(key=lambda slot: (slot.live[-1].status.works, slot.number))
    for slot in old[: _allowance(view, service, slots, draft)]:
        if start_first:
            _start_beside(service, slot, Start(), draft)
        else:
            draft.stop(slot.live[-1], TaskState.SHUTDOWN)


def _allowed(service: Service, slots: list[Slot], old: list[Slot]) -> list[Slot]:
    """Those of the outdated slots that the state of the update lets go: if it stands, only such as
    must leave their nodes, which is for another reason."""
    evicted = [slot for slot in old if is_current(service, slot.live[-1])]
    if service.update.state in _STANDING:
        return evicted
    if service.update.state is UpdateState.UPDATING and waits_for_promotion(service):
        begun = sum(slot.runnable is None or is_current(service, slot.newest) for slot in slots)
        others = [slot for slot in old if not is_current(service, slot.live[-1])]
        others.sort(key=lambda slot: (slot.live[-1].status.works, slot.number))
        return [*evicted, *others[: max(service.policy.canary - begun, 0)]]
    return old


def starts_first(service: Service) -> bool:
    """Whether a new task is made beside the old one."""
    return service.policy.order is UpdateOrder.START_FIRST


def outdated(view: ClusterView, service: Service, task: Task) -> bool:
    """Whether another task is to take its place."""
    if not is_current(service, task):
        return True
    node = view.nodes.get(task.node_id)
    return node is not None and not waits(task) and not welcome(node, service)


def _hand_over(view: ClusterView, service: Service, slot: Slot, draft: Draft) -> None:
    """Of several tasks of a slot that may run, stop those whose time is over: the old one when the
    new one works, and until then all but the two. If the old one is none any more, as its node has
    a place for it again, it is the new one that is one too many, unless only that one works."""
    live = slot.live
    if len(live) < 2:
        return
    new = [task for task in live if not outdated(view, service, task)]
    new = sorted(new, key=lambda task: (not task.status.works, task.created_at))[:1]
    old = [task for task in live if outdated(view, service, task)]
    old.sort(key=lambda task: (not task.status.works, task.created_at))
    keep = new if new and new[0].status.works else [*new, *old[:1]]
    for task in live:
        if task not in keep:
            draft.stop(task, TaskState.SHUTDOWN)


def _start_beside(service: Service, slot: Slot, start: Start | None, draft: Draft) -> None:
    if start is None:
        return
    if service.spec.mode is ServiceMode.GLOBAL:
        start = Start(start.not_before, start.attempt, start.message, slot.newest.node_id)
    draft.create(service, slot.number, start, slot)


def _failed_beside(view: ClusterView, service: Service, slot: Slot) -> bool:
    """Whether the newest task, made beside an old one, has ended, and is to be tried again."""
    newest, task = slot.newest, slot.runnable
    tried = is_current(service, newest) and ended(newest)
    # Beside one that may stay after all, since its node has a place for it again, none is wanted.
    return tried and starts_first(service) and task is not None and outdated(view, service, task)


def _allowance(view: ClusterView, service: Service, slots: list[Slot], draft: Draft) -> int:
    """How many more slots may be set on the way now; asks the draft to look again when time
    decides."""
    policy = service.policy
    most = policy.parallelism or len(slots)
    under_way = sum(_under_way(view, service, slot) for slot in slots)
    if policy.delay <= 0:
        return max(most - under_way, 0)
    if under_way:
        return 0
    resume = _last_arrival(service, slots, draft.now) + policy.delay
    if resume > draft.now:
        draft.look_again(resume)
        return 0
    return most


def _under_way(view: ClusterView, service: Service, slot: Slot) -> bool:
    if slot.stopping or len(slot.live) > 1 or _failed_beside(view, service, slot):
        return True
    task = slot.runnable
    if task is None:
        return not finished(service, slot)
    if not is_current(service, task) or task.status.works:
        return False
    if not waits(task):
        return True
    # A task that waits for room in a slot where nothing ran holds nothing up: the update may be
    # what makes room for it.
    return task.attempt > 0 or (len(slot.tasks) > 1 and placed(slot.tasks[-2]))


def _last_arrival(service: Service, slots: list[Slot], now: float) -> float:
    """When the latest task of the present spec began to run; never later than now, whatever the
    clocks of nodes say."""
    began = [
        task.status.started_at or task.status.at
        for slot in slots
        if (task := slot.runnable) is not None and is_current(service, task)
    ]
    return min(max(began, default=float("-inf")), now)
