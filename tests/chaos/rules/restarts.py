# SPDX-License-Identifier: Apache-2.0
"""What no fault and no user touched goes on: containers, tasks and nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.history import FOREVER, History, Violation
from tests.chaos.rules.timeline import (
    MODE_GLOBAL,
    NODE_DOWN,
    NODE_READY,
    ORPHANED,
    RUNNING,
    TERMINAL,
    Fields,
    Store,
    replay,
    touched,
    wants_to_run,
)

RULE = "restarts"

SETTLE = 20.0
"""Seconds after the end of a fault during which it may still have effects on its hosts."""

REPORT = 1.0
"""Seconds by which a commit may be delivered after what it caused is seen on a host."""


def check(history: History) -> Iterator[Violation]:
    """All of this module's rules."""
    yield from _containers(history)
    yield from _orders(history)
    yield from _nodes(history)


def _containers(history: History) -> Iterator[Violation]:
    """A container ends because it was ordered to, or because a fault hit its host.

    A starved machine delivers a commit long after it was made. So what counts, too, is the order in
    the store: a container that ended by itself was reported so before its task was to stop.
    """
    stops: dict[str, float] = {}
    """Task → when it was first ordered to stop, given up or deleted."""
    ordered: dict[str, int] = {}
    """Task → the revision of that."""
    reported: dict[str, int] = {}
    """Task → the revision at which its agent first reported its end."""
    own_end: set[str] = set()
    known: set[str] = set()
    earliest, last, revision = 0.0, 0.0, 0
    for commit, change, _, _ in replay(history):
        if commit.revision != revision:
            # A watch that was interrupted delivers late: the commit is after the one before it.
            earliest, last, revision = last, commit.at, commit.revision
        if change.kind != "tasks":
            continue
        known.add(change.id)
        fields = change.fields
        if not change.deleted and (fields["job_run"] or not fields["service_id"]):
            own_end.add(change.id)  # it may end by itself
        if change.deleted or fields["desired"] > RUNNING:
            stops.setdefault(change.id, earliest)
            ordered.setdefault(change.id, revision)
        if not change.deleted and fields["state"] in TERMINAL - {ORPHANED}:
            reported.setdefault(change.id, revision)
    for container in history.containers:
        ended = container.ended
        if ended == FOREVER or container.task in own_end or container.task not in known:
            continue
        if stops.get(container.task, FOREVER) <= ended + REPORT:
            continue
        if ordered.get(container.task, FOREVER) < reported.get(container.task, 0):
            continue
        if touched(history, container.host, ("kills",), container.began, ended, SETTLE):
            continue
        text = (
            f"{container.name} (task {container.task}) ended on {container.host}, which no fault "
            "touched, and nothing had stopped it"
        )
        yield Violation(RULE, text, (container.line,))


def _orders(history: History) -> Iterator[Violation]:
    """A task is ordered to stop because its service changed, or its node cannot keep it."""
    wanted: dict[str, set[str]] = defaultdict(set)
    """Service → its tasks that wanted to run before the commit."""
    revision = 0
    pending: list[tuple[str, str, bool]] = []
    for commit, change, was, store in replay(history):
        if commit.revision != revision:
            for service, identity, wants in pending:
                (wanted[service].add if wants else wanted[service].discard)(identity)
            pending.clear()
            revision = commit.revision
        task = was if change.deleted else change.fields
        if change.kind != "tasks" or task is None or not task["service_id"] or task["job_run"]:
            continue
        wants = not change.deleted and wants_to_run(task)
        pending.append((task["service_id"], change.id, wants))
        if wants or was is None or not wants_to_run(was) or task["state"] in TERMINAL:
            continue
        if _has_reason(task, store, len(wanted[task["service_id"]])):
            continue
        text = (
            f"task {change.id} of {task['service']} was ordered to stop, though neither its "
            "service nor its node has changed"
        )
        yield Violation(RULE, text, (commit.line,))


def _has_reason(task: Fields, store: Store, wanted: int) -> bool:
    """`wanted`: how many tasks of its service wanted to run before."""
    service = store.get(("services", task["service_id"]))
    node = store.get(("nodes", task["node"]))
    if service is None or service["removed"] or not task["node"] or node is None:
        return True
    if node["availability"] != 0 or node["state"] == NODE_DOWN:
        return True
    if service["version"] != task["version"] or service["documents"] != task["documents"]:
        return True
    return bool(service["mode"] != MODE_GLOBAL and wanted > service["replicas"])


def _nodes(history: History) -> Iterator[Violation]:
    """A node is called down because a fault cut it off: a manager's failure takes no node down."""
    silence = history.run.node_timeout + SETTLE
    for commit, change, was, _ in replay(history):
        if change.kind != "nodes" or change.deleted or change.fields["state"] != NODE_DOWN:
            continue
        if was is None or was["state"] != NODE_READY:
            continue  # its agent has not connected yet, or it was down before
        host = change.fields["hostname"]
        at = commit.at
        if not touched(history, host, ("cuts", "kills"), at - silence, at, 0.0):
            text = f"{host} was called down, though no fault had cut it off"
            yield Violation(RULE, text, (commit.line,))
