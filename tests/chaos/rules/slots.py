# SPDX-License-Identifier: Apache-2.0
"""At most one task per slot wants to run, and at most one container of it runs.

In the store that holds at every revision. On the hosts, a container of a task that was given up
(its node was called down) may go on until its node hears of it; that needs a fault of that node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

from tests.chaos.history import Container, Fault, History, Violation
from tests.chaos.rules.timeline import Fields, replay, slot_of, wants_to_run

RULE = "slots"

TOLERANCE = 1.0
"""Seconds for which two containers of a slot may be seen at once without a reason: the time in
which a busy host reports the end of one."""

SETTLE = 30.0
"""Seconds after the end of a fault within which a node that reaches a manager has stopped what was
replaced."""


def check(history: History) -> Iterator[Violation]:
    """All of this module's rules."""
    yield from _wanted(history)
    yield from _running(history)


def _wanted(history: History) -> Iterator[Violation]:
    """In the store, at every revision."""
    members: dict[tuple[object, ...], dict[str, int]] = defaultdict(dict)
    """Slot → its tasks that want to run → the line that says so."""
    places: dict[str, tuple[object, ...]] = {}
    reported: set[tuple[object, ...]] = set()
    last = -1
    changed: set[tuple[object, ...]] = set()
    starts_first: set[str] = set()

    def crowded() -> Iterator[Violation]:
        for slot in changed:
            most = 2 if slot[0] in starts_first else 1
            if len(members[slot]) > most and slot not in reported:
                reported.add(slot)
                names = ", ".join(sorted(members[slot]))
                text = f"{len(members[slot])} tasks of one slot want to run: {names}"
                yield Violation(RULE, text, tuple(sorted(members[slot].values())))
        changed.clear()

    for commit, change, _, store in replay(history):
        if commit.revision != last:
            yield from crowded()
            last = commit.revision
        if change.kind == "services" and change.fields.get("starts_first"):
            starts_first.add(change.id)
        if change.kind != "tasks":
            continue
        if old := places.pop(change.id, None):
            members[old].pop(change.id, None)
        task = change.fields
        if change.deleted or not task["service_id"] or not wants_to_run(task):
            continue
        slot = slot_of(task, store.get(("services", str(task["service_id"]))))
        places[change.id] = slot
        members[slot][change.id] = commit.line
        changed.add(slot)
    yield from crowded()


def _running(history: History) -> Iterator[Violation]:
    """On the hosts."""
    tasks: dict[str, Fields] = {}
    services: dict[str, Fields] = {}
    starts_first: set[str] = set()
    for _, change, _, _ in replay(history):
        if change.deleted:
            continue
        if change.kind == "tasks":
            tasks[change.id] = change.fields
        elif change.kind == "services":
            services[change.id] = change.fields
            if change.fields.get("starts_first"):
                starts_first.add(change.id)
    slots: dict[tuple[object, ...], list[Container]] = defaultdict(list)
    for container in history.containers:
        task = tasks.get(container.task)
        if task is None or not task["service_id"] or task["service_id"] in starts_first:
            continue
        slots[slot_of(task, services.get(task["service_id"]))].append(container)
    for containers in slots.values():
        for first, second in combinations(sorted(containers, key=lambda each: each.began), 2):
            overlap = min(first.ended, second.ended) - second.began
            if first.task == second.task or overlap <= TOLERANCE:
                continue
            if not any(
                _was_out_of_touch(history, each.host, first, second) for each in (first, second)
            ):
                text = (
                    f"{first.name} ran twice for {overlap:.1f} s: task {first.task} on "
                    f"{first.host} and task {second.task} on {second.host}"
                )
                yield Violation(RULE, text, (first.line, second.line))


def _was_out_of_touch(history: History, host: str, first: Container, second: Container) -> bool:
    """Whether a host may not have heard that a container was replaced: a fault cut it off, or took
    its power (it then starts again what it had), while these two ran."""
    until = min(first.ended, second.ended)
    return any(
        fault.began <= until and first.began <= _heard(history, fault)
        for fault in history.faults
        if host in fault.kills or host in fault.cuts
    )


def _heard(history: History, fault: Fault) -> float:
    """When the hosts of a fault have heard from a manager: if there is one only, after its own
    faults, too."""
    end = fault.ended + SETTLE
    if history.run.managers == 1:
        for other in sorted(history.faults, key=lambda each: each.began):
            if not (other.kills or other.cuts) and fault.began <= other.began <= end:
                end = max(end, other.ended + SETTLE)
    return end
