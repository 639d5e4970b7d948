# SPDX-License-Identifier: Apache-2.0
"""Dependencies between services: what a service waits for, start order and cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.names import check_name


class DependencyCondition(IntEnum):
    """What of another service is waited for."""

    STARTED = 0
    """A task of it runs, or it has completed."""
    HEALTHY = 1
    """A task of it runs and, where that is probed, is healthy."""
    COMPLETED = 2
    """All its tasks have done their work, with exit status 0."""


@dataclass(frozen=True, slots=True)
class Dependency(Extensible):
    """Another service that must have come so far before a task may start."""

    service: str = ""
    """Its name."""
    condition: DependencyCondition = DependencyCondition.STARTED
    optional: bool = False
    """It need not be there."""

    def __str__(self) -> str:
        return f"{self.service}:{self.condition.name.lower()}"


def parse_dependency(text: str) -> Dependency:
    """From `SERVICE[:started|healthy|completed]`. Raises ValueError in the user's words."""
    name, colon, word = text.partition(":")
    conditions = {each.name.lower(): each for each in DependencyCondition}
    if colon and word not in conditions:
        raise ValueError(f"{text!r}: {word!r} is none of {', '.join(conditions)}")
    check_name(name, "service name")
    return Dependency(name, conditions[word or "started"])


def check_dependencies(name: str, dependencies: Iterable[Dependency]) -> None:
    """Refuse what cannot be waited for whatever services there are. Raises ValueError."""
    seen: set[str] = set()
    for each in dependencies:
        check_name(each.service, "service name")
        if each.service == name:
            raise ValueError(f"service {name!r} cannot wait for itself")
        if each.service in seen:
            raise ValueError(f"service {each.service!r} is waited for twice")
        seen.add(each.service)


def find_cycle(name: str, needs: Mapping[str, Iterable[str]]) -> list[str] | None:
    """The shortest way from a service over those that it waits for back to itself, such as
    `[web, db, web]`; None if there is none. `needs` has the names that each name waits for."""
    ways = [[name]]
    seen = {name}
    while ways:
        longer = []
        for way in ways:
            for other in needs.get(way[-1], ()):
                if other == name:
                    return [*way, name]
                if other not in seen:
                    seen.add(other)
                    longer.append([*way, other])
        ways = longer
    return None


def start_order(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of `needs`, each behind those that it waits for; else in the order in which they
    are given. What is reversed is the order in which they stop. A cycle is broken somewhere."""
    ordered: list[str] = []
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in seen or name not in needs:
            return
        seen.add(name)
        for other in needs[name]:
            add(other)
        ordered.append(name)

    for each in needs:
        add(each)
    return ordered
