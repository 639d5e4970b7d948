# SPDX-License-Identifier: Apache-2.0
"""A cluster with one job, for the tests of jobs and schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from builders import NOW, World, node, task_spec

from orchestrator.manager.planning.reconcile import job_runs
from orchestrator.manager.planning.reconcile.spec_history import with_spec
from orchestrator.model.jobs import JobSpec, parse_indexes
from orchestrator.model.nodes import Node
from orchestrator.model.services import JobRun, JobState, Service
from orchestrator.model.specs import RestartCondition, RestartPolicy, ServiceMode, ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

PENDING, ASSIGNED, RUNNING = TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING
COMPLETE, FAILED, SHUTDOWN = TaskState.COMPLETE, TaskState.FAILED, TaskState.SHUTDOWN
ORPHANED = TaskState.ORPHANED


class JobWorld(World):
    """A world with the job `work` in it, and what happens to its tasks."""

    @staticmethod
    def of(
        completions: int = 1,
        *,
        nodes: tuple[Node, ...] = (),
        everywhere: bool = False,
        retries: int = 2,
        delay: float = 0.0,
        **fields: Any,
    ) -> JobWorld:
        restart = RestartPolicy(RestartCondition.ON_FAILURE, delay=delay, max_attempts=retries)
        if not retries:
            restart = replace(restart, condition=RestartCondition.NONE)
        spec = ServiceSpec(
            name="work",
            mode=ServiceMode.GLOBAL_JOB if everywhere else ServiceMode.REPLICATED_JOB,
            replicas=completions,
            task=task_spec(restart=restart),
            job=JobSpec(**fields),
        )
        service = job_runs.with_first_run(Service(id="work-id", spec=spec, created_at=NOW))
        world = JobWorld(*(nodes or (node("a"), node("b"))), service)
        world.settle()
        return world

    @property
    def job(self) -> Service:
        return self.view.services["work-id"]

    @property
    def runs(self) -> tuple[JobRun, ...]:
        return self.job.job.runs

    @property
    def states(self) -> list[tuple[int, JobState]]:
        """Number and state of each run, the newest first."""
        return [(run.number, run.state) for run in self.runs]

    @property
    def done(self) -> set[int]:
        """The indexes that the newest run has counted."""
        return set(parse_indexes(self.runs[0].completed))

    def live(self, run: int = 0) -> list[int]:
        """Indexes of the tasks (of a run) that have not ended."""
        return [
            item.slot
            for item in self.tasks()
            if item.status.state < COMPLETE and run in (0, item.job_run)
        ]

    def newest(self, index: int = 1) -> Task:
        tasks = [item for item in self.tasks() if item.slot == index]
        return max(tasks, key=lambda item: (item.job_run, item.created_at))

    def end(self, index: int, state: TaskState = COMPLETE, **fields: Any) -> None:
        """The newest task of an index ends, and the planner has its say."""
        if self.newest(index).status.state < RUNNING:
            self.report(self.newest(index), RUNNING)
        self.report(self.newest(index), state, **fields)
        self.settle()

    def change(self, **fields: Any) -> None:
        """A user gives the job another spec."""
        job = self.job
        self.put(with_spec(job, replace(job.spec, **fields), job.image_digest, self.now))
        self.settle()
