# SPDX-License-Identifier: Apache-2.0
"""Ownership of published ports, and automatic choice of free ones.

A port in ingress mode is open on every node, so it belongs to one service or container of the
whole cluster. Ports in host mode belong to each node; the scheduler keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from zlib import crc32

from orchestrator.manager.errors import already_exists, failed_precondition
from orchestrator.manager.planning.slots import ended
from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import PORT_TURN
from orchestrator.manager.store.kv import Guard, Kv, Put
from orchestrator.model.networks import OVERLAY
from orchestrator.model.specs import PortSpec, Protocol, PublishMode, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

PortKey = tuple[int, Protocol]


@dataclass(frozen=True, slots=True)
class PortClaim:
    """Guards and operations of a write that publishes ports. Of two concurrent writes, the guard of
    one fails (`PORT_TURN`), and it checks again."""

    guards: tuple[Guard, ...] = ()
    ops: tuple[Put, ...] = ()


async def claim_ports(kv: Kv, cache: Cache, spec: TaskSpec, owner_id: str) -> PortClaim:
    """Claim ports for a service or standalone container, after `check_ports` on the newest
    state."""
    if not spec.ports:
        return PortClaim()
    turn = await kv.get(PORT_TURN)
    stamp = turn.mod_revision if turn else 0
    await cache.wait_for(stamp)
    check_ports(cache.view, spec, owner_id)
    guard = Guard(PORT_TURN, mod_revision=stamp)
    return PortClaim((guard,), (Put(PORT_TURN, owner_id.encode()),))


def with_effective_port_modes(view: ClusterView, spec: TaskSpec) -> TaskSpec:
    """The spec with host mode for ports that other nodes could not forward: on node-local networks
    and those of third-party drivers."""
    networks = [view.network_by_name(each.network) for each in spec.attachments]
    if not networks or any(each is None or each.driver == OVERLAY for each in networks):
        return spec
    ports = tuple(replace(port, mode=PublishMode.HOST) for port in spec.ports)
    return replace(spec, ports=ports)


def check_ports(view: ClusterView, spec: TaskSpec, owner_id: str) -> None:
    """Raise RequestError, which names the owner, if a port of the spec is in use. `owner_id` is the
    service or standalone container that publishes it."""
    wanted = {_port_key(port): port for port in spec.ports if port.published}
    if not wanted:
        return
    for owner, port in _published(view, owner_id):
        mine = wanted.get(_port_key(port))
        if mine is not None and PublishMode.INGRESS in (mine.mode, port.mode):
            raise already_exists(
                f"port {port.published}/{port.protocol.name.lower()} is published by {owner}; "
                "publish another one"
            )


def _published(view: ClusterView, but: str) -> Iterator[tuple[str, PortSpec]]:
    """All published ports with their owners."""
    for service in view.services.values():
        if service.id != but and not service.removed:
            for port in service.spec.task.ports:
                yield f"service '{service.spec.name}'", port
    for task in view.tasks_of_service("").values():
        if task.id != but and _holds_ports(task):
            for port in task.spec.ports:
                yield f"container '{task.name}'", port


def _holds_ports(task: Task) -> bool:
    """Whether a standalone container runs or is about to."""
    over = ended(task) and task.run <= task.status.run
    return task.desired_state is TaskState.RUNNING and not over


def _port_key(port: PortSpec) -> PortKey:
    return port.published, port.protocol


FIRST_DYNAMIC_PORT, LAST_DYNAMIC_PORT = 32768, 60999
"""Range for automatic choice, as in Docker."""


def with_assigned_ports(view: ClusterView, spec: TaskSpec, id: str) -> TaskSpec:
    """The spec with a host port for each port without one: free in the whole cluster, so that the
    container fits on any node. The search starts at a hash of the container's `id`, so that
    concurrent requests get different ports. Raises RequestError."""
    if all(port.published for port in spec.ports):
        return spec
    specs = [task.spec for task in view.tasks.values()]
    specs += [service.spec.task for service in view.services.values()]
    taken = {(port.published, port.protocol) for each in specs for port in each.ports}
    taken |= {(port.published, port.protocol) for port in spec.ports}
    start, size = crc32(id.encode()), LAST_DYNAMIC_PORT - FIRST_DYNAMIC_PORT + 1
    ports: list[PortSpec] = []
    for port in spec.ports:
        if not port.published:
            candidates = (FIRST_DYNAMIC_PORT + (start + turn) % size for turn in range(size))
            number = next((n for n in candidates if (n, port.protocol) not in taken), None)
            if number is None:
                raise failed_precondition(
                    f"every port of {FIRST_DYNAMIC_PORT}-{LAST_DYNAMIC_PORT} is published; "
                    "name one, as in -p 8080:80"
                )
            port = replace(port, published=number)
            taken.add((number, port.protocol))
        ports.append(port)
    return replace(spec, ports=tuple(ports))
