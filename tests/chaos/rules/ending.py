# SPDX-License-Identifier: Apache-2.0
"""After the faults: the cluster converges within a minute, and nothing leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.chaos.history import History, Leftover, Violation

WITHIN = 60.0
"""Seconds after the last fault within which everything has converged."""


def check(history: History) -> Iterator[Violation]:
    """All of this module's rules."""
    if not history.converged:
        yield Violation("convergence", "the run has no record of convergence", ())
    for end in history.converged:
        if end.missing:
            text = f"not converged after {end.seconds:.0f} s: {'; '.join(end.missing)}"
            yield Violation("convergence", text, (end.line,))
        elif end.seconds > WITHIN:
            text = f"converged only {end.seconds:.0f} s after the last fault"
            yield Violation("convergence", text, (end.line,))
    leaks: dict[tuple[str, str], list[Leftover]] = defaultdict(list)
    for each in history.leftovers:
        leaks[each.host, each.kind].append(each)
    for (host, kind), found in leaks.items():
        text = f"{len(found)} left on {host}: {kind} {', '.join(each.name for each in found[:3])}"
        yield Violation("leaks", text, tuple(each.line for each in found))
