# SPDX-License-Identifier: Apache-2.0
"""A command beside a libvirt of its own.

Its network, mounts and processes are their own: libvirt's bridges and rules do not meet this
machine's, and when the command is over, or this process is killed, the kernel ends all that there
is: libvirt, its virtual machines, Vagrant's connections to them. State and disks are in FOLDER.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

URI = "qemu:///system"
FOLDER = "ORC_TESTBED"
"""Environment variable of the command: the folder."""
START_WITHIN = 60.0
INIT = ("tini", "-s", "--")
"""Process 1: libvirt waits until what it ended is gone, and somebody must reap that."""

CONFIG = {
    "libvirtd.conf": 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n',
    "qemu.conf": (
        'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\n'
        'namespaces = []\nremember_owner = 0\nstdio_handler = "file"\n'
    ),
    "network.conf": 'firewall_backend = "iptables"\n',
}

MOUNTS = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/log/libvirt")
"""Folders of libvirt's; those of FOLDER lie over them."""


def main(folder: Path, command: Sequence[str]) -> int:
    """Inside: start libvirt, run the command, and return its exit status."""
    _mount(folder)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with (folder / "libvirtd.log").open("w") as log:
        daemon = subprocess.Popen(["libvirtd"], stdout=log, stderr=log)
    _await(daemon, folder / "libvirtd.log")
    _define_pool()
    return subprocess.run(command, check=False).returncode


def enclose(folder: Path, command: Sequence[str]) -> NoReturn:
    """Become a process that runs the command beside a libvirt, and ends with its exit status."""
    own = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    again = [sys.executable, "-m", "tests.vm.testbed.hypervisor", str(folder), *command]
    # In place of this process: whoever kills it kills `unshare`, and so all that is inside.
    os.execvpe("unshare", ["unshare", *own, *INIT, *again], {**os.environ, FOLDER: str(folder)})


def _mount(folder: Path) -> None:
    # Of this network: libvirt looks there for its bridges.
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    for place in MOUNTS:
        own = folder / place.lstrip("/")
        own.mkdir(parents=True, exist_ok=True)
        Path(place).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(own), place], check=True)
    for name, text in CONFIG.items():
        Path("/etc/libvirt", name).write_text(text)


def _await(daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN
    while subprocess.run(["virsh", "-q", "-c", URI, "version"], capture_output=True).returncode:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"libvirtd does not answer: {log.read_text()[-2000:]}")
        time.sleep(0.2)


def _define_pool() -> None:
    images = Path("/var/lib/libvirt/images")
    images.mkdir(parents=True, exist_ok=True)
    virsh = ["virsh", "-q", "-c", URI]
    define = ["pool-define-as", "default", "dir", "--target", str(images)]
    for words in (define, ["pool-start", "default"]):
        subprocess.run([*virsh, *words], check=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
