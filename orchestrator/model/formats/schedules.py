# SPDX-License-Identifier: Apache-2.0
"""Cron schedules such as `*/5 8-17 * * mon-fri`: parsing, and when they fire in a time zone.

Five fields, as cron has them: minute, hour, day of the month, month, day of the week (0 and 7 are
Sunday); in each `*`, numbers, names of months and days, `a-b`, `/step`, and lists of these. If both
days are restricted, either will do; a field that begins with `*` restricts nothing here. And
`@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`, `@yearly`, `@annually`.

At changes of the clocks, a schedule for every hour (its hours begin with `*`) follows real time, so
that it fires in each hour that passes. Any other fires once for each time that it names: at the
first of two equal times, and for skipped times at the moment of the change (once for all of them).

A time zone is a name of the IANA database, the host's or the one that Python carries; its rules are
data that is read once.

Why not cronsim 2.8: after the hour that occurs twice it returns a time in the past (`45 2 * * *` in
Vienna, after 02:30 CET), so a job would be due again and again; its errors name neither the place
nor a remedy; it has no `@daily`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from orchestrator.model.names import near_miss

_DAY = timedelta(days=1)
_FURTHEST = 366 * 8 + 2
"""Days of look-ahead: over the turn of a century, 29 February is eight years away."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SHORTHANDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class _Field:
    title: str
    first: int
    last: int
    names: tuple[str, ...] = ()
    """Of the numbers from `first` on."""


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 7, _WEEKDAYS),
)


class ScheduleError(ValueError):
    """An invalid schedule; the text names the field, its position and the reason."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The values that each field accepts."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    every_hour: bool = False
    """The hours begin with `*`: it follows real time."""
    either_day: bool = False
    """Both days are restricted: it fires if either matches."""

    def on(self, day: date) -> bool:
        """Whether it fires at all on that day."""
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return of_month or of_week if self.either_day else of_month and of_week


@lru_cache(maxsize=1024)
def parse_schedule(text: str) -> Schedule:
    """Read a schedule. Raises ScheduleError."""
    if text.strip().startswith("@"):
        short = text.strip().lower()
        if short not in _SHORTHANDS:
            meant = near_miss(short, _SHORTHANDS)
            hint = f"did you mean {meant}?" if meant else f"known are {', '.join(_SHORTHANDS)}"
            raise ScheduleError(f"schedule {text!r} is unknown; {hint}")
        return parse_schedule(_SHORTHANDS[short])
    words = list(re.finditer(r"\S+", text))
    if len(words) != len(_FIELDS):
        raise ScheduleError(
            f"schedule {text!r} has {len(words)} {'field' if len(words) == 1 else 'fields'}; it "
            "takes five: minute, hour, day of the month, month, day of the week, such as "
            "'30 2 * * mon-fri'"
        )
    read = []
    for number, (field, word) in enumerate(zip(_FIELDS, words, strict=True), 1):
        try:
            read.append(_values(field, word[0]))
        except _Typo as typo:
            at = word.start() + typo.offset + 1
            raise ScheduleError(
                f"schedule {text!r}: {field.title} (field {number}, character {at}): {typo}"
            ) from None
    starred = [word[0].startswith("*") for word in words]
    schedule = Schedule(
        minutes=tuple(sorted(read[0])),
        hours=tuple(sorted(read[1])),
        days=frozenset(read[2]),
        months=frozenset(read[3]),
        weekdays=frozenset(day % 7 for day in read[4]),
        every_hour=starred[1],
        either_day=not starred[2] and not starred[4],
    )
    if next(_days(schedule, date(1999, 12, 31)), None) is None:
        raise ScheduleError(
            f"schedule {text!r}: no month of these has such a day, so it never fires"
        )
    return schedule


class _Typo(ValueError):
    def __init__(self, offset: int, words: str) -> None:
        super().__init__(words)
        self.offset = offset


def _values(field: _Field, text: str) -> set[int]:
    values: set[int] = set()
    offset = 0
    for part in text.split(","):
        values |= set(_range(field, part, offset))
        offset += len(part) + 1
    return values


def _range(field: _Field, part: str, offset: int) -> range:
    span, slash, step_text = part.partition("/")
    step = 1
    if slash:
        at = offset + len(span) + 1
        if not (step_text.isdecimal() and step_text.isascii()) or int(step_text) < 1:
            raise _Typo(at, f"{step_text!r} is not a step; write such as */5 or 10-40/10")
        step = int(step_text)
    if span == "*":
        return range(field.first, field.last + 1, step)
    low, dash, high = span.partition("-")
    first = _number(field, low, offset)
    last = field.last if slash else first
    if dash:
        last = _number(field, high, offset + len(low) + 1)
    if last < first:
        raise _Typo(offset, f"{span!r} runs backwards; write two ranges, with a comma")
    return range(first, last + 1, step)


def _number(field: _Field, text: str, offset: int) -> int:
    known = f"{field.first}-{field.last}"
    if field.names:
        known += f" or {field.names[0]}-{field.names[-1]}"
    if text.isdecimal() and text.isascii():
        if field.first <= int(text) <= field.last:
            return int(text)
        raise _Typo(offset, f"{text} is not in {known}")
    if text.lower() in field.names:
        return field.first + field.names.index(text.lower())
    if meant := near_miss(text.lower(), field.names):
        raise _Typo(offset, f"{text!r} is not in {known}; did you mean {meant}?")
    raise _Typo(
        offset, f"{text!r} is not in {known}" if text else f"a number of {known} is missing"
    )


@lru_cache(maxsize=256)
def parse_zone(name: str) -> tzinfo:
    """The time zone of that name; empty is UTC. Raises ScheduleError."""
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        meant = near_miss(name, available_timezones())
        hint = f"did you mean {meant}?" if meant else "write such as Europe/Vienna"
        raise ScheduleError(f"time zone {name!r} is unknown; {hint}") from None


@lru_cache(maxsize=4096)
def next_firing(schedule: Schedule, zone: tzinfo, after: float) -> float:
    """The first moment after `after` (seconds since the epoch) at which it fires."""
    # A day earlier: the clocks may go back over midnight.
    begin = datetime.fromtimestamp(after, zone).date() - _DAY
    for day in _days(schedule, begin):
        found = min((at for at in _moments(schedule, zone, day) if at > after), default=None)
        if found is not None:
            return found
    raise ScheduleError("it never fires")  # parse_schedule rejects such schedules


def _days(schedule: Schedule, begin: date) -> Iterator[date]:
    for number in range(_FURTHEST):
        if schedule.on(day := begin + number * _DAY):
            yield day


def _moments(schedule: Schedule, zone: tzinfo, day: date) -> Iterator[float]:
    """When it fires of that day's times, in no order."""
    for hour in schedule.hours:
        for minute in schedule.minutes:
            time = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
            early, late = time.timestamp(), time.replace(fold=1).timestamp()
            if early == late:
                yield early
            elif early < late:  # ambiguous: the time occurs twice
                yield early
                if schedule.every_hour:
                    yield late
            elif not schedule.every_hour:  # skipped by the clocks
                yield _jump(zone, late, early)


def _jump(zone: tzinfo, before: float, after: float) -> float:
    """The moment between two others at which the clocks skip forward."""
    offset = datetime.fromtimestamp(before, zone).utcoffset()
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
