# SPDX-License-Identifier: Apache-2.0
"""Release versions (PEP 440), and which of them work together.

Managers, agents and clients of one cluster may differ by one minor release in either direction.
"""

from __future__ import annotations

import re

MAX_SKEW = 1
"""Minor releases by which the parts of a cluster may differ."""

_VERSION = re.compile(r"(\d+)\.(\d+)(\D|$)")


def minor_release(version: str) -> tuple[int, int] | None:
    """Major and minor number; None for a text that is no version."""
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2])) if found else None


def within_skew(one: str, other: str) -> bool:
    """Whether two versions may be in one cluster. One that cannot be parsed is not."""
    first, second = minor_release(one), minor_release(other)
    if first is None or second is None or first[0] != second[0]:
        return False
    return abs(first[1] - second[1]) <= MAX_SKEW


def newest(versions: list[str]) -> str:
    """The version with the greatest minor release; empty without one."""
    known = [each for each in versions if minor_release(each) is not None]
    return max(known, key=lambda each: minor_release(each) or (0, 0), default="")
