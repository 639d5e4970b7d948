# SPDX-License-Identifier: Apache-2.0
"""Which dev cluster `orc dev` speaks to, and which names it completes."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result
from contextkit import a_context

from orchestrator.cli.app.contexts import save_context
from orchestrator.dev import devcommands
from orchestrator.dev.devplan import DevError, HostPlan

Run = Callable[..., Result]


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch, config: Path) -> list[tuple[str, str]]:
    """Which hosts are killed, of which clusters; two are up."""
    found: list[tuple[str, str]] = []

    class Cluster:
        def __init__(self, name: str) -> None:
            self.name = name

        @property
        def plan(self) -> SimpleNamespace:
            if self.name not in ("dev", "trial"):
                raise DevError("is not up")
            hosts = ("manager1", f"{self.name}1")
            return SimpleNamespace(
                hosts=[HostPlan(self.name, host, "node", IPv4Address(1), "") for host in hosts]
            )

        def kill(self, node: str) -> None:
            found.append((self.name, node))

    monkeypatch.delenv("ORC_DEV_NAME", raising=False)
    monkeypatch.setattr(devcommands.os, "geteuid", lambda: 0)
    monkeypatch.setattr(devcommands, "DevCluster", Cluster)
    monkeypatch.setattr(devcommands, "list_clusters", lambda: ["dev", "trial"])
    return found


def test_the_current_context_s_cluster_is_meant(killed: list[tuple[str, str]], run: Run) -> None:
    run("dev", "kill", "node1")
    save_context(a_context("prod"))
    run("dev", "kill", "node1")
    save_context(a_context("trial"))
    run("dev", "kill", "node1")
    run("dev", "kill", "--name", "dev", "node1")
    assert killed == [(name, "node1") for name in ("dev", "dev", "trial", "dev")]


def test_hosts_and_clusters_are_completed(
    killed: list[tuple[str, str]], completed: Callable[..., list[str]]
) -> None:
    assert completed("dev kill ") == ["manager1", "dev1"]
    assert completed("dev kill --name trial t") == ["trial1"]
    assert completed("dev kill --name other ") == []
    assert completed("dev partition --name t") == ["trial"]


@pytest.fixture
def completed() -> Callable[..., list[str]]:
    from click.shell_completion import ShellComplete

    from orchestrator.cli.main import orc

    def complete(line: str) -> list[str]:
        *words, last = line.split(" ")
        shell = ShellComplete(orc, {}, "orc", "_ORC_COMPLETE")
        return [item.value for item in shell.get_completions(words, last)]

    return complete
