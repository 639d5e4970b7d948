"""Jobs: concurrency, deadline and schedule of a job's spec, and sets of its indexes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

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


@lru_cache(maxsize=64)
def parse_indexes(text: str) -> frozenset[int]:
    """The numbers of a text that `format_indexes` made."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def format_indexes(numbers: Iterable[int]) -> str:
    """The numbers in ascending order, those in a row as `first-last`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
