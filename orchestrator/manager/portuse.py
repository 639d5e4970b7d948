"""Which ports of the nodes are whose.

A port of mode ingress is open on every node, so it belongs to one service or container of the whole
cluster. Ports of mode host are each node's own: the scheduler keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.manager.planning.slots import ended
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.refusal import taken
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.keys import PORT_TURN
from orchestrator.manager.store.kv import Guard, Kv, Put
from orchestrator.model.networks import OVERLAY
from orchestrator.model.specs import PortSpec, Protocol, PublishMode, TaskSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task

Number = tuple[int, Protocol]


@dataclass(frozen=True, slots=True)
class PortTurn:
    """What a write that publishes ports carries, so that of two at once the second sees the first:
    the guard of one of them fails (`PORT_TURN`), and it looks again."""

    guards: tuple[Guard, ...] = ()
    ops: tuple[Put, ...] = ()


async def port_turn(kv: Kv, cache: Cache, spec: TaskSpec, owner_id: str) -> PortTurn:
    """Have ports for a service or standalone container; `check_ports` of the newest there is."""
    if not spec.ports:
        return PortTurn()
    turn = await kv.get(PORT_TURN)
    stamp = turn.mod_revision if turn else 0
    await cache.wait_for(stamp)
    check_ports(cache.view, spec, owner_id)
    guard = Guard(PORT_TURN, mod_revision=stamp)
    return PortTurn((guard,), (Put(PORT_TURN, owner_id.encode()),))


def settled(view: ClusterView, spec: TaskSpec) -> TaskSpec:
    """The spec with its ports in mode host where no other node could lead to it: on networks that
    are each node's own, or made by others."""
    networks = [view.network_by_name(each.network) for each in spec.attachments]
    if not networks or any(each is None or each.driver == OVERLAY for each in networks):
        return spec
    ports = tuple(replace(port, mode=PublishMode.HOST) for port in spec.ports)
    return replace(spec, ports=ports)


def check_ports(view: ClusterView, spec: TaskSpec, owner_id: str) -> None:
    """Raise Refusal, which names the owner, if a port of the spec is somebody else's. `owner_id` is
    of the service or standalone container that is to have it."""
    wanted = {_number(port): port for port in spec.ports if port.published}
    if not wanted:
        return
    for owner, port in _published(view, owner_id):
        mine = wanted.get(_number(port))
        if mine is not None and PublishMode.INGRESS in (mine.mode, port.mode):
            raise taken(
                f"port {port.published}/{port.protocol.name.lower()} is published by {owner}; "
                "publish another one"
            )


def _published(view: ClusterView, but: str) -> Iterator[tuple[str, PortSpec]]:
    """Every port that is somebody's, and whose."""
    for service in view.services.values():
        if service.id != but and not service.removed:
            for port in service.spec.task.ports:
                yield f"service '{service.spec.name}'", port
    for task in view.tasks_of_service("").values():
        if task.id != but and _holds(task):
            for port in task.spec.ports:
                yield f"container '{task.name}'", port


def _holds(task: Task) -> bool:
    """Whether a standalone container runs or is about to."""
    over = ended(task) and task.run <= task.status.run
    return task.desired_state is TaskState.RUNNING and not over


def _number(port: PortSpec) -> Number:
    return port.published, port.protocol
