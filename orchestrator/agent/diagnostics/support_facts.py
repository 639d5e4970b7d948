# SPDX-License-Identifier: Apache-2.0
"""This node's part of `orc support-bundle`: its host, its log, its tasks, and drift of its networks
between desired state and kernel. Secrets are redacted here, before anything leaves the node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.pb import dispatch_pb2, doctor_pb2
from orchestrator.supportbundle import hostfacts
from orchestrator.supportbundle.hostfacts import document, packed
from orchestrator.supportbundle.redaction import scrubbed, secret_values


class SupportFacts:
    """Serves requests for this node's part of a support bundle."""

    def __init__(
        self,
        runners: Mapping[str, TaskRunner],
        drifts: Callable[[], Awaitable[Sequence[doctor_pb2.Drift]]],
    ) -> None:
        self._runners = runners
        self._drifts = drifts

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Return the collected facts, packed (a handler of `tunnels.Tunnels`)."""
        drifts = [
            {
                "network": drift.network,
                "deviations": list(drift.deviations),
                "failure": drift.failure,
            }
            for drift in await self._drifts()
        ]
        runners = list(self._runners.values())
        known = secret_values(v for runner in runners for v in runner.task.spec.container.env)
        facts = await asyncio.to_thread(_facts, order.support.log_bytes or hostfacts.LOG_BYTES)
        facts = [hostfacts.Fact(fact.name, scrubbed(fact.text, known)) for fact in facts]
        facts.append(document("network/drift.json", drifts, known))
        facts.append(document("tasks.json", list(map(_task, runners)), known))
        return dispatch_pb2.TunnelResult(support=packed(facts))


def _facts(size: int) -> list[hostfacts.Fact]:
    return [*hostfacts.host(), hostfacts.own_log("agent", size)]


def _task(runner: TaskRunner) -> dict[str, Any]:
    task = runner.task
    return {
        "id": task.id,
        "name": task.name,
        "image": task.spec.container.image,
        "desired_state": task.desired_state.name.lower(),
        "holds": runner.may_hold_resources,
        "status": {**asdict(runner.status), "state": runner.status.state.name.lower()},
    }
