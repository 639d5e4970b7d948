# SPDX-License-Identifier: Apache-2.0
"""A gateway's connections to managers, over a long time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.app.contexts import Context, remove_context, save_context
from orchestrator.dockerapi.gateway import Clients

DAY = 86400.0


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """One that is in a file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = Context("prod", ("127.0.0.1:1",), "ca", "old", "key")
    save_context(found)
    return found


def test_renewed_certificate_is_taken_over_without_a_restart(context: Context) -> None:
    clock = [0.0]
    clients = Clients(context, lambda: clock[0])
    with clients.borrow() as first:
        assert first.context.certificate == "old"
    save_context(replace(context, certificate="new"))
    with clients.borrow() as client:
        assert client is first, "the connection is kept"
    clock[0] = DAY
    with clients.borrow():
        pass
    with clients.borrow() as client:
        assert client.context.certificate == clients.context.certificate == "new"


def test_context_in_use_stays_when_its_file_is_gone(context: Context) -> None:
    clock = [0.0]
    clients = Clients(context, lambda: clock[0])
    remove_context("prod")
    clock[0] = DAY
    for _ in range(2):
        with clients.borrow() as client:
            assert client.context.certificate == "old"
