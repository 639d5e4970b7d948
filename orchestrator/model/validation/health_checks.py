# SPDX-License-Identifier: Apache-2.0
"""Health checks: validation and defaults. Pure.

The tests are Docker's (`NONE`, `CMD`, `CMD-SHELL`), which run in the container, and three that its
node performs, which need no program in the image:

    HTTP  PORT[/PATH]      an answer of 200 to 399
    TCP   PORT             a connection that is accepted
    GRPC  PORT[/SERVICE]   SERVING, by the gRPC health checking protocol
"""

from __future__ import annotations

import re
from dataclasses import replace
from math import isfinite

from orchestrator.model.networks import stands_alone
from orchestrator.model.specs import HOST_NETWORK, HealthCheck, TaskSpec

IN_CONTAINER = ("CMD", "CMD-SHELL")
FROM_NODE = ("HTTP", "TCP", "GRPC")

DEFAULTS = HealthCheck(
    test=("NONE",), interval=30.0, timeout=30.0, start_period=0.0, start_interval=5.0, retries=3
)
"""Docker's."""

_LEAST = 0.001
_PORT = re.compile(r"(\d{1,5})(/.*)?", re.DOTALL)


def effective(own: HealthCheck, image: HealthCheck) -> HealthCheck | None:
    """The effective check of a container, with all fields set; None without one. Missing fields
    come from the image's check, then from `DEFAULTS`."""
    check = HealthCheck(
        test=own.test or image.test or DEFAULTS.test,
        interval=own.interval or image.interval or DEFAULTS.interval,
        timeout=own.timeout or image.timeout or DEFAULTS.timeout,
        start_period=own.start_period or image.start_period,
        start_interval=own.start_interval or image.start_interval or DEFAULTS.start_interval,
        retries=own.retries or image.retries or DEFAULTS.retries,
    )
    return None if check.test[0] == "NONE" else check


def target(argument: str) -> tuple[int, str]:
    """The port and path of a probe by the node: `8080/ready` is (8080, `/ready`). Raises ValueError
    for an invalid port."""
    match = _PORT.fullmatch(argument)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"{argument!r} does not begin with a port in 1-65535, such as 8080")
    return int(match[1]), match[2] or ""


def check_health(spec: TaskSpec) -> None:
    """Raise ValueError for the first invalid field of a task's health check."""
    health = spec.container.health
    _check_test(health.test)
    if health.test and health.test[0] in FROM_NODE:
        alone = [name for name in spec.network_names if stands_alone(name)]
        if alone and alone != [HOST_NETWORK]:
            raise ValueError(
                f"on network {alone[0]} its node cannot reach the container; give --health-cmd, "
                "which runs in it"
            )
    for name in ("interval", "timeout", "start_period", "start_interval"):
        seconds = getattr(health, name)
        if not isfinite(seconds) or seconds < 0 or 0 < seconds < _LEAST:
            words = name.replace("_", " ")
            raise ValueError(f"health {words} {seconds:g} s is not valid; at least 1ms")
    if health.retries < 0:
        raise ValueError(f"health retries {health.retries} is negative; at least 1")
    if health.test == ("NONE",) and health != replace(HealthCheck(), test=("NONE",)):
        raise ValueError("without a health check there is nothing else to say about it")


def _check_test(test: tuple[str, ...]) -> None:
    if not test:
        return
    kind, *arguments = test
    match kind:
        case "NONE" if not arguments:
            pass
        case "CMD" if arguments:
            pass
        case "CMD-SHELL" if len(arguments) == 1 and arguments[0]:
            pass
        case "HTTP" | "TCP" | "GRPC" if len(arguments) == 1:
            _, rest = target(arguments[0])
            if kind == "TCP" and rest:
                raise ValueError(f"a TCP check is of a port alone, not of {arguments[0]!r}")
            if re.search(r"[\s\0]", rest):
                raise ValueError(f"{arguments[0]!r} contains a blank")
        case "NONE" | "CMD" | "CMD-SHELL" | "HTTP" | "TCP" | "GRPC":
            raise ValueError(f"health test {kind} has {len(arguments)} arguments; see --help")
        case _:
            known = ", ".join(("NONE", *IN_CONTAINER, *FROM_NODE))
            raise ValueError(f"health test {kind!r} is not one of {known}")
