# SPDX-License-Identifier: Apache-2.0
"""Limits of a container that can be changed while it is running. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from orchestrator.model.specs import TaskSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel enforces of a spec, as far as it can be changed in place."""

    weight: int
    """CPU weight in shares."""
    cpu: int
    """CPU quota in shares, 1024 a core; 0: none."""
    memory: int
    """Bytes; 0: no limit."""
    memory_swap: int
    """Bytes of memory and swap together; 0: as `memory`, -1: no limit."""
    pids: int
    """0: the node's default, -1: no limit."""
    cpus: str
    """A cpuset; empty: all."""


def limits_of(spec: TaskSpec) -> Limits:
    """The limits that a spec sets."""
    container = spec.container
    return Limits(
        weight=spec.weight,
        cpu=spec.limit.shares,
        memory=spec.limit.memory,
        memory_swap=container.memory_swap,
        pids=container.pids_limit,
        cpus=container.cpuset_cpus,
    )


def resized(spec: TaskSpec, wanted: TaskSpec) -> TaskSpec:
    """A spec with the reservation and limits of another one, which need no new container."""
    container = replace(
        spec.container,
        memory_swap=wanted.container.memory_swap,
        pids_limit=wanted.container.pids_limit,
        cpuset_cpus=wanted.container.cpuset_cpus,
    )
    return replace(
        spec,
        container=container,
        reservation=wanted.reservation,
        limit=wanted.limit,
        shares=wanted.shares,
    )
