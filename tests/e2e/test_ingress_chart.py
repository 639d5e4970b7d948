# SPDX-License-Identifier: Apache-2.0
"""The ingress chart in a cluster: a real HAProxy there terminates TLS for a service."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]

CHART = Path(__file__).parents[2] / "charts" / "ingress"
HOST = "hello.example.org"
ROUTE = f"routes=[{{host: {HOST}, service: hello, port: 80}}]"
SECRET = "ingress-certificate"


def certificate(folder: Path, name: str) -> Path:
    """A new self-signed certificate for HOST; the file has its private key, too."""
    key, cert, both = (folder / f"{name}.{end}" for end in ("key", "crt", "pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    both.write_text(cert.read_text() + key.read_text())
    return both


class Ingress:
    """What answers at the ports of a node."""

    def __init__(self, cluster: Cluster, node: str, trusted: Path) -> None:
        self.address = cluster.nodes()[node]["address"]
        self.context = ssl.create_default_context(cafile=str(trusted))

    def page(self, host: str = HOST) -> tuple[int, str]:
        """Status and body over HTTPS, for a name in the Host header."""
        with socket.create_connection((self.address, 443), timeout=10) as plain:
            connection = http.client.HTTPSConnection(HOST)
            connection.sock = self.context.wrap_socket(plain, server_hostname=HOST)
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def redirect(self) -> tuple[int, str | None]:
        """Status and target of what plain HTTP answers."""
        connection = http.client.HTTPConnection(self.address, 80, timeout=10)
        connection.request("GET", "/path?query=1", headers={"Host": HOST})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Location")


@pytest.fixture
def trusted(cluster: Cluster, hello: str, tmp_path: Path) -> Iterator[Path]:
    """The chart is deployed in front of the service `hello`; the certificate that it serves."""
    subprocess.run([CHART / "prepare"], check=True)
    pem = certificate(tmp_path, "first")
    cluster.orc("secret", "create", SECRET, str(pem))
    cluster.orc("service", "create", "--name", "hello", "--replicas", "2", hello)
    cluster.orc("stack", "deploy", "--set", ROUTE, str(CHART), "front", within=200.0)
    yield pem
    cluster.orc("stack", "rm", "front")
    cluster.orc("secret", "rm", SECRET)


def test_a_service_is_served_by_https(cluster: Cluster, trusted: Path) -> None:
    for node in ("node1", "node2", "node3"):
        ingress = Ingress(cluster, node, trusted)
        status, page = ingress.page()
        assert (status, page.split(".")[0]) == (200, "Hello from hello")
        assert ingress.page("other.example.org") == (404, "no service has this host name")
        assert ingress.redirect() == (301, f"https://{HOST}/path?query=1")


def test_a_new_certificate_is_served_once_the_secret_has_it(
    cluster: Cluster, trusted: Path, tmp_path: Path
) -> None:
    second = certificate(tmp_path, "second")
    with pytest.raises(ssl.SSLCertVerificationError):
        Ingress(cluster, "node1", second).page()
    cluster.orc("secret", "update", SECRET, str(second), within=100.0)

    def served() -> bool:
        return Ingress(cluster, "node1", second).page()[0] == 200

    assert eventually(served)
