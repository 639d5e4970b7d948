"""The Debian package: built, installed and run on a copy of this host without the source tree."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


class Host:
    """The copy: this host's root with a layer over it, without our own installation."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *words: str) -> list[str]:
        return ["unshare", "--pid", "--fork", "--kill-child", "chroot", str(self.root), *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from what is committed and what is not yet."""
    built = subprocess.run(
        [ROOT / "scripts" / "deb"], capture_output=True, text=True, timeout=280, check=False
    )
    assert built.returncode == 0, built.stderr
    return ROOT / built.stdout.strip()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    work = tmp_path / "host"
    with ExitStack() as stack:

        def mount(*arguments: str | Path) -> None:
            subprocess.run(["mount", *arguments], check=True)
            stack.callback(subprocess.run, ["umount", "-l", arguments[-1]], check=False)

        work.mkdir()
        # Its own file system, since one overlay cannot lie over another everywhere.
        mount("-t", "tmpfs", "-o", "size=2g", "tmpfs", work)
        upper, inner, root = (work / name for name in ("upper", "work", "root"))
        for folder in (upper, inner, root):
            folder.mkdir()
        layers = f"lowerdir=/,upperdir={upper},workdir={inner}"
        mount("-t", "overlay", "overlay", "-o", layers, root)
        for special in ("proc", "dev", "sys"):
            mount("--rbind", f"/{special}", root / special)
            subprocess.run(["mount", "--make-rslave", root / special], check=True)
        for ours in (ROOT.relative_to("/"), "usr/local/bin/orc", "usr/local/bin/orc-cni"):
            path = root / ours
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        shutil.rmtree(root / "var/lib/orc", ignore_errors=True)
        (root / "tmp").mkdir(exist_ok=True)
        yield Host(root)


def test_installed_it_serves_a_cluster_and_removed_it_is_gone(host: Host, package: Path) -> None:
    shutil.copy(package, host.root / "tmp" / "orc.deb")
    host.run("dpkg", "-i", "/tmp/orc.deb")
    assert host.run("orc", "--version").strip().endswith("0.1.0")
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
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "NOTIFY_SOCKET": "/tmp/notify",
                "WATCHDOG_USEC": "1000000",
            },
            stderr=subprocess.DEVNULL,
        )
        try:
            assert systemd.recv(64) == b"READY=1"
            assert systemd.recv(64) == b"WATCHDOG=1"
            assert "127.0.0.1:17420" in host.run("orc", "cluster", "info")
            assert "orc cluster join" in host.run("orc", "cluster", "token", "worker")
        finally:
            os.kill(manager.pid, signal.SIGTERM)
            assert manager.wait(timeout=40) == 0
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
