# SPDX-License-Identifier: Apache-2.0
"""What a test can do to the testbed: by Vagrant, as root on a machine, and to its power."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .hypervisor import URI

VAGRANT = Path(__file__).parents[3] / "vagrant"
PREFIX = "192.168.57"
CLIENT = f"{PREFIX}.1"
"""The host's own address on the private network."""
ADDRESSES = {"manager1": f"{PREFIX}.11", "worker1": f"{PREFIX}.21", "worker2": f"{PREFIX}.22"}


@dataclass(frozen=True, slots=True)
class Testbed:
    """Three machines, in a network that only this process and its children are in."""

    __test__ = False

    folder: Path
    """Vagrant's state, and keys."""

    def environment(self) -> Mapping[str, str]:
        """Vagrant's."""
        return {
            **os.environ,
            "VAGRANT_HOME": str(self.folder / "vagrant"),
            "VAGRANT_DOTFILE_PATH": str(self.folder / "machines"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_NO_COLOR": "1",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "ORC_BOX": "testbed",
            "ORC_PACKAGES": str(self.packages),
            "ORC_MONITORING": "0",
            "ORC_MEMORY": "1024",
        }

    @property
    def packages(self) -> Path:
        """The folder of the packages that the machines get."""
        return self.folder / "packages"

    def private_keys(self) -> list[Path]:
        """Private keys that Vagrant logs in with to a machine that is new."""
        return sorted((self.folder / "vagrant/insecure_private_keys").iterdir())

    def newer_packages(self) -> dict[str, Path]:
        """The same ones by name, with a greater version."""
        newer = {}
        for package in self.packages.glob("*.deb"):
            name = package.name.partition("_")[0]
            tree, newer[name] = self.folder / "newer", self.folder / f"{name}-newer.deb"
            shutil.rmtree(tree, ignore_errors=True)
            subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
            control = tree / "DEBIAN/control"
            (version,) = re.findall(r"(?m)^Version: (.*)$", control.read_text())
            control.write_text(control.read_text().replace(version, f"{version}+newer"))
            build = ["dpkg-deb", "-Znone", "-b", tree, newer[name]]
            subprocess.run(build, stdout=subprocess.DEVNULL, check=True)
        return newer

    def vagrant(self, *words: str, within: float) -> None:
        """Run Vagrant, which must succeed `within` seconds. Its output is in `vagrant.log`."""
        log = self.folder / "vagrant.log"
        with log.open("a") as file:
            done = subprocess.run(
                ["vagrant", *words],
                cwd=VAGRANT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=within,
                check=False,
            )
        last = [line for line in log.read_text().splitlines() if "Progress" not in line][-30:]
        assert done.returncode == 0, "\n".join((f"vagrant {' '.join(words)}:", *last))

    def on(
        self, machine: str, *command: str, ok: bool = True, within: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root. It must succeed, unless `ok` is False.

        A machine that does not answer is a status of 255.
        """
        options = {
            "IdentityFile": self.private_keys()[0],
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "ConnectTimeout": "30",
            "ServerAliveInterval": "15",
            # A log-in costs an emulated processor a second or two.
            "ControlMaster": "auto",
            "ControlPersist": "600",
            "ControlPath": self.folder / f"ssh-{machine}",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        argv = ["ssh", "-q", *flags, f"vagrant@{ADDRESSES[machine]}"]
        argv.append(shlex.join(["sudo", *command]))
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=within,
                check=False,
            )
        except subprocess.TimeoutExpired:
            done = subprocess.CompletedProcess(argv, 255, "", f"no answer within {within:.0f} s")
        if ok:
            assert done.returncode == 0, f"{machine}: {command}: {done.stderr or done.stdout}"
        return done

    def send(self, machine: str, file: Path, to: str) -> None:
        """Copy a file of the host to a machine."""
        argv = ["vagrant", "upload", str(file), to, machine]
        subprocess.run(
            argv, cwd=VAGRANT, env=self.environment(), capture_output=True, check=True, timeout=600
        )

    def power_off(self, machine: str) -> None:
        """Pull the plug."""
        self._virsh("destroy", machine)

    def power_on(self, machine: str) -> None:
        self._virsh("start", machine)

    def boot_id(self, machine: str) -> str:
        """Of the kernel that runs; empty while none answers."""
        told = self.on(machine, "cat", "/proc/sys/kernel/random/boot_id", ok=False)
        return told.stdout.strip() if told.returncode == 0 else ""

    def shows(self, machine: str, unit: str, name: str) -> str:
        """A property of a systemd unit."""
        return self.on(machine, "systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def _virsh(self, verb: str, machine: str) -> None:
        argv = ["virsh", "-q", "-c", URI, verb, f"vagrant_{machine}"]
        subprocess.run(argv, capture_output=True, check=True)


class Stopwatch:
    """Says when what was done, beneath the tests' own lines."""

    def __init__(self, aloud: Callable[[], AbstractContextManager[None]]) -> None:
        self._aloud = aloud
        self._began = time.monotonic()

    def __call__(self, what: str) -> None:
        with self._aloud():
            print(f"\n    {time.monotonic() - self._began:5.0f} s  {what}", flush=True)
