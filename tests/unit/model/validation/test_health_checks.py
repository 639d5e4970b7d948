# SPDX-License-Identifier: Apache-2.0
"""Health checks: validation and defaults."""

from __future__ import annotations

import pytest

from orchestrator.model.specs import ContainerSpec, HealthCheck, NetworkAttachment, TaskSpec
from orchestrator.model.validation.health_checks import check_health, effective, target


def spec(*test: str, network: str = "", **fields: float) -> TaskSpec:
    health = HealthCheck(test=test, **fields)  # type: ignore[arg-type]
    networks = (NetworkAttachment(network),) if network else ()
    return TaskSpec(ContainerSpec(image="web:1", health=health), networks=networks)


@pytest.mark.parametrize(
    "test",
    [
        (),
        ("NONE",),
        ("CMD", "/bin/check", "-v"),
        ("CMD-SHELL", "test -e /ready"),
        ("HTTP", "8080/ready?x=1"),
        ("HTTP", "8080"),
        ("TCP", "5432"),
        ("GRPC", "50051/my.Service"),
    ],
)
def test_valid_health_checks_are_accepted(test: tuple[str, ...]) -> None:
    check_health(spec(*test))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (spec("PING", "x"), "'PING' is not one of NONE, CMD"),
        (spec("CMD"), "CMD has 0 arguments"),
        (spec("CMD-SHELL", ""), "CMD-SHELL has 1 arguments"),
        (spec("HTTP", "http://x"), "does not begin with a port"),
        (spec("TCP", "70000"), "does not begin with a port"),
        (spec("TCP", "80/x"), "of a port alone"),
        (spec("HTTP", "80/a b"), "contains a blank"),
        (spec("TCP", "80", network="none"), "on network none its node cannot reach"),
        (spec("TCP", "80", network="container:a"), "give --health-cmd"),
        (spec("NONE", interval=3.0), "nothing else to say"),
        (spec("TCP", "80", interval=0.0001), "health interval 0.0001 s is not valid"),
        (spec("TCP", "80", start_period=-1.0), "health start period -1 s"),
        (spec("TCP", "80", retries=-1), "health retries -1"),
    ],
)
def test_invalid_health_checks_are_refused(bad: TaskSpec, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        check_health(bad)


def test_node_reaches_addresses_of_its_own_network() -> None:
    check_health(spec("TCP", "80", network="host"))


def test_ports() -> None:
    assert target("80") == (80, "")
    assert target("8080/a/b") == (8080, "/a/b")


def test_unset_fields_default_to_the_image_then_to_docker() -> None:
    image = HealthCheck(("CMD", "check"), interval=7.0, retries=5)
    assert effective(HealthCheck(), HealthCheck()) is None
    assert effective(HealthCheck(("NONE",)), image) is None
    assert effective(HealthCheck(), HealthCheck(("NONE",))) is None
    whole = HealthCheck(("CMD", "check"), 7.0, 30.0, 0.0, 5.0, 5)
    assert effective(HealthCheck(), image) == whole
    mine = effective(HealthCheck(("TCP", "80"), interval=1.0), image)
    assert mine == HealthCheck(("TCP", "80"), 1.0, 30.0, 0.0, 5.0, 5)
