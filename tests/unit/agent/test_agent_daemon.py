# SPDX-License-Identifier: Apache-2.0
"""How the daemon ends when it cannot begin: one line, status 1, nothing made."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent import daemon
from orchestrator.agent.daemon import main
from orchestrator.agent.images.image_gc import DiskThresholds
from orchestrator.agent.settings import AgentFailure, Settings
from orchestrator.agent.statedb import StateDb
from orchestrator.identity import ca
from orchestrator.identity.host_identity import NodeIdentity
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.mounts import is_mounted, unmount
from orchestrator.model.specs import Resources

pytestmark = pytest.mark.root


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A joined host whose containers would be in a cgroup that is never made."""
    now = dt.datetime.now(dt.UTC)
    authority = ca.new_ca("c1", now)
    node = ca.issue(authority, common_name="n1", role="worker", cluster_id="c1", now=now)
    for name, text in (
        ("ca.pem", authority.certificate),
        ("node.pem", node.certificate),
        ("node.key", node.key),
    ):
        write_file(tmp_path / name, text)
    yield Settings(
        identity=NodeIdentity("n1", "c1", "worker", "127.0.0.1", ("127.0.0.1:1",)),
        data_dir=tmp_path,
        run_dir=tmp_path / "run",
        cgroup_parent=f"/orc-daemon-test-{os.getpid()}",
        labels={},
        runtime="crun",
        offered=Resources(),
        max_layer=1 << 30,
        build_memory=0,
        marks=DiskThresholds(),
        generic={},
        key_age=0.0,
        blob_port=0,
        metrics_port=0,
    )
    if is_mounted(memory := tmp_path / "run" / "documents"):
        unmount(memory)


def but(settings: Settings, **changes: object) -> Settings:
    fields = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    return Settings(**{**fields, **changes})


def test_second_agent_on_a_folder_is_refused(settings: Settings) -> None:
    with (
        StateDb(settings.data_dir / "state.db"),
        pytest.raises(AgentFailure, match="another agent"),
    ):
        main(settings)


def test_a_runtime_that_is_not_installed(settings: Settings) -> None:
    with pytest.raises(AgentFailure, match="no-such-runtime"):
        main(but(settings, runtime="no-such-runtime"))


def test_a_blob_port_in_use(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "CrunRuntime", _NoRuntime)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AgentFailure, match=f"cannot serve images at 127.0.0.1:{port}"):
            main(but(settings, blob_port=port))


def test_an_internal_error_exits_with_status_1(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: object) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_bug())

    monkeypatch.setattr(daemon, "run", broken)
    with pytest.raises(SystemExit) as caught:
        main(settings)
    assert caught.value.code == 1
    assert "agent failed unexpectedly" in caplog.text


async def _bug() -> None:
    raise ZeroDivisionError


class _NoRuntime:
    """Stands in for a runtime, so that the host is left alone; wraps errors as task groups do."""

    def __init__(self, *_: object, **__: object) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> _NoRuntime:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._group.__aexit__(*error)  # type: ignore[arg-type]
