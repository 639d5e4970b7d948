"""The control API: what `orc` asks of a manager.

One class a noun, each with the calls of `control.proto` for it; `ControlApi` is all of them. Any
manager serves it: reads come from the cache, writes are guarded transactions, and a write is
answered once this manager's own cache has it, so that whoever wrote reads it back. Calls that
need a node (logs, images) go through the leader, which has the agents' sessions.

Errors are `Refusal`s: a gRPC status with one line for the user as its details.
"""

from __future__ import annotations

from orchestrator.manager.api.cluster import ClusterCalls
from orchestrator.manager.api.context import ApiContext
from orchestrator.manager.api.images import ImageCalls
from orchestrator.manager.api.logs import LogCalls
from orchestrator.manager.api.nodes import NodeCalls
from orchestrator.manager.api.plans import PlanCalls
from orchestrator.manager.api.services import ServiceCalls
from orchestrator.pb import control_pb2_grpc

__all__ = ["ApiContext", "ControlApi"]


class ControlApi(
    ClusterCalls,
    NodeCalls,
    ServiceCalls,
    PlanCalls,
    ImageCalls,
    LogCalls,
    control_pb2_grpc.ControlServicer,  # type: ignore[misc]
):
    """Every call of the control API."""
