"""Rolling updates: which tasks of an older spec stop now, so that new ones take their slots.

Stop first: a slot's old task is told to end, and its slot is filled with the service's present
spec once it has. `parallelism` slots are on the way at a time; a slot has arrived when its new
task works, which is RUNNING and, where that is probed, healthy (or has done its work). A new task
that fails is restarted with back-off and keeps its place among those on the way, so that a spec
which does not work takes down no more than `parallelism` slots.

Nothing is stored for an update but the tasks themselves. With a delay, the next batch starts
that long after the last new task began to run, by that task's own record.
"""

from __future__ import annotations

from orchestrator.manager.planning.restart import finished
from orchestrator.manager.planning.slots import Draft, Slot, ended, is_current, placed, waits
from orchestrator.model.objects import Service
from orchestrator.model.states import TaskState


def advance(service: Service, draft: Draft) -> None:
    """Stop the next old tasks, as far as the service's update policy allows now."""
    slots = draft.kept_slots()
    old = [
        task
        for slot in slots
        if (task := slot.runnable) is not None and not is_current(service, task)
    ]
    if not old:
        return
    for task in old:
        if waits(task):  # nothing runs here, so nothing is lost by going on at once
            draft.stop(task, TaskState.SHUTDOWN, "updated before it had a node")
    running = [task for task in old if not waits(task)]
    # Those that do not work yet go first: they may never do so.
    running.sort(key=lambda task: (task.status.works, task.slot))
    for task in running[: _allowance(service, slots, draft)]:
        draft.stop(task, TaskState.SHUTDOWN)


def _allowance(service: Service, slots: list[Slot], draft: Draft) -> int:
    """How many more slots may be vacated now; asks the draft to look again when time decides."""
    policy = service.spec.update
    most = policy.parallelism or len(slots)
    under_way = sum(_under_way(service, slot) for slot in slots)
    if policy.delay <= 0:
        return max(most - under_way, 0)
    if under_way:
        return 0
    resume = _last_arrival(service, slots, draft.now) + policy.delay
    if resume > draft.now:
        draft.look_again(resume)
        return 0
    return most


def _under_way(service: Service, slot: Slot) -> bool:
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
        if (task := slot.runnable) is not None and not ended(task) and is_current(service, task)
    ]
    return min(max(began, default=float("-inf")), now)
