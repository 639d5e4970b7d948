# SPDX-License-Identifier: Apache-2.0
"""Flags of updates and rollbacks: how tasks are replaced."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

import click

from orchestrator.cli.flags.flag_types import DURATION, Parsed, Setting
from orchestrator.model.specs import FailureAction, UpdateOrder

E = TypeVar("E", bound=IntEnum)


def parse_member(kind: type[E]) -> Callable[[str], E]:
    """A parser of a member's name in lower case with dashes."""
    names = {each.name.lower().replace("_", "-"): each for each in kind}

    def read(text: str) -> E:
        if text not in names:
            raise ValueError(f"{text!r} is not one of {', '.join(names)}")
        return names[text]

    return read


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"{text!r} is not a ratio from 0 to 1, such as 0.25")
    return ratio


def _settings(word: str, actions: str) -> tuple[Setting, ...]:
    return (
        Setting(
            (f"--{word}-parallelism",),
            f"{word}.parallelism",
            click.INT,
            f"Number of tasks that the {word} replaces at a time; 0: all.",
            default="1",
        ),
        Setting(
            (f"--{word}-delay",),
            f"{word}.delay",
            DURATION,
            "Time between two batches.",
            default="0s",
        ),
        Setting(
            (f"--{word}-order",),
            f"{word}.order",
            Parsed("stop-first|start-first", parse_member(UpdateOrder)),
            "Whether to stop the old task or to start the new one first.",
            default="stop-first",
        ),
        Setting(
            (f"--{word}-monitor",),
            f"{word}.monitor",
            DURATION,
            "Time for which a new task must stay up; one that ends earlier has failed.",
            default="5s",
        ),
        Setting(
            (f"--{word}-max-failure-ratio",),
            f"{word}.max_failure_ratio",
            Parsed("ratio", _ratio),
            "Ratio of failed tasks to tolerate before the failure action.",
            default="0",
        ),
        Setting(
            (f"--{word}-failure-action",),
            f"{word}.failure_action",
            Parsed(actions, parse_member(FailureAction)),
            "What to do on failure.",
            default="pause",
        ),
    )


UPDATE_SETTINGS = (
    *_settings("update", "pause|continue|rollback"),
    Setting(
        ("--update-canary",),
        "update.canary",
        click.INT,
        "Number of tasks to update before 'orc service promote' updates the others.",
        default="0",
    ),
    *_settings("rollback", "pause|continue"),
)
