# SPDX-License-Identifier: Apache-2.0
"""Schedules: parsing, when they fire, and errors for typos."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.model.formats.schedules import (
    Schedule,
    ScheduleError,
    next_firing,
    parse_schedule,
    parse_zone,
)

VIENNA = ZoneInfo("Europe/Vienna")
MINUTE = timedelta(minutes=1)


def firings(text: str, zone: tzinfo, start: str, count: int) -> list[str]:
    """The next times after a local one, as the zone's clock shows them."""
    after = datetime.fromisoformat(start).replace(tzinfo=zone).timestamp()
    found = []
    for _ in range(count):
        after = next_firing(parse_schedule(text), zone, after)
        found.append(datetime.fromtimestamp(after, zone).strftime("%m-%d %H:%M %Z"))
    return found


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("*/20 * * * *", "2026-01-31T23:30", ["01-31 23:40 UTC", "02-01 00:00 UTC"]),
        ("5,7 3 * * *", "2026-01-01T03:05", ["01-01 03:07 UTC", "01-02 03:05 UTC"]),
        ("0 0 29 2 *", "2026-01-01T00:00", ["02-29 00:00 UTC"]),
        ("0 12 * * MON-Fri", "2026-01-02T12:00", ["01-05 12:00 UTC", "01-06 12:00 UTC"]),
        ("0 12 * * 7", "2026-01-01T00:00", ["01-04 12:00 UTC"]),
        ("0 0 13 * fri", "2026-02-01T00:00", ["02-06 00:00 UTC", "02-13 00:00 UTC"]),
        ("0 0 */2 * mon", "2026-06-01T00:00", ["06-15 00:00 UTC"]),
        ("10/20 0 1 jan,jul *", "2026-01-01T00:30", ["01-01 00:50 UTC", "07-01 00:10 UTC"]),
        ("@hourly", "2026-01-01T00:00", ["01-01 01:00 UTC"]),
        ("@weekly", "2026-01-01T00:00", ["01-04 00:00 UTC"]),
        ("@Yearly", "2026-01-01T00:01", ["01-01 00:00 UTC"]),
    ],
)
def test_firings_of_a_schedule(text: str, start: str, expected: list[str]) -> None:
    assert firings(text, UTC, start, len(expected)) == expected


def test_a_time_that_the_clocks_leave_out_is_made_up_for_at_once() -> None:
    assert firings("*/30 2 * * *", VIENNA, "2026-03-28T12:00", 3) == [
        "03-29 03:00 CEST",
        "03-30 02:00 CEST",
        "03-30 02:30 CEST",
    ]


def test_a_time_that_comes_twice_fires_once() -> None:
    assert firings("30 2 * * *", VIENNA, "2026-10-24T12:00", 2) == [
        "10-25 02:30 CEST",
        "10-26 02:30 CET",
    ]


def test_a_schedule_for_every_hour_follows_real_time() -> None:
    assert firings("30 * * * *", VIENNA, "2026-10-25T01:00", 4) == [
        "10-25 01:30 CEST",
        "10-25 02:30 CEST",
        "10-25 02:30 CET",
        "10-25 03:30 CET",
    ]
    assert firings("30 * * * *", VIENNA, "2026-03-29T01:00", 2) == [
        "03-29 01:30 CET",
        "03-29 03:30 CEST",
    ]


fields = st.tuples(
    st.sampled_from(["*", "0", "30", "*/15", "7-9", "59", "0,30", "5/25"]),
    st.sampled_from(["*", "*/2", "0", "1", "2", "3", "1-3", "23", "22/1", "0,2"]),
    st.sampled_from(["*", "*", "25", "29", "28-31", "*/7"]),
    st.sampled_from(["*", "*", "3,10", "mar-apr", "*/3"]),
    st.sampled_from(["*", "*", "sun", "6-7", "mon"]),
).map(" ".join)
zones = st.sampled_from(
    ["UTC", "Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo",
     "Asia/Kolkata", "America/Sao_Paulo", "Pacific/Apia"]
)  # fmt: skip
clock_changes = st.sampled_from(
    ["2026-03-28T20:00", "2026-10-24T20:00", "2026-03-08T02:00", "2026-11-01T02:00",
     "2026-04-04T10:00", "2026-10-03T10:00", "2017-10-15T00:00", "2018-02-17T20:00",
     "2011-12-29T05:00", "2026-04-23T18:00"]
)  # fmt: skip


@settings(max_examples=150)
@given(fields, zones, clock_changes, st.integers(0, 600))
def test_firings_match_a_walk_minute_by_minute(
    text: str, name: str, start: str, offset: int
) -> None:
    schedule, zone = parse_schedule(text), parse_zone(name)
    after = datetime.fromisoformat(start).replace(tzinfo=UTC) + offset * MINUTE
    for _ in range(3):
        found = next_firing(schedule, zone, after.timestamp())
        walked = walk(schedule, zone, after, most=2000)
        if walked is None:
            assert found > (after + 2000 * MINUTE).timestamp()
            return
        assert found == walked.timestamp()
        after = walked


def walk(schedule: Schedule, zone: tzinfo, after: datetime, most: int) -> datetime | None:
    """The first minute after a moment at which it fires, by looking at each."""
    for number in range(1, most + 1):
        at = after + number * MINUTE
        local = at.astimezone(zone)
        before = (at - MINUTE).astimezone(zone)
        skipped = []
        if not schedule.every_hour:
            wall = before.replace(tzinfo=None) + MINUTE
            while wall < local.replace(tzinfo=None):
                skipped.append(wall)
                wall += MINUTE
        named = matches(schedule, local.replace(tzinfo=None))
        if (named and (schedule.every_hour or not local.fold)) or any(
            matches(schedule, wall) for wall in skipped
        ):
            return at
    return None


def matches(schedule: Schedule, wall: datetime) -> bool:
    return (
        wall.minute in schedule.minutes and wall.hour in schedule.hours and schedule.on(wall.date())
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("*/5 * * *", "has 4 fields; it takes five: minute, hour, day of the month, month, day"),
        ("", "has 0 fields"),
        ("60 * * * *", "minute (field 1, character 1): 60 is not in 0-59"),
        ("0  0,24 * * *", "hour (field 2, character 6): 24 is not in 0-23"),
        ("0 0 1 jann *", "month (field 4, character 7): 'jann' is not in 1-12 or jan-dec; did you "
         "mean jan?"),
        ("0 0 * * fri-mon", "day of the week (field 5, character 9): 'fri-mon' runs backwards"),
        ("*/0 * * * *", "minute (field 1, character 3): '0' is not a step"),
        ("1,,2 * * * *", "minute (field 1, character 3): a number of 0-59 is missing"),
        ("1- * * * *", "minute (field 1, character 3): a number of 0-59 is missing"),
        ("x * * * *", "minute (field 1, character 1): 'x' is not in 0-59"),
        ("0 0 31 2,4 *", "no month of these has such a day, so it never fires"),
        ("@dayly", "schedule '@dayly' is unknown; did you mean @daily?"),
        ("@reboot", "known are @yearly"),
    ],
)  # fmt: skip
def test_a_typo_is_pointed_at(text: str, words: str) -> None:
    with pytest.raises(ScheduleError) as raised:
        parse_schedule(text)
    assert words in str(raised.value)


def test_an_unknown_zone() -> None:
    with pytest.raises(ScheduleError, match="did you mean Europe/Vienna"):
        parse_zone("Europe/Viena")
    with pytest.raises(ScheduleError, match="write such as"):
        parse_zone("../../etc/passwd")
