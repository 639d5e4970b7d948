# SPDX-License-Identifier: Apache-2.0
"""Each error in a service spec, with its field and message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.model.specs import (
    ContainerSpec,
    NetworkAttachment,
    PortSpec,
    Protocol,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.validation.service_specs import InvalidSpec, known_signal, validate_service

MIB = 1 << 20
GOOD = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image="hello:1")))


def container(**values: Any) -> ServiceSpec:
    return task(container=replace(GOOD.task.container, **values))


def task(**values: Any) -> ServiceSpec:
    return replace(GOOD, task=replace(GOOD.task, **values))


@pytest.mark.parametrize(
    "spec",
    [
        GOOD,
        replace(GOOD, replicas=0),
        replace(GOOD, replicas=100_000),
        replace(GOOD, mode=ServiceMode.GLOBAL),
        replace(GOOD, constraints=("node.labels.zone==a", "node.role != manager")),
        container(env=("A=", "B=x=y"), user="1000:www", workdir="/srv", hostname="h-1"),
        container(stop_signal="SIGINT", stop_grace=0.5),
        task(limit=Resources(1024, 64 * MIB), reservation=Resources(2, 6 * MIB), shares=2),
        task(ports=(PortSpec(80, 80), PortSpec(80, 80, Protocol.UDP), PortSpec(81, 80))),
        task(networks=(NetworkAttachment("front"), NetworkAttachment("back"))),
    ],
)
def test_valid_service_specs_are_accepted(spec: ServiceSpec) -> None:
    validate_service(spec)


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (replace(GOOD, name=""), "name", "the service name is empty"),
        (replace(GOOD, name="Web!"), "name", "'Web!' is not a DNS label"),
        (replace(GOOD, replicas=-1), "replicas", "replicas -1 is negative; 0 is the least"),
        (replace(GOOD, replicas=100_001), "replicas", "is over 100000, the most"),
        (replace(GOOD, labels={" ": "x"}), "labels", "a label has no name"),
        (replace(GOOD, update=UpdatePolicy(parallelism=-1)), "update.parallelism", "-1"),
        (replace(GOOD, update=UpdatePolicy(delay=-0.5)), "update.delay", "-0.5"),
        (replace(GOOD, constraints=("zone=a",)), "constraints", "KEY==VALUE, KEY!=VALUE or"),
        (replace(GOOD, constraints=("zone==a",)), "constraints", "asks for 'zone'; known are"),
        (replace(GOOD, constraints=("node.labels.==a",)), "constraints", "known are"),
        (container(image=""), "task.container.image", "no image is named"),
        (container(image="Hello"), "task.container.image", "upper-case"),
        (container(env=("A",)), "task.container.env", "env 'A' is not of the form KEY=value"),
        (container(env=("=x",)), "task.container.env", "KEY=value"),
        (container(command=("a\0",)), "task.container.command", "NUL"),
        (container(workdir="srv"), "task.container.workdir", "not an absolute path"),
        (container(user="a b"), "task.container.user", "USER[:GROUP]"),
        (container(pid="container:"), "task.container.pid", "names no container; write container:"),
        (container(pid="service:a"), "task.container.pid", "tasks of two services may be on any n"),
        (container(ipc="service:a"), "task.container.ipc", "orc run --ipc container:NAME"),
        (
            container(pid="container:a", ipc="container:b"),
            "task.container.pid",
            "of two containers",
        ),
        (
            container(ipc="container:a", sysctls={"kernel.shmmax": "1"}),
            "task.container.ipc",
            "the sysctl 'kernel.shmmax' is the other container's",
        ),
        (container(pid="hots"), "task.container.pid", "pid 'hots' is unknown; host, private are"),
        (container(ipc="none"), "task.container.ipc", "'none' is unknown; host, private, share"),
        (
            container(ipc="host", userns="private"),
            "task.container.userns",
            "with ipc host the users are the host's",
        ),
        (
            container(ipc="host", sysctls={"kernel.shmmax": "1"}),
            "task.container.sysctls",
            "with ipc host the sysctl 'kernel.shmmax' is the node's",
        ),
        (container(hostname="a b"), "task.container.hostname", "hostname 'a b'"),
        (container(stop_signal="SIGFOO"), "task.container.stop_signal", "'SIGFOO' is unknown"),
        (container(stop_grace=float("nan")), "task.container.stop_grace", "nan"),
        (container(stop_grace=-1.0), "task.container.stop_grace", "0 is the least"),
        (container(pids_limit=-2), "task.container.pids_limit", "pids limit -2"),
        (container(labels={"": "x"}), "task.container.labels", "a label has no name"),
        (task(shares=1), "task.shares", "cpu shares of 1 shares must be at least 2"),
        (task(shares=-4), "task.shares", "must be at least 2"),
        (task(shares=300_000), "task.shares", "is over 262144"),
        (task(reservation=Resources(shares=1)), "task.reservation.shares", "at least 2"),
        (task(limit=Resources(shares=5)), "task.limit.shares", "must be at least 11"),
        (
            task(limit=Resources(memory=5 * MIB)),
            "task.limit.memory",
            "memory limit 5MiB must be at least 6MiB",
        ),
        (task(reservation=Resources(memory=-1)), "task.reservation.memory", "-1 must be at least"),
        (
            task(reservation=Resources(memory=64 * MIB), limit=Resources(memory=32 * MIB)),
            "task.limit.memory",
            "memory limit 32MiB is below the reservation of 64MiB",
        ),
        (task(ports=(PortSpec(0, 80),)), "task.ports", "published port 0 is not in 1-65535"),
        (task(ports=(PortSpec(80, 70000),)), "task.ports", "target port 70000"),
        (
            task(ports=(PortSpec(80, 80), PortSpec(80, 81))),
            "task.ports",
            "port 80/tcp is published twice",
        ),
        (task(networks=(NetworkAttachment("a"), NetworkAttachment("a"))), "task.networks", "twice"),
        (task(networks=(NetworkAttachment("A."),)), "task.networks", "network name 'A.'"),
        (task(restart=RestartPolicy(delay=-1)), "task.restart.delay", "restart delay -1"),
        (task(restart=RestartPolicy(max_attempts=-1)), "task.restart.max_attempts", "-1"),
        (task(restart=RestartPolicy(window=-1)), "task.restart.window", "-1"),
    ],
)
def test_refused(spec: ServiceSpec, field: str, words: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        validate_service(spec)
    assert error.value.field == field
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["SIGTERM", "TERM", "sigint", "15", "RTMIN", "RTMIN+3"])
def test_signals(text: str) -> None:
    assert known_signal(text)


@pytest.mark.parametrize("text", ["FOO", "0", "99", "RTMIN+99", "SIG", "RTMIN+x"])
def test_no_signals(text: str) -> None:
    assert not known_signal(text)


@pytest.mark.parametrize(
    ("spec", "argv"),
    [
        (ContainerSpec(image="a"), ["sh", "-e", "run"]),
        (ContainerSpec(image="a", command=("ls",)), ["sh", "-e", "ls"]),
        (ContainerSpec(image="a", entrypoint=("cat",)), ["cat"]),
        (ContainerSpec(image="a", entrypoint=("",), command=("ls",)), ["ls"]),
    ],
)
def test_arguments_from_spec_and_image(spec: ContainerSpec, argv: list[str]) -> None:
    assert spec.arguments(("sh", "-e"), ("run",)) == argv
