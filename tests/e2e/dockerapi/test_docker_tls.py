# SPDX-License-Identifier: Apache-2.0
"""The gateway over TCP: only admins of the cluster get in."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ORC, Cluster, eventually
from dockerclient import Docker, gateway
from registryhost import certificate

from tests.freeports import free_ports

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture
def remote(cluster: Cluster, tmp_path: Path) -> Iterator[Docker]:
    """The docker CLI without a certificate, and a gateway over TCP."""
    crt, key = certificate(tmp_path, "127.0.0.1")
    url = f"127.0.0.1:{free_ports()}"
    flags = ("--listen", url, "--tlscert", str(crt), "--tlskey", str(key))
    with gateway(cluster, tmp_path, *flags) as local:
        yield Docker(f"tcp://{url}", local.env)


def _flags(remote: Docker, folder: Path, certificate: str, key: str) -> tuple[str, ...]:
    """The flags of a client with this certificate."""
    (folder / "client.pem").write_text(certificate)
    (folder / "client.key").write_text(key)
    return (
        *("-H", remote.url, "--tlsverify", "--tlscacert", str(folder / "tls.crt")),
        *("--tlscert", str(folder / "client.pem"), "--tlskey", str(folder / "client.key")),
    )


def test_admin_may_use_it_until_the_certificate_is_revoked(
    cluster: Cluster, remote: Docker, tmp_path: Path
) -> None:
    data = str(cluster.data("manager1"))
    for words in (
        ("cluster", "admin", "--data-dir", data, "--context", "anna", "--name", "anna"),
        ("node", "ls"),  # managers know an admin's certificate from its first use
    ):
        subprocess.run(
            [ORC, *words],
            env={**cluster.env, "XDG_CONFIG_HOME": str(tmp_path)},
            check=True,
            capture_output=True,
        )
    anna = json.loads((tmp_path / "orc" / "contexts" / "anna.json").read_text())
    flags = _flags(remote, tmp_path, anna["certificate"], anna["key"])
    assert remote(*flags, "version", "--format", "{{.Server.APIVersion}}") == "1.45"
    assert remote(*flags, "ps", "-q") == ""
    cluster.orc("cluster", "revoke", "admin", "anna", "--reason", "left")

    def refused() -> bool:
        done = remote.run(*flags, "ps", ok=False)
        assert done.returncode != 0
        assert "this certificate was revoked" in done.stderr
        return True

    eventually(refused)


def test_nodes_and_strangers_are_refused(cluster: Cluster, remote: Docker, tmp_path: Path) -> None:
    keys = cluster.data("node1").rglob("*.key")
    [own] = [each for each in keys if each.with_suffix(".pem").exists()]
    flags = _flags(remote, tmp_path, own.with_suffix(".pem").read_text(), own.read_text())
    assert "the role 'worker' may not use Docker's API" in remote.refused(*flags, "ps")
    stranger = [(tmp_path / name).read_text() for name in ("tls.crt", "tls.key")]
    flags = _flags(remote, tmp_path, *stranger)
    assert remote.run(*flags, "ps", ok=False).returncode != 0
    assert remote.run("-H", remote.url, "--tls", "ps", ok=False).returncode != 0


def test_options_of_tcp_go_together(cluster: Cluster, tmp_path: Path) -> None:
    words = ("docker-api", "--socket", str(tmp_path / "s"))
    done = cluster.orc(*words, "--listen", "127.0.0.1:1", ok=False)
    assert done.returncode == 2
    assert "--tlscert" in done.stderr
    flags = ("--listen", "127.0.0.1:1", "--tlscert", "/nosuch", "--tlskey", "/nosuch")
    assert "/nosuch" in cluster.refused(*words, *flags)
