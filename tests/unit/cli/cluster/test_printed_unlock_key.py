# SPDX-License-Identifier: Apache-2.0
"""The unlock key is printed before any manager locks its files with it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from orchestrator.cli.app.errors import CliError, ManagerLost
from orchestrator.cli.cluster.key_commands import locked_with_printed_key
from orchestrator.cli.rpc.client import Client
from orchestrator.identity.key_files import new_unlock_key, unlock_key_id
from orchestrator.pb import security_pb2


class Managers:
    """A locked or unlocked cluster."""

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.loses_replies = self.chooses_itself = False

    def call(self, method: str, request: Any) -> Any:
        if method == "Security.Lock":
            if request.rotate or not self.key:
                self.key = new_unlock_key() if self.chooses_itself else request.key
            if self.loses_replies:
                raise ManagerLost("no manager answers")
        return security_pb2.UnlockKeyReply(key=self.key)


def lock(managers: Managers, rotate: bool = False) -> None:
    locked_with_printed_key(cast(Client, managers), rotate=rotate)


def test_key_is_known_although_the_reply_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    managers = Managers()
    managers.loses_replies = True
    with pytest.raises(ManagerLost):
        lock(managers)
    assert capsys.readouterr().out == f"{managers.key}\n"
    assert unlock_key_id(managers.key)


def test_locked_cluster_keeps_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    key = new_unlock_key()
    lock(Managers(key))
    assert capsys.readouterr().out == f"{key}\n"


def test_key_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    managers = Managers(former := new_unlock_key())
    lock(managers, rotate=True)
    assert capsys.readouterr().out == f"{managers.key}\n"
    assert managers.key != former


def test_managers_that_choose_another_key_are_named() -> None:
    managers = Managers()
    managers.chooses_itself = True
    with pytest.raises(CliError, match=r"another key.*'orc cluster unlock-key' prints it"):
        lock(managers)
