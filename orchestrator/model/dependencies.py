# SPDX-License-Identifier: Apache-2.0
"""Dependencies between services: what a service waits for, start order and cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.names import check_name


class DependencyCondition(IntEnum):
    """The state of another service that a dependency requires."""

    STARTED = 0
    """A task of it runs, or it has completed."""
    HEALTHY = 1
    """A task of it runs and, if it has a health check, is healthy."""
    COMPLETED = 2
    """All its tasks have completed with exit status 0."""


@dataclass(frozen=True, slots=True)
class Dependency(Extensible):
    """Another service, and the state that it must have reached before a task may start."""

    service: str = ""
    """Its name."""
    condition: DependencyCondition = DependencyCondition.STARTED
    optional: bool = False
    """The service need not exist."""

    def __str__(self) -> str:
        return f"{self.service}:{self.condition.name.lower()}"


def parse_dependency(text: str) -> Dependency:
    """From `SERVICE[:started|healthy|completed]`. Raises ValueError for the user."""
    name, colon, word = text.partition(":")
    conditions = {each.name.lower(): each for each in DependencyCondition}
    if colon and word not in conditions:
        raise ValueError(f"{text!r}: {word!r} is not one of {', '.join(conditions)}")
    check_name(name, "service name")
    return Dependency(name, conditions[word or "started"])


def check_dependencies(name: str, dependencies: Iterable[Dependency]) -> None:
    """Raise ValueError for dependencies that are invalid regardless of the cluster's services."""
    seen: set[str] = set()
    for each in dependencies:
        check_name(each.service, "service name")
        if each.service == name:
            raise ValueError(f"service {name!r} cannot wait for itself")
        if each.service in seen:
            raise ValueError(f"service {each.service!r} is waited for twice")
        seen.add(each.service)


def find_cycle(name: str, needs: Mapping[str, Iterable[str]]) -> list[str] | None:
    """The shortest dependency cycle through a service, such as `[web, db, web]`; None without one.
    `needs` maps a name to the names that it depends on."""
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
    """The names of `needs` in topological order, otherwise in the given order; reversed, the order
    in which they stop. A cycle is broken at an arbitrary edge."""
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
