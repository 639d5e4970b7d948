# SPDX-License-Identifier: Apache-2.0
"""`orc manager` on an etcd that somebody else runs: endpoints, certificates, one cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.manager.store.etcd_member import EtcdMember
from tests.freeports import free_ports

ORC = str(Path(sys.executable).with_name("orc"))


@pytest.fixture
async def etcd(tmp_path: Path) -> AsyncIterator[EtcdMember]:
    async with EtcdMember(tmp_path / "etcd") as member:
        yield member


class Host:
    """A host with `orc`, and a context folder of its own."""

    def __init__(self, folder: Path, etcd: EtcdMember) -> None:
        self.folder = folder
        self.port = free_ports(2)
        self.daemon: subprocess.Popen[str] | None = None
        self.env = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
        tls = etcd.tls
        # The first endpoint is nobody's: the second must do.
        endpoints = ",".join(["https://127.0.0.1:1", *etcd.endpoints])
        self.options = [
            "--etcd-endpoints", endpoints, "--etcd-cacert", str(tls.ca),
            "--etcd-cert", str(tls.cert), "--etcd-key", str(tls.key),
        ]  # fmt: skip

    def orc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ORC, *arguments], env=self.env, capture_output=True, text=True, check=False
        )

    def init(self, name: str) -> Path:
        data = self.folder / name
        made = self.orc(
            "cluster", "init", "--advertise", "127.0.0.1", "--listen-port", str(self.port),
            "--data-dir", str(data), "--context", name,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        return data

    @contextmanager
    def manager(self, data: Path) -> Iterator[subprocess.Popen[str]]:
        command = [ORC, "manager", "--data-dir", str(data), *self.options]
        with subprocess.Popen(command, env=self.env, stderr=subprocess.PIPE, text=True) as process:
            self.daemon = process
            try:
                yield process
            finally:
                process.kill()

    def info(self, within: float = 60.0) -> dict[str, object]:
        """What the manager says of its cluster, once it serves."""
        daemon = self.daemon
        assert daemon is not None
        assert daemon.stderr is not None
        deadline = time.monotonic() + within
        while (done := self.orc("cluster", "info", "--format", "json")).returncode:
            assert daemon.poll() is None, f"orc manager ended: {daemon.stderr.read()}"
            assert time.monotonic() < deadline, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer


@pytest.fixture
def host(tmp_path: Path, etcd: EtcdMember) -> Host:
    return Host(tmp_path, etcd)


def test_state_outlives_the_manager_in_the_given_etcd(host: Host, tmp_path: Path) -> None:
    data = host.init("one")
    with host.manager(data):
        before = host.info()
        token = host.orc("cluster", "token", "worker", "--rotate", "-q").stdout
    assert not (data / "etcd").exists()
    with host.manager(data) as process:
        assert host.info()["id"] == before["id"]
        assert host.orc("cluster", "token", "worker", "-q").stdout == token
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_the_store_has_secrets_and_configs_sealed(host: Host, tmp_path: Path) -> None:
    """Not even a file of etcd's own holds what a secret was, is, or was before it was removed."""
    values = [f"correct-horse-{number}" for number in range(4)]
    file = tmp_path / "value"

    def give(*command: str, value: str) -> None:
        file.write_text(value)
        done = host.orc(*command, str(file))
        assert done.returncode == 0, done.stderr

    data = host.init("one")
    with host.manager(data):
        host.info()
        give("secret", "create", "-l", "team=plain-label", "db", value=values[0])
        give("secret", "update", "db", value=values[1])
        give("config", "create", "app.conf", value=values[2])
        give("secret", "create", "gone", value=values[3])
        assert host.orc("secret", "rm", "gone").returncode == 0
        assert values[2] in host.orc("config", "inspect", "app.conf").stdout
        assert values[1] not in host.orc("secret", "inspect", "db").stdout
    kept = [path.read_bytes() for path in (tmp_path / "etcd").rglob("*") if path.is_file()]
    kept += [path.read_bytes() for path in data.rglob("*") if path.is_file()]
    assert [content for content in kept if b"plain-label" in content]
    for value in values:
        assert not [content for content in kept if value.encode() in content]


def test_a_store_that_holds_another_cluster_is_refused(host: Host) -> None:
    with host.manager(host.init("one")):
        host.info()
    with host.manager(host.init("two")) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(10) == 1
    (line,) = [line for line in said.splitlines() if line.startswith("orc: ")]
    assert "the store holds the cluster" in line
    assert "--etcd-endpoints" in line


def test_a_lost_key_is_refused_until_it_is_back(host: Host, tmp_path: Path) -> None:
    data = host.init("one")
    file = tmp_path / "value"
    file.write_text("correct-horse")
    with host.manager(data):
        host.info()
        assert host.orc("secret", "create", "db", str(file)).returncode == 0
    key = data / "cluster.key"
    kept = key.read_bytes()
    key.unlink()
    with host.manager(data) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(10) == 1
    (line,) = [line for line in said.splitlines() if line.startswith("orc: ")]
    assert f"{key} is missing: restore cluster.key from a backup" in line
    assert not key.exists()
    key.write_bytes(kept)
    with host.manager(data):
        host.info()
    key.unlink()
    host.options.append("--discard-secrets")
    with host.manager(data):
        host.info()
        assert host.orc("secret", "create", "new", str(file)).returncode == 0
    assert key.read_bytes() != kept


def test_half_of_the_certificates_is_a_usage_error(host: Host) -> None:
    done = host.orc("manager", "--etcd-endpoints", "https://x:1", "--etcd-cert", "/x")
    assert done.returncode == 2
    assert "go together" in done.stderr
