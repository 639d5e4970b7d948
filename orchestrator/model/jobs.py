# SPDX-License-Identifier: Apache-2.0
"""Jobs: concurrency, deadline and schedule of a job's spec, and sets of its indexes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

from orchestrator.model.extensible import Extensible


class Overlap(IntEnum):
    """What to do with a scheduled run while another is in progress."""

    FORBID = 0
    """Skip it."""
    ALLOW = 1
    """Start it beside the other."""
    REPLACE = 2
    """Stop the other, and start it when that has ended."""


class Missed(IntEnum):
    """What to do with runs that were due while no manager was running."""

    ONCE = 0
    """Start one, however many were missed."""
    SKIP = 1


@dataclass(frozen=True, slots=True)
class JobSpec(Extensible):
    """Concurrency, deadline and schedule of a job."""

    parallelism: int = 0
    """Maximum tasks at a time; 0: all at once."""
    deadline: float = 0.0
    """Maximum seconds of a run; 0: no limit."""
    schedule: str = ""
    """When runs start, such as `0 2 * * *` (`model.formats.schedules`); empty: once."""
    time_zone: str = ""
    """Time zone of the schedule, such as `Europe/Vienna`; empty: UTC."""
    overlap: Overlap = Overlap.FORBID
    missed: Missed = Missed.ONCE
    history: int = 5
    """Number of runs that are remembered, with their tasks."""
    suspended: bool = False
    """The schedule starts no runs."""
    queue: str = ""
    """Name of the queue in which its tasks wait; empty: they share in no queue."""
    all_or_nothing: bool = False
    """The tasks of a run start together, or none does (gang scheduling)."""


@lru_cache(maxsize=64)
def parse_indexes(text: str) -> frozenset[int]:
    """Parse a text from `format_indexes`."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def format_indexes(numbers: Iterable[int]) -> str:
    """The numbers in ascending order, consecutive ones as `first-last`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
