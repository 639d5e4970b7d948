# SPDX-License-Identifier: Apache-2.0
"""`x-orc`: extension of services for settings without a key in the compose specification.

Other tools ignore it, as all keys that begin with `x-`. Its keys are named after the flags of
`orc service create`.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.compose.schema.collection_kinds import ListOf, Object
from orchestrator.compose.schema.value_kinds import NUMBER, Boolean, Choice, Number, Text
from orchestrator.compose.tree import Map
from orchestrator.model.formats.schedules import parse_schedule, parse_zone
from orchestrator.model.jobs import JobSpec, Missed, Overlap
from orchestrator.model.placement import Strategy, parse_disconnect
from orchestrator.model.scheduling.affinities import parse_affinity
from orchestrator.model.scheduling.autoscaling import AutoscaleSpec
from orchestrator.model.scheduling.disruptions import DisruptionBudget, parse_count, parse_priority
from orchestrator.model.specs import ServiceSpec
from orchestrator.model.units import parse_duration

X_ORC = "x-orc"


def _check_anti_affinity(text: str) -> None:
    parse_affinity(text, anti=True)


def _check_number(text: str) -> float:
    return float(text)


X_ORC_KEYS = Object(
    {
        "affinity": ListOf(Text(parse_affinity), single=True),
        "anti-affinity": ListOf(Text(_check_anti_affinity), single=True),
        "strategy": Choice(("spread", "binpack")),
        "on-disconnect": Text(parse_disconnect),
        "min-available": Text(parse_count, also=NUMBER),
        "max-unavailable": Text(parse_count, also=NUMBER),
        "priority": Text(parse_priority, also=NUMBER),
        "autoscale-min": Number(),
        "autoscale-max": Number(),
        "autoscale-cpu": Number(),
        "autoscale-memory": Number(),
        "autoscale-query": Text(),
        "autoscale-per-replica": Text(_check_number, "a number", also=NUMBER),
        "autoscale-up-window": Text(parse_duration, "a length of time"),
        "autoscale-down-window": Text(parse_duration, "a length of time"),
        "update-canary": Number(),
        "max-concurrent": Number(),
        "deadline": Text(parse_duration, "a length of time"),
        "schedule": Text(parse_schedule),
        "time-zone": Text(parse_zone),
        "overlap": Choice(("forbid", "allow", "replace")),
        "missed": Choice(("once", "skip")),
        "history": Number(1),
        "queue": Text(),
        "all-or-nothing": Boolean(),
    },
    X_ORC,
)


def _autoscale(own: Map) -> AutoscaleSpec:
    default = AutoscaleSpec()
    down = own.text("autoscale-down-window")
    return AutoscaleSpec(
        least=int(own.text("autoscale-min", "0")),
        most=int(own.text("autoscale-max", "0")),
        cpu=int(own.text("autoscale-cpu", "0")),
        memory=int(own.text("autoscale-memory", "0")),
        query=own.text("autoscale-query"),
        per_replica=float(own.text("autoscale-per-replica", "0")),
        up_window=parse_duration(own.text("autoscale-up-window", "0s")),
        down_window=parse_duration(down) if down else default.down_window,
    )


def _count(text: str) -> str:
    return parse_count(text) if text else ""


def with_extension(spec: ServiceSpec, service: Map) -> ServiceSpec:
    """The spec with the settings of a service's `x-orc` section applied."""
    own = service.section(X_ORC)
    if not own.entries:
        return spec
    default = JobSpec()
    job = JobSpec(
        parallelism=int(own.text("max-concurrent", "0")),
        deadline=parse_duration(own.text("deadline", "0")),
        schedule=own.text("schedule"),
        time_zone=own.text("time-zone"),
        overlap=Overlap[own.text("overlap", default.overlap.name).upper()],
        missed=Missed[own.text("missed", default.missed.name).upper()],
        history=int(own.text("history", str(default.history))),
        queue=own.text("queue"),
        all_or_nothing=own.flag("all-or-nothing"),
    )
    return replace(
        spec,
        affinities=(
            *(parse_affinity(text) for text in own.texts("affinity")),
            *(parse_affinity(text, anti=True) for text in own.texts("anti-affinity")),
        ),
        strategy=Strategy[own.text("strategy", "default").upper()],
        on_disconnect=parse_disconnect(own.text("on-disconnect", "replace")),
        disruption=DisruptionBudget(
            _count(own.text("min-available")), _count(own.text("max-unavailable"))
        ),
        priority=parse_priority(own.text("priority", "normal")),
        autoscale=_autoscale(own),
        update=replace(spec.update, canary=int(own.text("update-canary", "0"))),
        job=job,
    )
