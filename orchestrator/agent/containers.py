"""From a task and what was made ready for it to the container that the runtime makes."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.agent.images.image_spec import LocalImage
from orchestrator.agent.networks import Connected
from orchestrator.agent.runtime.interface import Container, Mount
from orchestrator.model.convert import from_proto
from orchestrator.model.names import short_id
from orchestrator.model.objects import Volume
from orchestrator.model.specs import LogConfig
from orchestrator.model.tasks import Task
from orchestrator.pb import dispatch_pb2


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a container needs, made ready on this node."""

    image: LocalImage
    mounts: tuple[Mount, ...]
    connected: Connected
    beside: str = ""
    """The container whose namespaces it shares, by its id."""


def describe_container(
    task: Task, made: Prepared, hostname: str, logging: LogConfig | None = None
) -> Container:
    """The container of `task` on the node called `hostname`; `logging`: its driver, with the
    node's defaults filled in."""
    told: tuple[str, ...] = ()
    if task.standalone:
        own_hostname = short_id(task.id)
    else:
        own_hostname = task.id
        told = (f"ORC_SERVICE_NAME={task.service_name}", f"ORC_TASK_SLOT={task.slot}")
    if made.connected.netns is None:
        own_hostname = hostname
    return Container(
        id=task.id,
        name=task.name,
        spec=task.spec,
        image=made.image,
        netns=made.connected.netns,
        host_network=made.connected.netns is None,
        address=next(iter(made.connected.addresses.values()), ""),
        nameservers=made.connected.nameservers,
        hostname=task.spec.container.hostname or own_hostname,
        env=(
            f"ORC_TASK_ID={task.id}",
            f"ORC_TASK_NAME={task.name}",
            *told,
            f"ORC_NODE_HOSTNAME={hostname}",
        ),
        labels=dict(task.spec.container.labels),
        keep=task.standalone,
        mounts=made.mounts,
        beside=made.beside,
        logging=logging or LogConfig(),
    )


def named_volumes(assigned: dispatch_pb2.AssignedTask) -> dict[str, Volume]:
    """The volumes that an order names, by name."""
    return {volume.id: from_proto(volume) for volume in assigned.volumes}
