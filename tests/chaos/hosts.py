# SPDX-License-Identifier: Apache-2.0
"""The dev cluster of a run, and its hosts as the machine sees them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.dev.devcluster import ROOT, DevCluster
from orchestrator.dev.devplan import DevError
from tests.bench import image
from tests.bench.processes import Process, descendants

ORC = str(Path(sys.executable).with_name("orc"))

DISK, MANAGER_DISK = "192m", "448m"
"""Sizes of the hosts' disks: small, so that they can be filled. etcd allocates its log in files of
64 MiB."""

REPAIRED_WITHIN = 300.0
"""Seconds after which the repair of a fault is given up: others may last as long."""

UP = 300.0
"""Seconds within which all hosts are up, on a machine with other work."""

CLOCK = "/run/orc-clock"
"""The file on each host that says by how much its wall clock is off."""

FAKETIME = {
    "LD_PRELOAD": "/usr/$LIB/faketime/libfaketime.so.1",
    "FAKETIME_TIMESTAMP_FILE": CLOCK,
    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    "FAKETIME_DISABLE_SHM": "1",
    "FAKETIME_CACHE_DURATION": "1",
}
"""Variables of a daemon whose wall clock can be stepped (libfaketime). etcd, a static program, has
the machine's clock."""

DEBUG = "ORC_DEBUG"
"""Variable with which a daemon shows where an unexpected error comes from."""

PROGRAMS: dict[str, Callable[[Process], bool]] = {
    "manager": lambda process: "manager" in process.argv and "--data-dir" in process.argv,
    "agent": lambda process: "agent" in process.argv and "--data-dir" in process.argv,
    "etcd": lambda process: process.program == "etcd",
    "network helper": lambda process: "orchestrator.cni.helper" in process.argv,
    "name server": lambda process: "orchestrator.nameserver" in process.argv,
    "monitor": lambda process: process.program == "conmon",
}
"""How the processes of each kind are recognized."""


class RunError(Exception):
    """The run cannot go on; the text says why."""


class NotThere(Exception):
    """The target of a fault does not exist now, such as a process on a host that is off."""


@dataclass(frozen=True, slots=True)
class Testbed:
    """A dev cluster whose hosts have small disks. Enter it to bring it up."""

    name: str
    managers: int
    nodes: int
    folder: Path
    dev: DevCluster = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dev", DevCluster(self.name))

    @property
    def manager_hosts(self) -> tuple[str, ...]:
        return tuple(f"manager{number + 1}" for number in range(self.managers))

    @property
    def node_hosts(self) -> tuple[str, ...]:
        return tuple(f"node{number + 1}" for number in range(self.nodes))

    @property
    def hosts(self) -> tuple[str, ...]:
        return (*self.manager_hosts, *self.node_hosts)

    def address(self, host: str) -> str:
        return str(self.dev.plan.host(host).address)

    def data(self, host: str) -> Path:
        return ROOT / self.name / host / "data"

    def disk(self, host: str) -> Path:
        return ROOT / self.name / host

    def pid(self, host: str) -> int | None:
        """The host's init; None when it is off."""
        return self.dev.host(host).pid()

    def processes(self, host: str) -> list[Process]:
        """The host's processes; none when it is off."""
        pid = self.pid(host)
        return descendants(pid) if pid is not None else []

    def find(self, host: str, program: str) -> list[Process]:
        """The host's processes of a kind of PROGRAMS, or its containers' first ones."""
        found = self.processes(host)
        if program == "container":
            monitors = {process.pid for process in found if PROGRAMS["monitor"](process)}
            return [each for each in found if each.parent in monitors and each.program != "crun"]
        return [process for process in found if PROGRAMS[program](process)]

    def run(self, host: str, *command: str, stdin: str = "") -> str:
        """Run a program of the machine in a host's network. Raises RunError."""
        pid = self.pid(host)
        if pid is None:
            raise RunError(f"{host} is off")
        words = ["nsenter", "-t", str(pid), "-n", *command]
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RunError(f"{' '.join(command)} on {host}: {done.stderr.strip()}")
        return done.stdout

    def up(self, say: Callable[[str], None]) -> None:
        """Bring it up. Raises RunError."""
        for host in self.hosts:
            self.disk(host).mkdir(parents=True)
            size = DISK if host in self.node_hosts else MANAGER_DISK
            options = f"size={size},mode=711"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "disk", self.disk(host)], check=True
            )
        os.environ.update(FAKETIME)
        os.environ[DEBUG] = "1"
        try:
            self.dev.up(self.managers, self.nodes, say, within=UP)
        except DevError as error:
            raise RunError(str(error)) from error
        archive = self.folder / "image.tar"
        image.write(archive)
        self.orc("load", str(archive))

    def down(self) -> None:
        """Remove all of it."""
        for host in self.hosts:
            with suppress(DevError):
                self.dev.kill(host)
        for host in self.hosts:
            subprocess.run(["umount", "-l", self.disk(host)], check=False, capture_output=True)
        self.dev.down()
        shutil.rmtree(ROOT / self.name, ignore_errors=True)

    def orc(self, *arguments: str, within: float = 60.0) -> str:
        """What an `orc` command prints. Raises RunError with what it refused."""
        try:
            done = subprocess.run(
                [ORC, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=within,
                check=False,
                env=self.environment(),
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"orc {' '.join(arguments)}: no end after {within:g} s") from error
        if done.returncode != 0:
            raise RunError(f"orc {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Of `orc` commands for this cluster."""
        own = {name: value for name, value in os.environ.items() if name != DEBUG}
        return {**own, "ORC_CONTEXT": self.name, "ORC_MONITOR": "0s"}


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended. `status` None: it was killed after its time."""

    status: int | None
    out: str
    err: str


async def command(
    words: Sequence[str], within: float, env: dict[str, str] | None = None, given: str = ""
) -> Answer:
    """Run a program for at most `within` seconds; it reads `given`."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    )
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate(given.encode())
    except TimeoutError:
        return Answer(None, "", f"no end after {within:g} s")
    finally:
        if process.returncode is None:
            send(process.pid, signal.SIGKILL)
            await process.wait()
    return Answer(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal to a process of the machine; False if it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
