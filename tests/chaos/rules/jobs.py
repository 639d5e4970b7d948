# SPDX-License-Identifier: Apache-2.0
"""Every completion of a job counts exactly once."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History, Violation
from tests.chaos.rules.timeline import COMPLETE, Fields, replay

RULE = "jobs"

JOB_COMPLETE = 1
"""`JobState.JOB_COMPLETE`."""


def check(history: History) -> Iterator[Violation]:
    """What a run counts only grows, has a task behind each index, and is all of it at the end."""
    ended: dict[tuple[str, int, int], dict[str, int]] = {}
    """(job, run, index) → tasks that completed it → line."""
    counted: dict[tuple[str, int], tuple[frozenset[int], int]] = {}
    reported: set[object] = set()
    ran = {container.task for container in history.containers}
    for commit, change, _, store in replay(history):
        if change.deleted:
            continue
        fields = change.fields
        if change.kind == "tasks" and fields["job_run"] and fields["state"] == COMPLETE:
            index = (fields["service_id"], fields["job_run"], fields["slot"])
            tasks = ended.setdefault(index, {})
            tasks.setdefault(change.id, commit.line)
            if len(tasks) > 1 and _per_slot(store.get(("services", index[0]))):
                text = f"index {index[2]} of run {index[1]} completed by {', '.join(sorted(tasks))}"
                if index not in reported:
                    yield Violation(RULE, text, tuple(tasks.values()))
                reported.add(index)
            if ran and change.id not in ran and change.id not in reported:
                reported.add(change.id)
                text = f"task {change.id} of a job is complete, and no host ran it"
                yield Violation(RULE, text, (commit.line,))
        elif change.kind == "services":
            for run in fields["runs"]:
                yield from _run(change.id, fields, run, commit.line, counted, ended)


def _per_slot(service: Fields | None) -> bool:
    return service is None or service["mode"] == 2


def _run(
    job: str,
    fields: Fields,
    run: Fields,
    line: int,
    counted: dict[tuple[str, int], tuple[frozenset[int], int]],
    ended: dict[tuple[str, int, int], dict[str, int]],
) -> Iterator[Violation]:
    key = (job, int(run["number"]))
    now = indexes(run["completed"])
    before, at = counted.get(key, (frozenset(), line))
    counted[key] = (now, line)
    name = f"run {key[1]} of {fields['name']}"
    if lost := before - now:
        yield Violation(RULE, f"{name} no longer counts {sorted(lost)}", (at, line))
    if fields["mode"] != 2:
        return
    for index in sorted(now - before):
        if (job, key[1], index) not in ended:
            yield Violation(RULE, f"{name} counts {index}, which no task completed", (line,))
    if run["state"] == JOB_COMPLETE and len(now) != fields["replicas"]:
        text = f"{name} is complete with {len(now)} of {fields['replicas']} completions"
        yield Violation(RULE, text, (line,))


def indexes(text: str) -> frozenset[int]:
    """`1-3,5` as numbers."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
