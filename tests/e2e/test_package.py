"""The Debian package: built, installed and run on a copy of this host without the source tree."""

from __future__ import annotations

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


def test_installed_it_serves_a_cluster_and_removed_it_is_gone(
    host: PackagedHost, package: Path
) -> None:
    shutil.copy(package, host.root / "tmp" / "orc.deb")
    host.run("dpkg", "-i", "/tmp/orc.deb")
    assert host.run("orc", "--version").split()[-1] == __version__
    assert host.run("man", "--where", "orc-service-create").endswith(
        "man1/orc-service-create.1.gz\n"
    )
    completed = "source /usr/share/bash-completion/bash_completion; _comp_load orc; complete -p orc"
    assert "_orc_completion" in host.run("bash", "-c", completed)
    assert "_orc" in host.run("zsh", "-c", "autoload -Uz compinit; compinit -D; echo $_comps[orc]")
    assert "services" in host.run("fish", "-c", "complete -C 'orc serv'")
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
            assert systemd.recv(64) == b"WATCHDOG=1"
            assert "127.0.0.1:17420" in host.run("orc", "cluster", "info")
            assert "orc cluster join" in host.run("orc", "cluster", "token", "worker")
        finally:
            os.kill(manager.pid, signal.SIGTERM)
            assert manager.wait(PATIENCE) == 0
    host.run("dpkg", "-r", "orc")
    assert not (host.root / "usr/lib/orc").exists()
    assert not (host.root / "usr/bin/orc").exists()
    # The cluster's own is left alone.
    assert (host.root / "var/lib/orc/manager/manager.json").exists()


def test_what_is_in_it(package: Path) -> None:
    listed = subprocess.run(
        ["dpkg-deb", "-c", package], capture_output=True, text=True, check=True
    ).stdout
    for path in (
        *("./usr/bin/orc", "./usr/bin/orc-cni", "./usr/lib/systemd/system/orc-agent.service"),
        *("./usr/lib/systemd/system/orc-manager.service", "./etc/orc/agent.toml"),
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
    control = subprocess.run(
        ["dpkg-deb", "-f", package], capture_output=True, text=True, check=True
    ).stdout
    needs = ("crun", "conmon", "etcd-server", "nftables", "netavark", "e2fsprogs", "python3 (<< ")
    for needed in needs:
        assert needed in control
