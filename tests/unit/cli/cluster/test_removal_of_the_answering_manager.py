# SPDX-License-Identifier: Apache-2.0
"""A manager that is removed may end before its reply has arrived."""

from __future__ import annotations

from typing import Any, cast

import pytest

from orchestrator.cli.app import contexts
from orchestrator.cli.app.errors import ManagerLost
from orchestrator.cli.cluster.manager_removal import remove_manager
from orchestrator.cli.rpc.client import Client
from orchestrator.pb import managers_pb2

pytestmark = pytest.mark.usefixtures("config")
REQUEST = managers_pb2.RemoveManagerRequest(manager="two")
ENDPOINTS = ("192.0.2.1:7420", "192.0.2.2:7420")


class LosingClient:
    """Calls of managers at 192.0.2.1 and 192.0.2.2. The removal's reply is always lost; it happens
    or not."""

    has_alternatives = True

    def __init__(self, happens: bool) -> None:
        self.context = contexts.Context("c", ENDPOINTS, "", "", "")
        self._happens = happens
        self._managers = {"one": "192.0.2.1", "two": "192.0.2.2"}

    def call(self, method: str, request: Any) -> Any:
        if method == "Managers.ListManagers":
            reply = managers_pb2.ListManagersReply()
            for id, address in self._managers.items():
                manager = reply.managers.add().manager
                manager.id, manager.address, manager.port = id, address, 7420
            return reply
        if self._happens:
            del self._managers["two"]
        raise ManagerLost("lost")


def test_lost_reply_of_a_removal_that_happened_is_a_success() -> None:
    client = LosingClient(happens=True)
    contexts.save_context(client.context, renew_at=4e9)
    remove_manager(cast(Client, client), "Managers.RemoveManager", REQUEST)
    assert contexts.load_context("c").endpoints == ("192.0.2.1:7420",)


def test_lost_reply_of_a_removal_that_did_not_happen_is_an_error() -> None:
    client = LosingClient(happens=False)
    contexts.save_context(client.context, renew_at=4e9)
    with pytest.raises(ManagerLost):
        remove_manager(cast(Client, client), "Managers.RemoveManager", REQUEST)
    assert contexts.load_context("c").endpoints == ENDPOINTS
