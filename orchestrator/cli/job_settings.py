"""The flags of jobs that set one value of a spec, and what a job's spec starts from."""

from __future__ import annotations

import click

from orchestrator.cli.flag_types import DURATION, Parsed, Setting
from orchestrator.cli.update_settings import one_of
from orchestrator.model.jobrules import DEFAULT_RETRIES
from orchestrator.model.jobs import Missed, Overlap
from orchestrator.model.specs import (
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)

JOB_SETTINGS = (
    Setting(
        ("--max-concurrent", "--parallelism"),
        "job.parallelism",
        click.INT,
        "Most tasks of a job at a time (0: all at once).",
    ),
    Setting(
        ("--deadline",), "job.deadline", DURATION, "Time after which a job has failed (0: none)."
    ),
    Setting(
        ("--schedule",),
        "job.schedule",
        click.STRING,
        "When a job runs, such as '*/5 8-17 * * mon-fri' or @daily.",
    ),
    Setting(
        ("--time-zone",), "job.time_zone", click.STRING, "The schedule's, as Europe/Vienna (UTC)."
    ),
    Setting(
        ("--overlap",),
        "job.overlap",
        Parsed("forbid|allow|replace", one_of(Overlap)),
        "What becomes of a run while another is under way (forbid: it is left out).",
    ),
    Setting(
        ("--missed",),
        "job.missed",
        Parsed("once|skip", one_of(Missed)),
        "Whether one run makes up for those that were due while no manager was there (once).",
    ),
    Setting(
        ("--history",), "job.history", click.INT, "Runs that are remembered, with their tasks (5)."
    ),
)


def blank_spec(name: str, mode: ServiceMode) -> ServiceSpec:
    """The spec of who says nothing else."""
    if not mode.is_job:
        return ServiceSpec(name=name, mode=mode)
    restart = RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=DEFAULT_RETRIES)
    return ServiceSpec(name=name, mode=mode, task=TaskSpec(restart=restart))
