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
        "Maximum number of tasks of a job at a time; 0: all at once.",
        default="0",
    ),
    Setting(
        ("--deadline",),
        "job.deadline",
        DURATION,
        "Time after which a job has failed; 0s: no limit.",
        default="0s",
    ),
    Setting(
        ("--schedule",),
        "job.schedule",
        click.STRING,
        "When to run the job, such as '*/5 8-17 * * mon-fri' or @daily.",
        metavar="SCHEDULE",
    ),
    Setting(
        ("--time-zone",),
        "job.time_zone",
        click.STRING,
        "Time zone of the schedule, such as Europe/Vienna.",
        default="UTC",
        metavar="ZONE",
    ),
    Setting(
        ("--overlap",),
        "job.overlap",
        Parsed("forbid|allow|replace", one_of(Overlap)),
        "What to do when a run is due while another is in progress; forbid skips it.",
        default="forbid",
    ),
    Setting(
        ("--missed",),
        "job.missed",
        Parsed("once|skip", one_of(Missed)),
        "Whether to make up, with one run, for those missed while no manager was available.",
        default="once",
    ),
    Setting(
        ("--history",),
        "job.history",
        click.INT,
        "Number of runs to keep, with their tasks.",
        default="5",
    ),
)


def blank_spec(name: str, mode: ServiceMode) -> ServiceSpec:
    """The spec of who says nothing else."""
    if not mode.is_job:
        return ServiceSpec(name=name, mode=mode)
    restart = RestartPolicy(RestartCondition.ON_FAILURE, max_attempts=DEFAULT_RETRIES)
    return ServiceSpec(name=name, mode=mode, task=TaskSpec(restart=restart))
