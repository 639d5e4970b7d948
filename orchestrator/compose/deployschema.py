"""The keys of a service's `deploy` section (the compose specification's deploy.md)."""

from __future__ import annotations

from orchestrator.compose.kinds import NUMBER, Choice, Kind, Noted, Number, Refused, Text
from orchestrator.compose.mapkinds import Keys, Many, Pairs
from orchestrator.model.units import parse_cpus, parse_duration, parse_memory
from orchestrator.model.validate import validate_constraints

_DURATION = Text(parse_duration, "a length of time")
SIZE = Text(parse_memory, "a size", also=NUMBER)
LIMITS_CPUS = Text(parse_cpus, "a number of cores", also=NUMBER)


def _constraint(text: str) -> None:
    validate_constraints([text], ())


def _count(text: str) -> None:
    if text not in ("all", "-1") and not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of devices, nor all")


DEVICE: dict[str, Kind] = {
    "capabilities": Many(),
    "count": Text(_count, also=NUMBER),
    "driver": Text(),
    "device_ids": Many(),
    "options": Refused("leave them out"),
}
"""What a task needs of devices."""


def _policy(*actions: str) -> Keys:
    return Keys(
        {
            "parallelism": Number(),
            "delay": _DURATION,
            "failure_action": Choice(actions),
            "monitor": _DURATION,
            "max_failure_ratio": Number(whole=False, most=1),
            "order": Choice(("stop-first", "start-first")),
        },
        "an update's policy",
    )


DEPLOY = Keys(
    {
        "mode": Choice(("replicated", "global", "replicated-job", "global-job")),
        "replicas": Number(),
        "endpoint_mode": Choice(("vip", "dnsrr")),
        "labels": Pairs(),
        "placement": Keys(
            {
                "constraints": Many(Text(_constraint), unique=False),
                "preferences": Many(Keys({"spread": Text()}, required=("spread",)), unique=False),
                "max_replicas_per_node": Number(),
            },
            "a placement",
        ),
        "resources": Keys(
            {
                "limits": Keys(
                    {"cpus": LIMITS_CPUS, "memory": SIZE, "pids": Number(-1)}, "the limits"
                ),
                "reservations": Keys(
                    {
                        "cpus": LIMITS_CPUS,
                        "memory": SIZE,
                        "pids": Noted(Number(-1), "processes are limited, not reserved"),
                        "generic_resources": Many(
                            Keys(
                                {
                                    "discrete_resource_spec": Keys(
                                        {"kind": Text(), "value": Number(1)},
                                        required=("kind", "value"),
                                    )
                                },
                                required=("discrete_resource_spec",),
                            )
                        ),
                        "devices": Many(Keys(DEVICE, "a device", required=("capabilities",))),
                    },
                    "the reservations",
                ),
            },
            "the resources",
        ),
        "restart_policy": Keys(
            {
                "condition": Choice(("none", "on-failure", "any", "unless-stopped")),
                "delay": _DURATION,
                "max_attempts": Number(),
                "window": _DURATION,
            },
            "a restart policy",
        ),
        "update_config": _policy("pause", "continue", "rollback"),
        "rollback_config": _policy("pause", "continue"),
    },
    "a deployment",
)
