# SPDX-License-Identifier: Apache-2.0
"""A scripted manager behind real mutual TLS, and `orc` run against it as a user does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from scripted_manager import Authority, Manager, Relay, Script, servicer

from orchestrator.cli.app.contexts import Context, save_context
from orchestrator.cli.main import orc
from orchestrator.pb import (
    backup_pb2_grpc,
    containers_pb2_grpc,
    control_pb2_grpc,
    images_pb2_grpc,
    jobs_pb2_grpc,
    managers_pb2_grpc,
    networks_pb2_grpc,
    support_pb2_grpc,
    volumes_pb2_grpc,
)


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of contexts."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ORC_CONTEXT", raising=False)
    monkeypatch.delenv("ORC_DEBUG", raising=False)
    return tmp_path / "config" / "orc"


@pytest.fixture(scope="session")
def listening(authority: Authority) -> Iterator[Manager]:
    script = Script()
    # As a manager takes the pings of its clients.
    options = [("grpc.http2.max_ping_strikes", 0)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    pair, admin = authority.issue("manager"), authority.issue("admin")
    control_pb2_grpc.add_ControlServicer_to_server(servicer(script), server)
    networks = servicer(script, networks_pb2_grpc.NetworksServicer)
    networks_pb2_grpc.add_NetworksServicer_to_server(networks, server)
    images = servicer(script, images_pb2_grpc.ImagesServicer)
    images_pb2_grpc.add_ImagesServicer_to_server(images, server)
    jobs = servicer(script, jobs_pb2_grpc.JobsServicer)
    jobs_pb2_grpc.add_JobsServicer_to_server(jobs, server)
    support = servicer(script, support_pb2_grpc.SupportServicer)
    support_pb2_grpc.add_SupportServicer_to_server(support, server)
    containers = servicer(script, containers_pb2_grpc.ContainersServicer)
    containers_pb2_grpc.add_ContainersServicer_to_server(containers, server)
    volumes = servicer(script, volumes_pb2_grpc.VolumesServicer)
    volumes_pb2_grpc.add_VolumesServicer_to_server(volumes, server)
    backups = servicer(script, backup_pb2_grpc.BackupServicer)
    backup_pb2_grpc.add_BackupServicer_to_server(backups, server)
    managers = servicer(script, managers_pb2_grpc.ManagersServicer)
    managers_pb2_grpc.add_ManagersServicer_to_server(managers, server)
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(pair.key.encode(), pair.certificate.encode())], authority.pem.encode(), True
        ),
    )
    server.start()
    context = Context("test", (f"127.0.0.1:{port}",), authority.pem, admin.certificate, admin.key)
    yield Manager(script, port, context, server)
    server.stop(None).wait()


@pytest.fixture
def manager(listening: Manager, config: Path) -> Iterator[Manager]:
    """The scripted manager, with its context in use and nothing scripted yet."""
    save_context(listening.context)
    yield listening
    listening.script.answers.clear()
    listening.script.requests.clear()


@pytest.fixture
def relay(manager: Manager) -> Iterator[Relay]:
    """A way to the scripted manager that can be cut."""
    relay = Relay(manager.port)
    yield relay
    relay.close()


Run = Callable[..., Result]


@pytest.fixture
def run(config: Path) -> Run:
    """Run `orc` with these words; what it prints and its exit status are the result's."""

    def invoke(*words: str, **options: Any) -> Result:
        result = CliRunner().invoke(orc, list(words), **options)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Run `orc` where it must fail with `status` and one line, which is returned."""

    def invoke(*words: str, status: int = 1, **options: Any) -> str:
        result = run(*words, **options)
        assert (result.exit_code, result.stdout) == (status, ""), result.output
        assert result.stderr.startswith("orc: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("orc: ").rstrip("\n")

    return invoke
