# SPDX-License-Identifier: Apache-2.0
"""All rules, and the verdict on a history."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.chaos.history import History, Violation
from tests.chaos.rules import (
    addresses,
    commands,
    crashes,
    ending,
    jobs,
    registers,
    restarts,
    slots,
    terms,
    traffic,
)

RULES: tuple[Callable[[History], Iterable[Violation]], ...] = (
    registers.check,
    slots.check,
    addresses.check,
    jobs.check,
    restarts.check,
    terms.check,
    traffic.check,
    commands.check,
    crashes.check,
    ending.check,
)


def violations(history: History) -> list[Violation]:
    """Everything that the history shows to be wrong."""
    return [violation for rule in RULES for violation in rule(history)]
