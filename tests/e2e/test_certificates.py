# SPDX-License-Identifier: Apache-2.0
"""Old certificates are renewed while everything runs; expired ones have a way back."""

from __future__ import annotations

import datetime as dt
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from devcluster import Cluster, eventually

from orchestrator.identity import ca
from orchestrator.identity.certificates import KeyPair, Life, TlsFiles

pytestmark = [pytest.mark.root, pytest.mark.e2e]


class Certificates:
    """What a cluster's hosts and its user have, and the CA to make others."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.manager = TlsFiles.of(cluster.data("manager1"), "manager")
        self.node = TlsFiles.of(cluster.data("node1"), "node")
        key = (cluster.data("manager1") / "ca.key").read_text()
        self.authority = KeyPair(self.manager.ca.read_text(), key)

    def aged(self, certificate: str, days: int) -> KeyPair:
        """One for the same holder that was signed so many days ago, for 90."""
        [name], [role], [cluster] = (
            x509.load_pem_x509_certificate(certificate.encode()).subject.get_attributes_for_oid(oid)
            for oid in (
                NameOID.COMMON_NAME,
                NameOID.ORGANIZATION_NAME,
                NameOID.ORGANIZATIONAL_UNIT_NAME,
            )
        )
        addresses = [self.address.partition(":")[0], "127.0.0.1"] if role.value == "manager" else []
        return ca.issue(
            self.authority,
            common_name=str(name.value),
            role=str(role.value),
            cluster_id=str(cluster.value),
            now=dt.datetime.now(dt.UTC) - dt.timedelta(days=days),
            addresses=addresses,
        )

    @property
    def address(self) -> str:
        """HOST:PORT of the manager."""
        identity = json.loads((self.cluster.data("manager1") / "manager.json").read_text())
        return f"{identity['address']}:{identity['port']}"

    def shown(self, host: str, port: int) -> str:
        """The certificate that a listener shows to who connects now, PEM."""
        program = (
            "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2]))))"
        )
        done = self.cluster.exec("node1", "python3", "-c", program, host, str(port))
        return done.stdout.strip() + "\n"

    def context(self) -> dict[str, Any]:
        """The user's."""
        found: dict[str, Any] = json.loads(self._context_file.read_text())
        return found

    def put_context(self, pair: KeyPair) -> None:
        life = Life.of(pair.certificate)
        assert life is not None
        renewal = life.renewal(0.0).timestamp()
        changed = {"certificate": pair.certificate, "key": pair.key, "renew_at": renewal}
        self._context_file.write_text(json.dumps(self.context() | changed))

    @property
    def _context_file(self) -> Path:
        folder = Path(self.cluster.env["XDG_CONFIG_HOME"]) / "orc" / "contexts"
        return folder / f"{self.cluster.name}.json"


def der(pem: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem)


def test_old_certificates_are_renewed_and_nothing_stops(cluster: Cluster, hello: str) -> None:
    have = Certificates(cluster)
    # Its node may be away for as long as daemons take to stop and to start.
    where = ("--constraint", "node.hostname==node1", "--on-disconnect", "keep")
    [task] = cluster.script("still", hello, "sleep 1000", *where)
    old = {}
    for host, files in (("manager1", have.manager), ("node1", have.node)):
        old[host] = have.aged(files.pair.read().certificate, days=80)
        cluster.stop(host)
        files.pair.replace(old[host])
        cluster.start(host)
    eventually(lambda: have.manager.pair.read() != old["manager1"])
    eventually(lambda: have.node.pair.read() != old["node1"])

    # Listeners that were open before show the new ones.
    host, _, port = have.address.partition(":")
    manager = der(have.manager.pair.read().certificate)
    eventually(lambda: der(have.shown(host, int(port))) == manager)
    eventually(lambda: der(have.shown(host, int(port) + 2)) == manager)
    node = cluster.nodes()["node1"]
    renewed = der(have.node.pair.read().certificate)
    eventually(lambda: der(have.shown(node["address"], 7424)) == renewed)

    # And they open sessions.
    cluster.stop("node1")
    cluster.start("node1")
    cluster.await_ready("node1")
    assert [each["pid"] for each in cluster.await_running("still", 1)] == [task["pid"]]


def test_a_context_is_renewed_by_the_command_that_uses_it(cluster: Cluster) -> None:
    have = Certificates(cluster)
    fresh = have.context()
    try:
        old = have.aged(fresh["certificate"], days=50)
        have.put_context(old)
        cluster.orc("node", "ls")
        renewed = have.context()
        assert renewed["certificate"] != old.certificate
        cluster.orc("node", "ls")
        assert have.context() == renewed, "once is enough"
    finally:
        have.put_context(KeyPair(fresh["certificate"], fresh["key"]))


def test_expired_admin_certificate_is_replaced_on_a_managers_host(cluster: Cluster) -> None:
    have = Certificates(cluster)
    fresh = have.context()
    try:
        have.put_context(have.aged(fresh["certificate"], days=100))
        assert (
            "has expired, is from before a rotation of the CA, or is of another"
            in cluster.refused("node", "ls")
        )
        data = str(cluster.data("manager1"))
        cluster.orc("cluster", "admin", "--data-dir", data, "--context", cluster.name)
        cluster.orc("node", "ls")
    finally:
        have.put_context(KeyPair(fresh["certificate"], fresh["key"]))
