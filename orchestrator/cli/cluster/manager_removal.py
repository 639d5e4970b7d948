# SPDX-License-Identifier: Apache-2.0
"""The removal of a manager, which may be the one that answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.cli.app.contexts import learn_endpoints
from orchestrator.cli.app.errors import ManagerLost
from orchestrator.cli.rpc.client import Client
from orchestrator.pb import managers_pb2


def remove_manager(client: Client, method: str, request: Any) -> None:
    """Call a method that removes one manager, and forget its endpoint.

    A removed manager ends, so its reply may be lost. Then the other managers are asked whether it
    is still one. Raises CliError like `Client.call`.
    """
    before = _endpoints(client)
    try:
        reply = client.call(method, request)
    except ManagerLost:
        if not client.has_alternatives:
            raise
        after = _endpoints(client)
        gone = [endpoint for id, endpoint in before.items() if id not in after]
        if not gone:
            raise
        learn_endpoints(client.context, list(after.values()), gone)
    else:
        learn_endpoints(client.context, reply.managers, [reply.endpoint])


def _endpoints(client: Client) -> Mapping[str, str]:
    """Manager id → `HOST:PORT`."""
    from orchestrator.model.administration.managers import host_port

    reply = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
    found = [each.manager for each in reply.managers]
    return {manager.id: host_port(manager.address, manager.port) for manager in found}
