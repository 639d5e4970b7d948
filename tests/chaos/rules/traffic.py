# SPDX-License-Identifier: Apache-2.0
"""Requests succeed while no fault touches the path: managers' faults fail none."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History, Violation
from tests.chaos.rules.timeline import led, led_for

RULE = "traffic"

SETTLE = 20.0
"""Seconds after a fault of a node during which requests may fail: a leader replaces the node's
tasks within these. Time in which faults of managers left no leader does not count."""


def check(history: History) -> Iterator[Violation]:
    """A failed request has a fault of some node before it: any node may have its next task."""
    touching = [fault for fault in history.faults if fault.kills or fault.cuts or fault.slows]
    periods = led(history)
    for request in history.requests:
        if request.ok or any(
            fault.began <= request.ended and led_for(periods, fault.ended, request.began) <= SETTLE
            for fault in touching
        ):
            continue
        text = f"a request to {request.service} via {request.via} failed ({request.error})"
        yield Violation(RULE, text + ", though no fault touched a node", (request.line,))
