"""The control API: what `orc` asks of a manager.

One class a noun, each with the calls of `control.proto` for it; `ControlApi` is all of them. Any
manager serves it: reads come from the cache, writes are guarded transactions, and a write is
answered once this manager's own cache has it, so that whoever wrote reads it back. Calls that
need a node (logs, images) go through the leader, which has the agents' sessions.

Errors are `Refusal`s: a gRPC status with one line for the user as its details.
"""

from __future__ import annotations

from orchestrator.manager.operations.administration.cluster_settings import ClusterOperations
from orchestrator.manager.operations.administration.nodes import NodeOperations
from orchestrator.manager.operations.dry_run import DryRunOperations
from orchestrator.manager.operations.images.building import ImageBuildOperations
from orchestrator.manager.operations.workloads.services import ServiceOperations
from orchestrator.manager.operations.workloads.task_logs import LogOperations
from orchestrator.pb import control_pb2_grpc


class ControlApi(
    ClusterOperations,
    NodeOperations,
    ServiceOperations,
    DryRunOperations,
    ImageBuildOperations,
    LogOperations,
    control_pb2_grpc.ControlServicer,  # type: ignore[misc]
):
    """Every call of the control API."""
