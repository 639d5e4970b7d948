# SPDX-License-Identifier: Apache-2.0
"""Sizes, shares, durations and times as users write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model import units

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64m", 64 * MIB),
        ("64M", 64 * MIB),
        ("64MB", 64 * MIB),
        ("64MiB", 64 * MIB),
        ("1.5g", 1536 * MIB),
        ("512k", 512 * 1024),
        ("1GiB", 1024 * MIB),
        ("1t", MIB * MIB),
        ("100b", 100),
        ("100", 100),
        ("0", 0),
        (".5k", 512),
        (" 8 m ", 8 * MIB),
    ],
)
def test_memory(text: str, size: int) -> None:
    assert units.parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["12q", "", "m", "-5m", "1..5m", "1e3", "\u0663m", "64 m x", "nan"]
)
def test_memory_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as error:
        units.parse_memory(text)
    assert str(error.value) == (
        f"memory {text!r} is not a size; write a number with b, k, m or g, such as 64m"
    )


def test_memory_of_no_machine() -> None:
    with pytest.raises(ValueError, match="more than any machine has"):
        units.parse_memory("9999999p")


@pytest.mark.parametrize(
    ("text", "shares"), [("0.5", 512), ("1", 1024), ("2.25", 2304), ("0", 0), (".1", 102)]
)
def test_cpus(text: str, shares: int) -> None:
    assert units.parse_cpus(text) == shares


@pytest.mark.parametrize("text", ["", "half", "-1", "nan", "inf", "1,5"])
def test_cpus_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of cores; write such as"):
        units.parse_cpus(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1h", 3600),
        ("1.5h", 5400),
        ("2us", 2e-6),
        ("3µs", 3e-6),
        ("0", 0),
        ("0s", 0),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "5d", "1m30", "\u0661s"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write a number with h, m, s"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(299.99996, "5m"), (59.9999, "1m"), (3599.9999, "1h"), (90, "1m30s"), (58.627, "58.627s")],
)
def test_a_duration_is_never_sixty_of_something(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@given(st.integers(0, 10**7))
def test_durations_read_back(tenths: int) -> None:
    seconds = tenths / 10
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", 400.0),
        ("123.5", 123.5),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:01:00+01:00", 60.0),
        ("1970-01-01T00:01:00", 60.0),
        ("1970-01-02", 86400.0),
    ],
)
def test_moments_are_parsed(text: str, moment: float) -> None:
    assert units.parse_moment(text, now=1000.0) == moment


def test_moment_refused() -> None:
    with pytest.raises(ValueError, match="since 'yesterday' is not understood; write how long"):
        units.parse_moment("yesterday", 0.0, "since")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (64 * MIB, "64MiB"),
        (1536 * MIB, "1.5GiB"),
        (1024 * MIB - 1, "1GiB"),
        (int(23.47 * 1024 * MIB), "23.47GiB"),
        (1 << 62, "4096PiB"),
    ],
)
def test_format_memory(size: int, text: str) -> None:
    assert units.format_memory(size) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(999, "999B"), (4_070_000, "4.07MB"), (999_999, "1MB"), (77_800_000, "77.8MB")],
)
def test_format_size(size: int, text: str) -> None:
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (130, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (86400 * 3, "3 days"),
        (86400 * 15, "2 weeks"),
        (86400 * 90, "3 months"),
        (86400 * 800, "2 years"),
    ],
)
def test_format_age(seconds: float, text: str) -> None:
    assert units.format_age(seconds) == text


def test_format_ago() -> None:
    assert units.format_ago(100, 103) == "3 seconds ago"
    assert units.format_ago(100, 99) == "less than a second ago"


def test_format_time_and_cores() -> None:
    assert units.format_time(60.25) == "1970-01-01T00:01:00.250Z"
    assert units.format_cores(512) == "0.5"
    assert units.format_cores(4096) == "4"
    assert units.count_cores(1024) == "1 core"
    assert units.count_cores(512) == "0.5 cores"
