"""What a user says of jobs alone: how their tasks follow one another, and when they run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from orchestrator.model.extensible import Extensible


class Overlap(IntEnum):
    """What becomes of a scheduled run while another is under way."""

    FORBID = 0
    """It is left out."""
    ALLOW = 1
    """It begins beside it."""
    REPLACE = 2
    """The other is stopped, and it begins when that has ended."""


class Missed(IntEnum):
    """What becomes of runs that were due while no manager was there."""

    ONCE = 0
    """One is made up for, however many there were."""
    SKIP = 1


@dataclass(frozen=True, slots=True)
class JobSpec(Extensible):
    """How a job's tasks follow one another; when it runs again."""

    parallelism: int = 0
    """Most tasks at a time; 0: all at once."""
    deadline: float = 0.0
    """Seconds that a run may take; 0: no limit."""
    schedule: str = ""
    """When a run begins, such as `0 2 * * *` (`model.cron`); empty: once."""
    time_zone: str = ""
    """By whose clock, such as `Europe/Vienna`; empty: UTC."""
    overlap: Overlap = Overlap.FORBID
    missed: Missed = Missed.ONCE
    history: int = 5
    """Runs that are remembered, with their tasks."""
    suspended: bool = False
    """The schedule begins no run."""
