# SPDX-License-Identifier: Apache-2.0
"""The Debian packages: built, installed and run on a copy of this host without the source tree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import PATIENCE
from packagedhost import ENVIRONMENT, ROOT, PackagedHost, packaged_host

from orchestrator import __version__

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PackagedHost]:
    with packaged_host(tmp_path / "host") as host:
        yield host


def installed(host: PackagedHost, packages: list[Path], *names: str) -> None:
    files = [package for package in packages if package.name.partition("_")[0] in names]
    assert len(files) == len(names)
    for file in files:
        shutil.copy(file, host.root / "tmp")
    host.run("dpkg", "-i", *(f"/tmp/{file.name}" for file in files))


def test_the_client_alone_is_a_client(host: PackagedHost, packages: list[Path]) -> None:
    installed(host, packages, "orc")
    assert "Orc runs containers" in host.run("orc", "--help")
    host.run("/usr/lib/orc/bin/python", "-I", "-c", "import orchestrator.cli.top.top_screen")
    refused = host.run("sh", "-c", "orc manager --data-dir /tmp/manager 2>&1 || true")
    assert refused == "orc: this command needs a package: apt install orc-agent orc-manager\n"


def test_installed_they_serve_a_cluster_and_removed_they_are_gone(
    host: PackagedHost, packages: list[Path]
) -> None:
    everything = ("orc", "orc-common", "orc-agent", "orc-manager")
    installed(host, packages, *everything)
    assert host.run("orc", "--version").split()[-1] == __version__
    assert host.run("man", "--where", "orc-service-create").endswith(
        "man1/orc-service-create.1.gz\n"
    )
    completed = "source /usr/share/bash-completion/bash_completion; _comp_load orc; complete -p orc"
    assert "_orc_completion" in host.run("bash", "-c", completed)
    assert "_orc" in host.run("zsh", "-c", "autoload -Uz compinit; compinit -D; echo $_comps[orc]")
    assert "services" in host.run("fish", "-c", "complete -C 'orc serv'")
    asked = 'echo \'{"cniVersion": "1.0.0"}\' | CNI_COMMAND=VERSION orc-cni'
    assert "supportedVersions" in host.run("sh", "-c", asked)
    said = host.run("orc", "cluster", "init", "--advertise", "127.0.0.1", "--listen-port", "17420")
    assert "Start its manager" in said
    heard = host.root / "tmp" / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(heard))
        systemd.settimeout(60)
        manager = subprocess.Popen(
            ["chroot", host.root, "orc", "manager", "--config", "/etc/orc/manager.toml"],
            env={**ENVIRONMENT, "NOTIFY_SOCKET": "/tmp/notify", "WATCHDOG_USEC": "1000000"},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert systemd.recv(64) == b"READY=1"
            assert systemd.recv(64) == b"STATUS="
            assert systemd.recv(64) == b"WATCHDOG=1"
            assert "127.0.0.1:17420" in host.run("orc", "cluster", "info")
            assert "orc cluster join" in host.run("orc", "cluster", "token", "worker")
            assert docker_ping(host) == b"OK"
        finally:
            os.kill(manager.pid, signal.SIGTERM)
            assert manager.wait(PATIENCE) == 0
    host.run("dpkg", "-r", *everything)
    assert not (host.root / "usr/lib/orc").exists()
    assert not (host.root / "usr/bin/orc").exists()
    # The cluster's own is left alone.
    assert (host.root / "var/lib/orc/manager/manager.json").exists()


def docker_ping(host: PackagedHost) -> bytes:
    """The answer of Docker's API, started as its unit does, to `/_ping`."""
    unit = (ROOT / "packaging" / "orc-docker-api.service").read_text()
    [command] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    gateway = subprocess.Popen(
        ["chroot", host.root, *command.removeprefix("ExecStart=").split()],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert gateway.stderr is not None
        said = gateway.stderr.readline()
        assert said == "serving Docker's Engine API at unix:///run/orc/docker.sock\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(host.root / "run/orc/docker.sock"))
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        return answer.rpartition(b"\r\n\r\n")[2]
    finally:
        os.kill(gateway.pid, signal.SIGTERM)
        assert gateway.wait(PATIENCE) == 0


_THREE = """
set -e
wait_until() {
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    "$@"
}
ready() { test "$(orc manager ls -q --filter state=ready | wc -l)" = "$1"; }
orc cluster init --advertise 127.0.0.1
orc manager --config /etc/orc/manager.toml 2>/tmp/m1.log &
wait_until ready 1
for n in 2 3; do
    data=/var/lib/orc/manager$n
    token=$(orc cluster token -q manager)
    orc cluster join --token "$token" --address 127.0.0.$n --data-dir $data 127.0.0.1:7421
    orc manager --config /etc/orc/manager.toml --data-dir $data 2>/tmp/m$n.log &
    wait_until ready $n
done
orc manager store status --format json >/tmp/status.json
"""


def test_managers_of_the_package_join(host: PackagedHost, packages: list[Path]) -> None:
    installed(host, packages, "orc", "orc-common", "orc-agent", "orc-manager")
    done = subprocess.run(
        host.alone("sh", "-c", _THREE),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((host.root / "tmp" / "status.json").read_text())
    assert sorted(row["role"] for row in rows) == ["follower", "follower", "leader"]
    assert {row["quota"] for row in rows} == {4 << 30}


def test_packages_contain_the_expected_files(packages: list[Path]) -> None:
    listed = "".join(
        subprocess.run(
            ["dpkg-deb", "-c", package], capture_output=True, text=True, check=True
        ).stdout
        for package in packages
    )
    for path in (
        *("./usr/bin/orc", "./usr/bin/orc-cni", "./usr/lib/systemd/system/orc-agent.service"),
        *("./usr/lib/systemd/system/orc-manager.service", "./etc/orc/agent.toml"),
        "./usr/lib/systemd/system/orc-docker-api.service",
        *(
            "./usr/share/man/man1/orc-service-create.1.gz",
            "./usr/share/zsh/vendor-completions/_orc",
        ),
        *("./usr/share/bash-completion/completions/orc", "./usr/share/man/man1/orc.1.gz"),
        "./usr/share/fish/vendor_completions.d/orc.fish",
        *("./usr/share/orc/charts/monitoring/compose.yaml", "./usr/share/doc/orc/copyright"),
    ):
        assert path in listed
    assert str(ROOT) not in listed
