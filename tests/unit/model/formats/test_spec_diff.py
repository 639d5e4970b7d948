# SPDX-License-Identifier: Apache-2.0
"""Differences between two specs, as text."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.model.formats.spec_diff import describe_differences, differences
from orchestrator.model.specs import (
    ContainerSpec,
    PortSpec,
    ServiceSpec,
    TaskSpec,
    UpdateOrder,
    UpdatePolicy,
)

OLD = ServiceSpec(
    name="web",
    labels={"a": "1", "b": "2"},
    task=TaskSpec(
        container=ContainerSpec(image="web:1", env=("A=1", "B=2")), ports=(PortSpec(80, 80),)
    ),
)


def test_differences_between_two_specs() -> None:
    new = replace(
        OLD,
        labels={"a": "1", "b": "3"},
        update=UpdatePolicy(delay=2.5, order=UpdateOrder.START_FIRST),
        task=replace(OLD.task, container=ContainerSpec(image="web:2", env=("B=2", "A=1"))),
    )
    assert differences(OLD, new) == ["labels", "image", "env", "update.delay", "update.order"]
    assert describe_differences(OLD, new) == (
        "labels -b=2 +b=3, image web:1 -> web:2, env in another order, update.delay 0 -> 2.5,"
        " update.order stop-first -> start-first"
    )


def test_empty_and_long_differences() -> None:
    assert differences(OLD, OLD) == []
    assert describe_differences(OLD, OLD) == ""
    image = "registry.example/" + "x" * 100
    new = replace(OLD, task=replace(OLD.task, container=replace(OLD.task.container, image=image)))
    assert len(describe_differences(OLD, new)) < 90
