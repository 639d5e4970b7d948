# SPDX-License-Identifier: Apache-2.0
"""Sizes, CPU shares, durations and times: parsing and formatting.

Parsers raise ValueError whose text is for the user: what is wrong and what to write instead.
Forms are Docker's: sizes are binary (`1k` is 1024), CPUs are cores, durations are Go's.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from math import isfinite

SHARES_PER_CORE = 1024
"""CPU weight of one core, as in cgroup v1's `cpu.shares`."""

# Compiled at first use: most commands import this module.
_SIZE = r"(?ai)(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?)(?:i?b)?"
_RATE = r"(?ai)(\d+(?:\.\d+)?|\.\d+)\s*([kmg]?)(?:bit)?"
_DURATION_PART = r"(?a)(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def parse_memory(text: str, what: str = "memory") -> int:
    """Bytes of `64m`, `1.5g`, `512k`, `1GiB` or a plain number of bytes."""
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise ValueError(
            f"{what} {text!r} is not a size; write a number with b, k, m or g, such as 64m"
        )
    number, unit = match.groups()
    size = float(number) * 1024 ** " kmgtp".index(unit.lower() or " ")
    if size >= 1 << 63:
        raise ValueError(f"{what} {text!r} is more than any machine has")
    return int(size)


def parse_rate(text: str, what: str = "rate") -> int:
    """Bits (a second) of `10m`, `1.5g`, `10Mbit` or a plain number; as all rates of networks these
    are decimal, `1k` is 1000."""
    match = re.fullmatch(_RATE, text.strip())
    if match is None or not 0 < float(match[1]) < 1e12:
        raise ValueError(
            f"{what} {text!r} is not a number of bits; write it with k, m or g, such as 10m"
        )
    return int(float(match[1]) * 1000 ** " kmg".index(match[2].lower() or " "))


def parse_cpus(text: str, what: str = "cpus") -> int:
    """Shares of a number of cores: `0.5` is 512."""
    try:
        cores = float(text)
    except ValueError:
        cores = -1.0
    if cores < 0 or not isfinite(cores):
        raise ValueError(f"{what} {text!r} is not a number of cores; write such as 0.5 or 2")
    return round(cores * SHARES_PER_CORE)


def parse_duration(text: str, what: str = "duration") -> float:
    """Seconds of `5s`, `1m30s`, `500ms` or `0`."""
    rest = text.strip()
    if rest == "0":
        return 0.0
    total = 0.0
    while match := re.match(_DURATION_PART, rest):
        total += float(match[1]) * _SECONDS[match[2]]
        rest = rest[match.end() :]
    if rest or not text.strip():
        raise ValueError(
            f"{what} {text!r} is not a duration; write a number with h, m, s or ms, such as 1m30s"
        )
    return total


def parse_moment(text: str, now: float, what: str = "time") -> float:
    """Seconds since the epoch of `10m` (that long before `now`), an RFC 3339 time or a number."""
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{what} {text!r} is not understood; write how long ago, such as 10m, "
            "or a time such as 2026-01-31T12:00:00Z"
        ) from None
    return moment.timestamp() if moment.tzinfo else moment.replace(tzinfo=UTC).timestamp()


def format_memory(size: int) -> str:
    """`64MiB`, `1.5GiB`: four digits, binary units."""
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), digits=4)


def format_size(size: int) -> str:
    """`4.07MB`: three digits, decimal units, as images are listed."""
    return _scaled(size, 1000, ("B", "kB", "MB", "GB", "TB", "PB"), digits=3)


def _scaled(size: int, base: int, units: tuple[str, ...], digits: int) -> str:
    value, index = float(size), 0
    # What would be rounded up to the base is shown in the next unit.
    while float(f"{value:.{digits}g}") >= base and index < len(units) - 1:
        value, index = value / base, index + 1
    return f"{float(f'{value:.{digits}g}'):g}{units[index]}"


def format_cores(shares: int) -> str:
    """`512` shares are `0.5` cores."""
    return f"{round(shares / SHARES_PER_CORE, 2):g}"


def count_cores(shares: int) -> str:
    """`1024` shares are `1 core`, `512` are `0.5 cores`."""
    cores = format_cores(shares)
    return f"{cores} core" if cores == "1" else f"{cores} cores"


def format_duration(seconds: float) -> str:
    """`1m30s`, `500ms`, `0s`: what `parse_duration` reads."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    # Rounded first, so that what is nearly a minute is one, and not 60 seconds.
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    parts.append(f"{rest + thousandths / 1000:g}s" if rest or thousandths else "")
    return "".join(parts) or "0s"


def format_age(seconds: float) -> str:
    """`Less than a second`, `3 seconds`, `About a minute`, `2 hours`, `5 days` (Docker's words)."""
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return _count(int(seconds), "second")
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = round(seconds / 3600)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 14:
        return f"{hours // 24} days"
    if hours < 24 * 60:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def format_ago(then: float, now: float) -> str:
    """`3 seconds ago`; a clock that is a little ahead counts as now."""
    age = format_age(max(0.0, now - then))
    return f"{age[0].lower()}{age[1:]} ago"


def format_time(moment: float) -> str:
    """RFC 3339 in UTC with milliseconds, such as `2026-01-31T12:00:00.250Z`."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
