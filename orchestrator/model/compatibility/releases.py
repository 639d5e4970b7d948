# SPDX-License-Identifier: Apache-2.0
"""Release versions (PEP 440), and which of them work together.

Managers, agents and clients of one cluster may differ by one minor release in either direction.
"""

from __future__ import annotations

import re

MAX_SKEW = 1
"""Minor releases by which the parts of a cluster may differ."""

FIRST = "0.1.0"
"""The release whose hosts do not send their version when they join."""

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


def skew_refusal(subject: str, version: str, other: str, other_version: str) -> str:
    """Why a subject with a version cannot work with another part of the cluster, in one line with
    the remedy; empty if it can. A version that cannot be parsed is not judged: that of a build
    without a release."""
    own, their = minor_release(version), minor_release(other_version)
    if own is None or their is None or within_skew(version, other_version):
        return ""
    major, minor = their
    first, last = max(0, minor - MAX_SKEW), minor + MAX_SKEW
    instead = f"; or upgrade {other} first, one minor release after the other" * (own > their)
    return (
        f"{subject} has version {version}, more than {MAX_SKEW} minor release from {other_version} "
        f"of {other}: install a release from {major}.{first} to {major}.{last} there{instead}"
    )


def newest(versions: list[str]) -> str:
    """The version with the greatest minor release; empty without one."""
    known = [each for each in versions if minor_release(each) is not None]
    return max(known, key=lambda each: minor_release(each) or (0, 0), default="")
