# SPDX-License-Identifier: Apache-2.0
"""The manager's choice of a published port."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from orchestrator.manager.errors import RequestError
from orchestrator.manager.operations.published_ports import (
    FIRST_DYNAMIC_PORT,
    LAST_DYNAMIC_PORT,
    with_assigned_ports,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.specs import PortSpec, Protocol, TaskSpec
from orchestrator.model.tasks import Task

TCP, UDP = Protocol.TCP, Protocol.UDP


def view(taken: Iterable[PortSpec]) -> ClusterView:
    task = Task(id="t1", container_name="box", spec=TaskSpec(ports=tuple(taken)))
    return ClusterView(tasks={task.id: task})


def published(view: ClusterView, *ports: PortSpec, id: str = "c1") -> list[tuple[int, Protocol]]:
    spec = with_assigned_ports(view, TaskSpec(ports=ports), id)
    return [(port.published, port.protocol) for port in spec.ports]


def test_ports_with_a_number_keep_it() -> None:
    assert published(view([]), PortSpec(80, 8080)) == [(80, TCP)]


def test_an_automatic_port_is_unused() -> None:
    ((first, _),) = published(view([]), PortSpec(0, 80))
    assert FIRST_DYNAMIC_PORT <= first <= LAST_DYNAMIC_PORT
    assert published(view([PortSpec(first, 1)]), PortSpec(0, 80)) == [(first + 1, TCP)]
    assert published(view([PortSpec(first, 1, UDP)]), PortSpec(0, 80)) == [(first, TCP)]
    assert published(view([]), PortSpec(0, 80), PortSpec(0, 81)) == [(first, TCP), (first + 1, TCP)]
    assert published(view([]), PortSpec(0, 80), PortSpec(first, 81))[0] == (first + 1, TCP)


def test_concurrent_containers_get_different_ports() -> None:
    one, other = (published(view([]), PortSpec(0, 80), id=id) for id in ("c1", "c2"))
    assert one != other


def test_a_full_range_is_refused() -> None:
    everything = (
        PortSpec(number, 1) for number in range(FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT + 1)
    )
    with pytest.raises(RequestError, match="every port of 32768-60999 is published"):
        published(view(everything), PortSpec(0, 80))
