# SPDX-License-Identifier: Apache-2.0
"""Rolling updates: which tasks are replaced next, and whether the update has completed or failed.

A task is *outdated* when it has an older spec, or is on a node that is no longer eligible (drained,
or its constraints are no longer met). `parallelism` slots are in progress at a time; a slot has
arrived when its new task works: RUNNING and, with a health check, healthy (or COMPLETE). A new task
that fails is restarted with back-off and still counts as in progress, so that a broken spec takes
down no more than `parallelism` slots.

Stop first: a slot's old task is ordered to stop, and the slot is filled with the current spec once
it has. What must leave its node leaves at once, unless a drain limits that (`evictions`).

Start first: a new task is created beside the old one, which is ordered to stop when the new one
works. With a delay, the next batch starts that long after the last new task began to run, by that
task's own record.

**Outcome.** A new task that crashes (`restarts`) fails the update; a task lost with its node or its
agent does not count. A slot counts once, however often its task is retried, and is judged by its
tasks of the current version, so a new leader counts the same. With more than `max_failure_ratio` of
the slots failed, the policy's failure action is taken. A rollback is an update too, with its own
policy; it is not rolled back in turn. An update is complete when every slot has arrived and each
new task is stable. With canaries, it waits for promotion once that number of slots is updated.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.reconcile.evictions import enforce_drain_deadlines, may_evict_now
from orchestrator.manager.planning.reconcile.moves import advance_moves, is_being_moved
from orchestrator.manager.planning.reconcile.restarts import (
    STABLE,
    crashed,
    decide_restart,
    finished,
    stable_at,
)
from orchestrator.manager.planning.reconcile.spec_history import rolled_back
from orchestrator.manager.planning.slots import (
    Draft,
    Slot,
    Start,
    ended,
    is_current,
    placed,
    waits,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import FailureAction, ServiceMode, UpdateOrder
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task


def advance_status(service: Service, draft: Draft) -> Service:
    """The service with where its update stands now, and with an earlier spec if it is to be rolled
    back; it is what the draft is about from here on."""
    if not service.update.moving:
        return service
    after = _evaluate(service, draft)
    if after is not service:
        draft.service = after
    return after


def waits_for_promotion(service: Service) -> bool:
    """Whether only canaries are to be updated."""
    return bool(service.policy.canary) and not service.update.promoted


def _evaluate(service: Service, draft: Draft) -> Service:
    slots = draft.kept_slots()
    failed = [slot for slot in slots if _failed(service, slot)]
    too_many = len(failed) > service.policy.max_failure_ratio * len(slots)
    if too_many and (after := _after_failure(service, failed, len(slots), draft.now)) is not None:
        return after
    arrived = [slot for slot in slots if _arrived(service, slot)]
    if service.update.state is UpdateState.UPDATING and waits_for_promotion(service):
        if len(arrived) == len(slots):
            return _ended(service, UpdateState.COMPLETED, draft.now, "")
        if len(arrived) >= service.policy.canary and not _monitored(service, arrived, draft):
            message = f"{len(arrived)} of {len(slots)} replicas are updated"
            return _ended(service, UpdateState.CANARY, draft.now, message)
        return service
    if len(arrived) < len(slots) or _monitored(service, slots, draft):
        return service
    if service.update.state is UpdateState.ROLLING_BACK:
        return _ended(service, UpdateState.ROLLED_BACK, draft.now, service.update.message)
    return _ended(service, UpdateState.COMPLETED, draft.now, "")


def _after_failure(service: Service, failed: list[Slot], slots: int, now: float) -> Service | None:
    """The state of an update after failures; None: it continues."""
    reason = f"{len(failed)} of {slots} failed: {_reason(service, failed[0])}"
    back = service.update.state is UpdateState.ROLLING_BACK
    match service.policy.failure_action:
        case FailureAction.CONTINUE:
            return None
        case FailureAction.ROLLBACK if service.history and not back:
            return rolled_back(service, service.history[0], now, reason, failed=True)
        case _:
            state = UpdateState.ROLLBACK_PAUSED if back else UpdateState.PAUSED
            return _ended(service, state, now, reason)


def _ended(service: Service, state: UpdateState, now: float, message: str) -> Service:
    update = replace(service.update, state=state, finished_at=now, message=message)
    return replace(service, update=update)


def _failed(service: Service, slot: Slot) -> bool:
    return any(_fails(service, task) for task in slot.tasks)


def _fails(service: Service, task: Task) -> bool:
    return task.spec_version == service.spec_version and crashed(
        service, task, service.policy.monitor
    )


def _reason(service: Service, slot: Slot) -> str:
    newest = [task for task in slot.tasks if _fails(service, task)][-1]
    why = newest.status.message or f"exit status {newest.status.exit_code}"
    return f"{newest.name}: {why}"


def _arrived(service: Service, slot: Slot) -> bool:
    task = slot.runnable
    if task is None:
        return is_current(service, slot.newest) and finished(service, slot)
    alone = len(slot.live) == 1 and not slot.stopping
    return is_current(service, task) and task.status.works and alone


def _monitored(service: Service, slots: list[Slot], draft: Draft) -> bool:
    """Whether a new task is not stable yet; requeues the draft when it should be."""
    at = max(
        (
            stable_at(service, task, service.policy.monitor, draft.now)
            for slot in slots
            for task in slot.live
            if task.spec_version == service.spec_version and not ended(task)
        ),
        default=STABLE,
    )
    if at <= draft.now:
        return False
    draft.requeue_by(at)
    return True


_HALTED = (UpdateState.CANARY, UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)


def replace_outdated(view: ClusterView, service: Service, draft: Draft) -> None:
    """Stop the next outdated tasks, or make the next new ones beside them, as far as the
    service's update policy allows now."""
    start_first = starts_first(service)
    enforce_drain_deadlines(view, draft)
    advance_moves(view, service, draft)
    for slot in draft.kept_slots():
        if not is_being_moved(slot):
            _stop_superfluous(view, service, slot, draft)
    for slot in draft.kept_slots():
        task = slot.runnable
        if task is None or not outdated(view, service, task):
            continue
        if waits(task):  # nothing runs here, so nothing is lost by continuing at once
            draft.stop(task, TaskState.SHUTDOWN, "updated before it had a node")
        elif not start_first and is_current(service, task):
            if may_evict_now(view, task, draft):
                draft.stop(task, TaskState.SHUTDOWN)
        elif _failed_beside(view, service, slot) and not slot.stopping:
            _start_beside(service, slot, decide_restart(service, slot, draft.now), draft)
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
    old = _not_paused(service, slots, old)
    if not old:
        return
    # Those that do not work yet go first: they may never do so.
    old.sort(key=lambda slot: (slot.live[-1].status.works, slot.number))
    for slot in old[: _allowed_now(view, service, slots, draft)]:
        if start_first:
            _start_beside(service, slot, Start(), draft)
        else:
            draft.stop(slot.live[-1], TaskState.SHUTDOWN)


def _not_paused(service: Service, slots: list[Slot], old: list[Slot]) -> list[Slot]:
    """The outdated slots that the state of the update lets proceed: if it is paused, only those
    that must leave their nodes."""
    evicted = [slot for slot in old if is_current(service, slot.live[-1])]
    if service.update.state in _HALTED:
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
    return node is not None and not waits(task) and not is_eligible(node, service)


def _stop_superfluous(view: ClusterView, service: Service, slot: Slot, draft: Draft) -> None:
    """Of several tasks of a slot that may run, stop the superfluous ones: the old one once the new
    one works, and until then all but these two. If the old one is no longer outdated, since its
    node is eligible again, the new one is superfluous, unless only that one works."""
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
    # No replacement is needed beside a task that may stay, since its node is eligible again.
    return tried and starts_first(service) and task is not None and outdated(view, service, task)


def _allowed_now(view: ClusterView, service: Service, slots: list[Slot], draft: Draft) -> int:
    """How many more slots may be set on the way now; requeues the draft when time
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
        draft.requeue_by(resume)
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
