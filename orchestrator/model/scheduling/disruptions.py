# SPDX-License-Identifier: Apache-2.0
"""Disruption budgets and priorities: which tasks may be stopped for the sake of others, and how
many at a time."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.extensible import Extensible

PRIORITIES = {"low": -100, "normal": 0, "high": 100, "critical": 1000}
"""Priority classes: names of the usual priorities."""

MAX_PRIORITY = 1_000_000
"""The largest priority, and, negated, the smallest."""


@dataclass(frozen=True, slots=True)
class DisruptionBudget(Extensible):
    """How many working tasks of a service must remain when the cluster stops tasks for other
    reasons than the service's own: a drain, a preemption. Kubernetes calls it the same.

    Each is a number of tasks or a percentage of the replicas, which is rounded up; empty: no limit.
    Both may be set; then the stricter one applies.
    """

    min_available: str = ""
    max_unavailable: str = ""


def parse_count(text: str) -> str:
    """A number of tasks, or a percentage such as `50%`, in its normal form. Raises ValueError."""
    number = text.removesuffix("%")
    if not number.isascii() or not number.isdecimal() or len(number) > 6:
        raise ValueError(f"{text!r} is not a number of tasks or a percentage, such as 2 or 50%")
    if text.endswith("%") and int(number) > 100:
        raise ValueError(f"{text!r} is over 100%")
    return f"{int(number)}%" if text.endswith("%") else str(int(number))


def count_of(text: str, replicas: int) -> int:
    """The number of tasks that a count stands for; a percentage is rounded up."""
    if text.endswith("%"):
        return -(-int(text.removesuffix("%")) * replicas // 100)
    return int(text)


def check_budget(budget: DisruptionBudget) -> None:
    """Raise ValueError for an invalid budget."""
    for name in ("min_available", "max_unavailable"):
        if text := getattr(budget, name):
            try:
                parse_count(text)
            except ValueError as error:
                raise ValueError(f"{name.replace('_', ' ')}: {error}") from None


def most_unavailable(budget: DisruptionBudget, replicas: int) -> int:
    """How many of a service's replicas may be without a working task."""
    most = replicas
    if budget.min_available:
        most = min(most, max(replicas - count_of(budget.min_available, replicas), 0))
    if budget.max_unavailable:
        most = min(most, count_of(budget.max_unavailable, replicas))
    return most


def parse_priority(text: str) -> int:
    """A priority: a whole number, or the name of a class. Raises ValueError."""
    if (known := PRIORITIES.get(text)) is not None:
        return known
    try:
        number = int(text) if text.isascii() and text.lstrip("+-").isdecimal() else None
    except ValueError:
        number = None
    if number is None:
        names = ", ".join(PRIORITIES)
        raise ValueError(f"{text!r} is not a whole number, or one of {names}")
    check_priority(number)
    return number


def check_priority(priority: int) -> None:
    """Raise ValueError for a priority out of range."""
    if abs(priority) > MAX_PRIORITY:
        raise ValueError(f"priority {priority} is not from -{MAX_PRIORITY} to {MAX_PRIORITY}")


def priority_text(priority: int) -> str:
    """The priority as users write it: the name of its class, or the number."""
    return next((name for name, each in PRIORITIES.items() if each == priority), str(priority))
