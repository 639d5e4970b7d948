# SPDX-License-Identifier: Apache-2.0
"""Jobs: services whose tasks run to completion.

A job's work is a number of indexes, or of nodes. For each there is one task at a time until one
has COMPLETEd; the slot of a task is its index. A run is complete when all are done, and fails when
one has failed more often than its restart policy allows, or the run has taken longer than its
deadline. At its end what still runs of it is stopped.

**Counted once.** Done indexes are written into the run, as a set. A set has each member once, so
repeated passes, other leaders and partial writes count nothing twice. A task is forgotten only when
the store has its index in the set.

**Retries.** `task.attempt` counts the failures of an index before this task, and `not_before` holds
a retry back, by the same back-off as a service's. What was lost with its node, stopped because its
node was drained, or not seen to end over a restart of its node is tried again at once and is no
failure of its own. So work may be done twice (how far a lost task came is unknown), but counts
once.

A delayed retry counts against the concurrency limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from orchestrator.manager.planning.eligibility import is_eligible
from orchestrator.manager.planning.reconcile import job_runs, job_schedules
from orchestrator.manager.planning.reconcile.evictions import evict_from_failed_nodes
from orchestrator.manager.planning.reconcile.job_queues import QueueRoom, queue_of
from orchestrator.manager.planning.reconcile.restarts import backoff
from orchestrator.manager.planning.slots import Draft, Slot, Start, ended, slots_of, waits
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.jobs import Overlap, format_indexes, parse_indexes
from orchestrator.model.nodes import Availability, NodeState
from orchestrator.model.services import JobRun, JobState, Service
from orchestrator.model.specs import RestartCondition, RestartPolicy
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_duration

INDEX_HISTORY = 5
"""Tasks remembered of an index."""
MAX_COMPLETED_TASKS = 1000
"""Maximum completed tasks that are remembered of a run, the newest ones."""

Slots = Mapping[int, Slot]


def reconcile_job(
    view: ClusterView, service: Service, draft: Draft, room: QueueRoom | None = None
) -> None:
    """Bring the job's runs one step nearer to their ends. `room`: how many tasks queued jobs may
    create."""
    evict_from_failed_nodes(view, draft)
    stored = {run.number for run in service.job.runs}
    service = job_schedules.begin_due_run(service, draft)
    tasks = _by_run(draft.tasks)
    runs = []
    for run in reversed(service.job.runs):
        newest = run is service.job.runs[0]
        work = _Work(
            view, job_runs.service_at_run(service, run), run, slots_of(tasks.get(run.number, {}))
        )
        starts = run.number in stored and not _blocked(view, service)
        runs.append(_advance(work, draft, room, newest=newest, starts=starts))
    runs = _remembered(list(reversed(runs)), draft.service_before, service.spec.job.history)
    job = replace(service.job, runs=tuple(runs))
    if job != service.job:
        service = replace(service, job=job)
    _reap(draft, service)
    if service is not draft.service:
        draft.service = service


def job_tasks(view: ClusterView, service: Service) -> int:
    """How many tasks of the job should run now."""
    most, wanted = service.spec.job.parallelism, 0
    for run in job_runs.active_runs(service):
        work = _Work(view, job_runs.service_at_run(service, run), run, {})
        left = sum(1 for _ in work.left(run))
        wanted += min(left, most) if most else left
    return wanted


def job_count(view: ClusterView, service: Service) -> tuple[int, int]:
    """Completions of the newest run, and how many there are to be; of a global job, as many as
    there are eligible nodes now."""
    run = service.job.runs[0] if service.job.runs else JobRun(version=service.spec_version)
    work = _Work(view, job_runs.service_at_run(service, run), run, {})
    if work.everywhere:
        return len(run.nodes), len({*run.nodes, *work.eligible_nodes()})
    return len(parse_indexes(run.completed)), work.service.spec.replicas


def queued_indexes(view: ClusterView, service: Service, run: JobRun) -> list[int]:
    """The indexes of a run for which there is no task yet."""
    tasks = _by_run(view.tasks_of_service(service.id)).get(run.number, {})
    work = _Work(view, job_runs.service_at_run(service, run), run, slots_of(tasks))
    return [number for number, _ in work.left(run)]


@dataclass(frozen=True, slots=True)
class _Work:
    """A run and the work that is left in it."""

    view: ClusterView
    service: Service
    """As it was when the run began."""
    run: JobRun
    slots: Slots
    """Of this run."""

    @property
    def everywhere(self) -> bool:
        return self.service.spec.mode.is_global

    def counted(self) -> JobRun:
        """The run with all that is done."""
        complete = [
            task
            for slot in self.slots.values()
            for task in slot.tasks
            if task.status.state is TaskState.COMPLETE
        ]
        if self.everywhere:
            nodes = {*self.run.nodes, *(task.node_id for task in complete)}
            return replace(self.run, nodes=tuple(sorted(nodes)))
        done = parse_indexes(self.run.completed)
        new = {task.slot for task in complete} - done
        return replace(self.run, completed=format_indexes(done | new)) if new else self.run

    def eligible_nodes(self) -> set[str]:
        """Ids of the nodes that a global job runs on now."""
        return {
            id
            for id, node in self.view.nodes.items()
            if node.state is NodeState.READY
            and node.availability is Availability.ACTIVE
            and is_eligible(node, self.service)
        }

    def done(self, run: JobRun) -> bool:
        """Whether nothing is left to do."""
        if self.everywhere:
            homes = self.eligible_nodes()
            return bool(homes) and homes <= set(run.nodes)
        return len(parse_indexes(run.completed)) >= self.service.spec.replicas

    def left(self, run: JobRun) -> Iterator[tuple[int, str]]:
        """The indexes that are not done and have no task, each with the only node that will do."""
        if not self.everywhere:
            done = parse_indexes(run.completed)
            for number in range(1, self.service.spec.replicas + 1):
                slot = self.slots.get(number)
                if number not in done and (slot is None or slot.vacant):
                    yield number, ""
            return
        known = {slot.newest.node_id: slot for slot in self.slots.values()}
        fresh = max(self.slots, default=0)
        for home in sorted(self.eligible_nodes() - set(run.nodes)):
            if (slot := known.get(home)) is None:
                fresh += 1
                yield fresh, home
            elif slot.vacant:
                yield slot.number, home


def _advance(
    work: _Work, draft: Draft, queues: QueueRoom | None, *, newest: bool, starts: bool
) -> JobRun:
    run, now = work.run, draft.now
    if run.state is JobState.COMPLETE and newest and _goes_on(work):
        run = replace(run, state=JobState.RUNNING, since=now, finished_at=0.0)
    if run.state is not JobState.RUNNING:
        _stop(work.slots, draft, run.message)
        return run
    run = replace(work, run=run).counted()
    deadline = work.service.spec.job.deadline
    if work.done(run):
        run = job_runs.end_run(run, JobState.COMPLETE, now)
    elif failed := _failure(work, run):
        run = job_runs.end_run(run, JobState.FAILED, now, failed)
    elif deadline and run.since + deadline <= now:
        reason = f"not done within its deadline of {format_duration(deadline)}"
        run = job_runs.end_run(run, JobState.FAILED, now, reason)
    if run.state is not JobState.RUNNING:
        _stop(work.slots, draft, run.message)
        return run
    if deadline:
        draft.requeue_by(run.since + deadline)
    _leave(work, draft)
    if starts:
        _start(work, run, draft, queues)
    return run


def _goes_on(work: _Work) -> bool:
    """Whether a global job got another eligible node since it completed. One with a schedule runs
    there with its next run."""
    if not work.everywhere or work.service.spec.job.schedule:
        return False
    return not work.eligible_nodes() <= set(work.run.nodes)


def _blocked(view: ClusterView, service: Service) -> bool:
    """Whether the run waits for tasks of others to end, which were stopped, perhaps for it. Those
    that this pass gives up count as well, since that may be written after what it starts."""
    if service.spec.job.overlap is Overlap.ALLOW:
        return False
    under_way = {each.number for each in job_runs.active_runs(service)}
    tasks = view.tasks_of_service(service.id).values()
    return any(not ended(task) and task.job_run not in under_way for task in tasks)


def _stop(slots: Slots, draft: Draft, reason: str) -> None:
    for slot in slots.values():
        for task in slot.tasks:
            draft.stop(task, TaskState.SHUTDOWN, reason)


def _leave(work: _Work, draft: Draft) -> None:
    """Stop what must leave its node; its index is tried elsewhere, or when the node is back."""
    for slot in work.slots.values():
        task = slot.newest
        node = work.view.nodes.get(task.node_id)
        bound = work.everywhere or not waits(task)
        if not ended(task) and node is not None and bound and not is_eligible(node, work.service):
            draft.stop(task, TaskState.SHUTDOWN, "its node is no longer eligible")


def _start(work: _Work, run: JobRun, draft: Draft, queues: QueueRoom | None) -> None:
    """Create tasks, up to the concurrency limit, and of a queued job no more than are tried."""
    policy, most = work.service.spec.task.restart, work.service.spec.job.parallelism
    at_work = sum(not ended(draft.tasks[task.id]) for task in _tasks(work.slots))
    room = None if not most else max(most - at_work, 0)
    left = list(islice(work.left(run), room))
    if queue_of(work.service) and queues is not None:
        left = left[: queues.take(work.service, len(left))]
    for number, home in left[: draft.may_add(len(left))]:
        slot = work.slots.get(number)
        start = Start() if slot is None else _again(policy, slot.newest, draft.now)
        draft.create(work.service, number, replace(start, node_id=home, job_run=run.number), slot)


def _again(policy: RestartPolicy, task: Task, now: float) -> Start:
    """How an index is retried after its task has ended."""
    if not _own_failure(task):
        return Start(attempt=task.attempt)
    attempt = task.attempt + 1
    delay = backoff(policy, attempt)
    of = f" of {policy.max_attempts}" if policy.max_attempts else ""
    message = f"retrying in {delay:g} s (retry {attempt}{of})" if delay > 0 else ""
    return Start(now + delay if delay > 0 else 0.0, attempt, message)


def _failure(work: _Work, run: JobRun) -> str:
    """Why the run has failed: of the indexes that are not to be tried again, the lowest one's last
    error. Empty if there is none."""
    policy, done = work.service.spec.task.restart, parse_indexes(run.completed)
    for slot in work.slots.values():
        task = slot.newest
        if slot.vacant and _own_failure(task) and slot.number not in done:
            tries = task.attempt + 1
            if policy.condition is RestartCondition.NONE or 0 < policy.max_attempts < tries:
                why = task.status.message or f"exit status {task.status.exit_code}"
                often = f" {tries} times" if tries > 1 else ""
                return f"{task.name} failed{often}: {why}"
    return ""


def _own_failure(task: Task) -> bool:
    return task.status.failed and task.desired_state <= TaskState.RUNNING


def _tasks(slots: Slots) -> Iterator[Task]:
    for slot in slots.values():
        yield from slot.tasks


def _by_run(tasks: Mapping[str, Task]) -> dict[int, dict[str, Task]]:
    runs: dict[int, dict[str, Task]] = {}
    for id, task in tasks.items():
        runs.setdefault(task.job_run, {})[id] = task
    return runs


def _remembered(runs: list[JobRun], before: Service | None, history: int) -> list[JobRun]:
    """The runs that are not to be forgotten. One that has ended is, once the store has that: else
    what is lost of this write could begin it anew."""
    old = before.job.runs if before is not None else ()
    over = {run.number for run in old if run.state is not JobState.RUNNING}
    return [
        run
        for age, run in enumerate(runs)
        if age < max(history, 1) or run.state is JobState.RUNNING or run.number not in over
    ]


def _reap(draft: Draft, service: Service) -> None:
    """Forget the tasks of forgotten runs, and the oldest of each index; of what is done, what the
    store has counted and is more than is kept."""
    before = draft.service_before.job.runs if draft.service_before else ()
    counted = {run.number: run for run in before}
    remembered = {run.number for run in service.job.runs}
    for number, tasks in _by_run(draft.tasks).items():
        if number not in remembered:
            for task in tasks.values():
                if ended(task):
                    draft.delete(task)
                else:
                    draft.stop(task, TaskState.REMOVE)
            continue
        done = []
        for slot in slots_of(tasks).values():
            for age, task in enumerate(reversed(slot.tasks)):
                if ended(task) and age >= INDEX_HISTORY:
                    draft.delete(task)
                elif task.status.state is TaskState.COMPLETE and _is_counted(
                    counted.get(number), task
                ):
                    done.append(task)
        done.sort(key=lambda task: (task.created_at, task.slot))
        for task in done[: max(len(done) - MAX_COMPLETED_TASKS, 0)]:
            draft.delete(task)


def _is_counted(run: JobRun | None, task: Task) -> bool:
    return run is not None and (
        task.node_id in run.nodes or task.slot in parse_indexes(run.completed)
    )
