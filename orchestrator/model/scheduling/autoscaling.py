# SPDX-License-Identifier: Apache-2.0
"""Autoscaling of services: its bounds and targets, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.model.bounds import MAX_REPLICAS
from orchestrator.model.extensible import Extensible

MAX_TARGET = 10_000
"""Largest target utilisation, in percent of a reservation."""

MAX_QUERY = 4096
"""Characters of a query."""
MAX_PER_REPLICA = 1e15

DEFAULT_DOWN_WINDOW = 300.0
"""Seconds for which fewer replicas must have sufficed before some are removed (Kubernetes')."""


@dataclass(frozen=True, slots=True)
class AutoscaleSpec(Extensible):
    """How many replicas a service may have, and the utilisation that decides.

    The utilisation is the mean over the service's running tasks, in percent of what the scheduler
    counts for one: `--reserve-cpu`, `--reserve-memory`. A query is a measure of the load of the
    whole service, such as its requests per second.
    """

    least: int = 0
    """Minimum number of replicas."""
    most: int = 0
    """Maximum number of replicas; 0: the service is not autoscaled."""
    cpu: int = 0
    """Target utilisation of CPU time in percent; 0: it does not decide."""
    memory: int = 0
    """Target utilisation of memory in percent; 0: it does not decide."""
    up_window: float = 0.0
    """Seconds for which more replicas must have been needed before some are added."""
    down_window: float = DEFAULT_DOWN_WINDOW
    """Seconds for which fewer replicas must have sufficed before some are removed."""
    query: str = ""
    """PromQL expression that the cluster's Prometheus evaluates; empty: it does not decide."""
    per_replica: float = 0.0
    """The query's value that one replica is for; 0 without a query."""

    @property
    def enabled(self) -> bool:
        """Whether the service is autoscaled."""
        return self.most > 0


@dataclass(frozen=True, slots=True)
class AutoscaleStatus(Extensible):
    """Where the autoscaling of a service stands. A new leader continues from it."""

    replicas: int = 0
    """The number that was decided; 0: none yet, the spec's number holds."""
    changed_at: float = 0.0
    message: str = ""
    """Why that number: the utilisation that decided."""
    more_since: float = 0.0
    """Since when more replicas have been needed at each measurement; 0: they are not."""
    more: int = 0
    """The least number that was needed since then."""
    fewer_since: float = 0.0
    """Since when fewer replicas have sufficed at each measurement; 0: they do not."""
    fewer: int = 0
    """The largest number that was needed since then."""


def check_autoscale(spec: AutoscaleSpec) -> None:
    """Raise ValueError for an invalid spec."""
    if not spec.enabled:
        if spec != AutoscaleSpec():
            raise ValueError("autoscaling needs a maximum, such as --autoscale-max 10")
        return
    if not spec.least:
        raise ValueError("autoscaling needs a minimum, such as --autoscale-min 1")
    if not 1 <= spec.least <= spec.most <= MAX_REPLICAS:
        raise ValueError(
            f"autoscaling from {spec.least} to {spec.most} replicas is impossible: the minimum is "
            f"1 at least, the maximum not below it and {MAX_REPLICAS} at most"
        )
    if not spec.cpu and not spec.memory and not spec.query:
        raise ValueError("autoscaling needs a target, such as --autoscale-cpu 60")
    if bool(spec.query) != (spec.per_replica > 0) or not 0 <= spec.per_replica <= MAX_PER_REPLICA:
        raise ValueError(
            "an autoscaling query needs the value that one replica is for, above 0, such as "
            "--autoscale-per-replica 100"
        )
    if len(spec.query) > MAX_QUERY:
        raise ValueError(f"the autoscaling query is longer than {MAX_QUERY} characters")
    for name in ("cpu", "memory"):
        if not 0 <= getattr(spec, name) <= MAX_TARGET:
            raise ValueError(
                f"{name} target {getattr(spec, name)}% is not from 1% to {MAX_TARGET}%"
            )
    for name in ("up_window", "down_window"):
        if not 0 <= getattr(spec, name) <= 86400:
            raise ValueError(f"{name.replace('_', ' ')} is not from 0s to 24h")


def bounded(spec: AutoscaleSpec, replicas: int) -> int:
    """The number of replicas within the bounds."""
    return min(max(replicas, spec.least), spec.most)
