"""Where an update stands: whether it is done, has failed, or waits for a word.

A new task that crashes (`stability`) fails the update. A task that was lost with its node, or with
its agent, does not count. A slot counts
once, however often its task is tried again, and is told by its tasks of the present version, so a
new leader counts the same. With more than `max_failure_ratio` of the slots failed, the policy's
failure action is taken. A rollback is an update too, with the policy that the spec has for it; it
is not rolled back in turn.

An update is done when every slot has arrived (`update`) and each new task is stable. With canaries,
it waits to be promoted once so many slots have.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.manager.planning.history import rolled_back
from orchestrator.manager.planning.restart import finished
from orchestrator.manager.planning.slots import Draft, Slot, ended, is_current
from orchestrator.manager.planning.stability import STABLE, crashed, stable_at
from orchestrator.model.services import Service, UpdateState
from orchestrator.model.specs import FailureAction
from orchestrator.model.tasks import Task


def follow(service: Service, draft: Draft) -> Service:
    """The service with where its update stands now, and with an earlier spec if it is to be rolled
    back; it is what the draft is about from here on."""
    if not service.update.moving:
        return service
    after = _judged(service, draft)
    if after is not service:
        draft.service = after
    return after


def waits_for_promotion(service: Service) -> bool:
    """Whether only canaries are to be updated."""
    return bool(service.policy.canary) and not service.update.promoted


def _judged(service: Service, draft: Draft) -> Service:
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
    """What failures make of an update; None: it goes on."""
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
    """Whether a new task is not stable yet; asks the draft to look again when it should be."""
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
    draft.look_again(at)
    return True
