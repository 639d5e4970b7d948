# SPDX-License-Identifier: Apache-2.0
"""What several rules ask of a history: the store's content over time, which faults were when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tests.chaos.history import FOREVER, Change, Commit, History

Fields = Mapping[str, Any]
Store = dict[tuple[str, str], Fields]
"""(kind, id) → fields."""

RUNNING, COMPLETE = 512, 576
ORPHANED = 832
TERMINAL = frozenset({576, 640, 704, 768, ORPHANED})
"""Numbers of task states, as `TaskState` in types.proto has them. A rule that took them from the
product would follow its mistakes."""

NODE_READY, NODE_DOWN = 1, 2
MODE_REPLICATED, MODE_GLOBAL = 0, 1

Touch = Literal["kills", "cuts", "slows"]


def commits(history: History) -> list[Commit]:
    """Each revision once, as it was first delivered, in the order of revisions."""
    first: dict[int, Commit] = {}
    for commit in sorted(history.commits, key=lambda each: each.at):
        first.setdefault(commit.revision, commit)
    return [first[revision] for revision in sorted(first)]


def replay(history: History) -> Iterator[tuple[Commit, Change, Fields | None, Store]]:
    """Each change in order: its commit, itself, the fields before it, and the store after the whole
    commit."""
    store: Store = {}
    for commit in commits(history):
        before = [store.get((change.kind, change.id)) for change in commit.changes]
        for change in commit.changes:
            if change.deleted:
                store.pop((change.kind, change.id), None)
            else:
                store[change.kind, change.id] = change.fields
        for change, was in zip(commit.changes, before, strict=True):
            yield commit, change, was, store


def touched(
    history: History, host: str, how: tuple[Touch, ...], since: float, until: float, settle: float
) -> bool:
    """Whether a fault touched a host in one of these ways between two times; its effect lasts
    `settle` seconds longer than its cause."""
    return any(
        fault.began <= until and since <= fault.ended + settle
        for fault in history.faults
        if any(host in getattr(fault, each) for each in how)
    )


def led(history: History) -> list[tuple[float, float]]:
    """When a manager led: from each election to the deletion of the leader's key. All the time if
    the history has no election."""
    found: list[tuple[float, float]] = []
    since: float | None = None
    elected = False
    for commit in commits(history):
        for change in commit.changes:
            if change.kind != "leader":
                continue
            elected = True
            if since is not None:
                found.append((since, commit.at))
            since = None if change.deleted else commit.at
    if not elected:
        return [(0.0, FOREVER)]
    return [*found, (since, FOREVER)] if since is not None else found


def led_for(periods: list[tuple[float, float]], since: float, until: float) -> float:
    """Seconds between two times for which a manager led."""
    return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in periods)


def wants_to_run(task: Fields) -> bool:
    """Whether a task is to run and has not ended."""
    return task["desired"] <= RUNNING and task["state"] not in TERMINAL


def slot_of(task: Fields, service: Fields | None) -> tuple[object, ...]:
    """What at most one task at a time may be."""
    if service is not None and service["mode"] % 2 == MODE_GLOBAL:
        return (task["service_id"], task["node"], task["job_run"])
    return (task["service_id"], task["slot"], task["job_run"])
