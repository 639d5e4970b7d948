"""What is done to a running container at once, because a user asked for it."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.agent.runner import TaskRunner
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.model.convert import from_proto
from orchestrator.pb import dispatch_pb2


async def act(runners: Mapping[str, TaskRunner], order: dispatch_pb2.ContainerOrder) -> None:
    """Do what `order` says. Raises RuntimeFailure."""
    runner = runners.get(order.task_id)
    if runner is None:
        raise RuntimeFailure("its node does not have it any more")
    match order.action:
        case dispatch_pb2.ContainerOrder.SIGNAL:
            await runner.send_signal(order.signal)
        case dispatch_pb2.ContainerOrder.PAUSE:
            await runner.freeze(True)
        case dispatch_pb2.ContainerOrder.UNPAUSE:
            await runner.freeze(False)
        case dispatch_pb2.ContainerOrder.RESIZE:
            await runner.resize(from_proto(order.spec))
        case _:
            raise RuntimeFailure("its node is too old for what was asked of it")
