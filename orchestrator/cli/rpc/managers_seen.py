# SPDX-License-Identifier: Apache-2.0
"""What commands remember of a context's managers from one to the next.

A small JSON file beside the contexts: the newest store revision after our own writes, so that the
next command reads them from any manager; the managers that the cluster has named; and those that
did not answer, which are tried last for a while. It may be lost at any time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from orchestrator.cli.app.contexts import seen_file

AVOIDED_FOR = 60.0
"""Seconds for which a manager that did not answer is tried last."""


@dataclass(frozen=True, slots=True)
class ManagersSeen:
    """The content of the file."""

    revision: int = 0
    managers: tuple[str, ...] = ()
    """`HOST:PORT` of all managers."""
    silent: Mapping[str, float] = field(default_factory=dict)
    """Managers that did not answer → Unix time until which they are tried last."""


def load_seen(context: str) -> ManagersSeen:
    """What is known; empty if nothing is, or the file is broken."""
    try:
        with open(seen_file(context), encoding="utf-8") as file:
            found = json.load(file)
        return ManagersSeen(
            int(found["revision"]),
            tuple(map(str, found["managers"])),
            {str(key): float(value) for key, value in found["silent"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ManagersSeen()


def save_seen(context: str, seen: ManagersSeen) -> None:
    """Remember it, if the file can be written."""
    path = seen_file(context)
    temporary = f"{path}.{os.getpid()}"
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "revision": seen.revision,
                    "managers": seen.managers,
                    "silent": dict(seen.silent),
                },
                file,
            )
        # Not synced: losing it costs a second at most.
        os.replace(temporary, path)


def by_preference(endpoints: Sequence[str], seen: ManagersSeen) -> list[str]:
    """The endpoints in the order in which to try them: silent ones last."""
    now = time.time()
    return sorted(endpoints, key=lambda each: now < seen.silent.get(each, 0.0) < now + AVOIDED_FOR)
