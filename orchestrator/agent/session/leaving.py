# SPDX-License-Identifier: Apache-2.0
"""Leaving a cluster whose managers have removed this node, or revoked its certificate.

As in Swarm, the node's tasks are stopped, within their grace periods, and removed; so are the
cluster's networks. Volumes, images and the build cache stay. The identity is removed last: an agent
that is killed before that starts over when a manager refuses it again.
"""

from __future__ import annotations

import logging
from pathlib import Path

from orchestrator.agent.network.endpoint_table import EndpointTable
from orchestrator.agent.network.reconciler import NetworkReconciler
from orchestrator.agent.settings import AgentFailure
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.tasks.worker import Worker
from orchestrator.identity.host_identity import retire_node

log = logging.getLogger(__name__)


async def leave(
    data: Path,
    db: StateDb,
    worker: Worker,
    endpoints: EndpointTable,
    networks: NetworkReconciler,
    reason: str,
) -> None:
    """Remove everything of the cluster from this host. `reason` is the manager's message. Always
    raises AgentFailure, which ends the agent."""
    log.error(
        "the cluster has expelled this node; stopping its tasks: %s",
        reason,
        extra={"tasks": len(worker.runners)},
    )
    await worker.clear()
    await endpoints.clear()
    await networks.clear()
    db.forget_cluster()
    retire_node(data)
    log.error("tasks are stopped and networks removed; volumes are kept", extra={"data": str(data)})
    raise AgentFailure(
        f"this node has left the cluster, its volumes are kept in {data / 'volumes'}: {reason}"
    )
