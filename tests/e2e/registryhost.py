# SPDX-License-Identifier: Apache-2.0
"""A real registry (Debian's docker-registry) on a host of the dev cluster."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import ORC, PATIENCE, Cluster, eventually

CLUSTERS = Path("/var/lib/orc-dev")


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """One that runs."""

    name: str
    """HOST:PORT."""
    log: Path

    def requests(self, method: str, pattern: str) -> list[str]:
        """The paths of the requests so far that were answered with success and match."""
        found = re.findall(rf'"{method} (\S+) HTTP/1.1" 2\d\d', self.log.read_text())
        return [path for path in found if re.search(pattern, path)]


def home(cluster: Cluster, node: str) -> Path:
    """Where a host's own configuration of the containers tools is."""
    return CLUSTERS / cluster.name / node / "home" / ".config" / "containers"


def allow_insecure(cluster: Cluster, registry: str, *nodes: str) -> None:
    for node in nodes:
        folder = home(cluster, node)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "registries.conf").write_text(
            f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n'
        )


def trust(cluster: Cluster, registry: str, certificate: Path, *nodes: str) -> None:
    for node in nodes:
        folder = home(cluster, node) / "certs.d" / registry
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca.crt").write_bytes(certificate.read_bytes())


def htpasswd(user: str, password: str) -> str:
    """A line of a password file; bcrypt, which is all that the registry takes."""
    salt = "$2y$05$abcdefghijklmnopqrstuu"
    program = "print crypt($ARGV[0], $ARGV[1])"
    done = subprocess.run(
        ["perl", "-e", program, password, salt], check=True, capture_output=True, text=True
    )
    return f"{user}:{done.stdout}\n"


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """A self-signed certificate for an address, and its key."""
    crt, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=r", "-addext", f"subjectAltName=IP:{address}"),
            *("-keyout", key, "-out", crt),
        ],
        check=True,
        capture_output=True,
    )
    return crt, key


@contextmanager
def registry(
    cluster: Cluster,
    folder: Path,
    node: str = "node1",
    port: int = 5000,
    *,
    tls: bool = False,
    password: str = "",
) -> Iterator[RegistryHost]:
    """Run one on a node's host for the length of the block."""
    address = cluster.nodes()[node]["address"]
    lines = [
        "version: 0.1",
        "log: {accesslog: {disabled: false}, level: warn}",
        f"storage: {{filesystem: {{rootdirectory: {folder}/storage}}}}",
    ]
    http = f"addr: '{address}:{port}'"
    if tls:
        crt, key = certificate(folder, address)
        http += f", tls: {{certificate: {crt}, key: {key}}}"
    lines.append(f"http: {{{http}}}")
    if password:
        (folder / "htpasswd").write_text(htpasswd("orc", password))
        lines.append(f"auth: {{htpasswd: {{realm: orc, path: {folder}/htpasswd}}}}")
    config = folder / "registry.yml"
    config.write_text("\n".join(lines) + "\n")
    log = folder / "registry.log"
    command = [ORC, "dev", "exec", "--name", cluster.name, node]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "docker-registry", "serve", str(config)],
            env=cluster.env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _await_port(cluster, node, address, port, process, log)
            yield RegistryHost(f"{address}:{port}", log)
        finally:
            cluster.exec(node, "pkill", "-f", str(config), ok=False)
            process.wait(PATIENCE)


def _await_port(
    cluster: Cluster,
    node: str,
    address: str,
    port: int,
    process: subprocess.Popen[bytes],
    log: Path,
) -> None:
    test = ["bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"]

    def answers() -> bool:
        return process.poll() is not None or cluster.exec(node, *test).returncode == 0

    eventually(answers)
    assert process.poll() is None, log.read_text()
