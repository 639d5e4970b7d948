# SPDX-License-Identifier: Apache-2.0
"""A daemon ends only when it is ended, or with a reason in words: never by an unexpected error."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.history import History, Violation

RULE = "crashes"


def check(history: History) -> Iterator[Violation]:
    """No daemon had an unexpected error."""
    for crash in history.crashes:
        reason = crash.text.rstrip(" |+-\n").rpartition("\n")[2].strip(" |")
        text = f"{crash.log} on {crash.host} ended by an unexpected error: {reason}"
        yield Violation(RULE, text, (crash.line,))
