# SPDX-License-Identifier: Apache-2.0
"""One dev host: power, its daemon, partitions, and commands in its namespaces."""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from orchestrator.daemon import bareprogram
from orchestrator.dev import hostcgroups, hostinit, underlay
from orchestrator.dev.devplan import ClusterPlan, DevError, HostPlan

_INIT = bareprogram.command("orchestrator.dev.hostinit")

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (fcntl(2)).
_FLOCK = "@hhqqi0q"

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of all processes of a host: `orc` is on PATH even if it is not installed."""
    beside = os.path.dirname(sys.executable)
    return {"PATH": f"{_PATH}:{beside}", "HOME": "/root", "LANG": "C.UTF-8", **(extra or {})}


_PASSED_ON = ("OTEL_", "LD_PRELOAD", "FAKETIME", "ORC_DEBUG")


def _passed_on() -> dict[str, str]:
    """The caller's variables that a daemon gets, too: of OpenTelemetry, of libraries that step its
    wall clock, and the one with which unexpected errors are shown with where they come from."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}


def orc_command() -> list[str]:
    """The `orc` command of this interpreter, independent of PATH."""
    return [sys.executable, str(Path(sys.executable).with_name("orc"))]


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """A daemon's status as reported by the host's init. `pid` is in the host's PID namespace."""

    name: str
    wanted: bool
    pid: int | None
    restarts: int
    last_exit: int | None

    @property
    def state(self) -> str:
        """running, restarting (it died and is about to be restarted) or stopped (on request)."""
        if self.pid is not None:
            return "running"
        return "restarting" if self.wanted else "stopped"


@dataclass(frozen=True, slots=True)
class Host:
    """A host and its folder on disk."""

    plan: HostPlan
    directory: Path

    @property
    def data(self) -> Path:
        """--data-dir of its daemon."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The log file of its daemon."""
        return self.directory / hostinit.LOGS / f"{self.plan.daemon}.log"

    @property
    def _partition(self) -> Path:
        return self.directory / "partition"

    def pid(self) -> int | None:
        """The pid of its init, which holds its lock; None if the host is off."""
        try:
            descriptor = os.open(self.directory / hostinit.LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            lock = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        finally:
            os.close(descriptor)
        return int(lock[4]) if lock[0] != fcntl.F_UNLCK else None

    def boot(self, cluster: ClusterPlan) -> int:
        """Boot it unless it runs: namespaces, init, network. Returns the pid of its init.

        Raises DevError with the reason of a failure.
        """
        pid = self.pid() or self._start_init()
        self._await_init()
        underlay.ensure_plugged(cluster, self.plan, pid)
        if self.partitioned:
            underlay.ensure_partition(pid, self.partitioned_with())
        return pid

    def _start_init(self) -> int:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / hostinit.LOCK).touch(mode=0o600)
        done = subprocess.run(
            [*_INIT, str(self.directory), self.plan.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C on a terminal must not reach hosts that the command started.
            start_new_session=True,
            env=environment(),
            check=False,
        )
        # The init of an interrupted `up` may already hold the lock.
        pid = self.pid()
        if pid is None:
            reason = (done.stderr.strip() or "its init exited").splitlines()[-1]
            raise DevError(f"host {self.plan.name} did not boot: {reason}")
        return pid

    def _await_init(self, within: float = 5.0) -> None:
        deadline = time.monotonic() + within
        while True:
            try:
                self.daemons()
                return
            except DevError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def power_off(self, within: float = 10.0) -> None:
        """A power loss: all its processes end at once, and no peer hears of it. Disk and partition
        are kept.

        No-op if the host is off. Raises DevError if it does not end within `within` seconds.
        """
        hostcgroups.thaw(self._is_own_cgroup)
        deadline = time.monotonic() + within
        while (pid := self.pid()) is not None:
            with suppress(ProcessLookupError):
                self._kill(pid, deadline)
        underlay.unplug(self.plan)
        hostcgroups.remove_cgroups(self._is_own_cgroup)

    def _is_own_cgroup(self, name: str) -> bool:
        return name == self.plan.cgroup

    def _kill(self, pid: int, deadline: float) -> None:
        descriptor = os.pidfd_open(pid)
        try:
            # The descriptor pins the process; checking the lock again proves that it is the init.
            if self.pid() != pid:
                return
            # Else the kernel would close its connections: peers of a real host get no answer.
            with suppress(DevError):
                underlay.ensure_partition(pid, ())
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            with selectors.DefaultSelector() as selector:
                selector.register(descriptor, selectors.EVENT_READ)
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise DevError(
                        f"host {self.plan.name} does not power off (its init has pid {pid})"
                    )
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Power it off and delete its disk. The lock prevents a boot in between."""
        lock = self.directory / hostinit.LOCK
        while lock.exists():
            self.power_off()
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                # The init of an interrupted `up` may be about to take the lock.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self.directory)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)
        self.power_off()
        shutil.rmtree(self.directory, ignore_errors=True)

    def daemons(self) -> dict[str, DaemonStatus]:
        """The daemons that the init has started since the host's boot, by name."""
        return self._request({"order": "status"})

    def start(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, daemon: str = ""
    ) -> None:
        """Start its daemon, or another one, and restart it whenever it dies. No-op if it runs."""
        self._request(
            {
                "order": "start",
                "daemon": daemon or self.plan.daemon,
                "argv": list(argv),
                # registries.conf, auth.json and the like are per host.
                "env": environment(
                    {"HOME": str(self.directory / "home"), **_passed_on(), **(env or {})}
                ),
            }
        )

    def stop(self, grace: float = 10.0) -> None:
        """Stop its daemon with SIGTERM, after `grace` seconds with SIGKILL; it is not restarted."""
        name = self.plan.daemon
        if name not in self.daemons():
            return
        self.signal(signal.SIGTERM, wanted=False)
        deadline = time.monotonic() + grace
        while self.daemons()[name].pid is not None:
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL, wanted=False)
            time.sleep(0.02)

    def signal(self, number: signal.Signals, *, wanted: bool = True) -> None:
        """Send its daemon a signal; the init restarts it only if it is `wanted`."""
        request = {"order": "signal", "daemon": self.plan.daemon, "signal": int(number)}
        self._request({**request, "wanted": wanted})

    def _request(self, request: Mapping[str, object]) -> dict[str, DaemonStatus]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5.0)
                connection.connect(str(self.directory / hostinit.SOCKET))
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    reply = json.loads(stream.readline())
        except (OSError, ValueError) as error:
            raise DevError(
                f"host {self.plan.name} is off: 'orc dev start {self.plan.name}' boots it"
                if self.pid() is None
                else f"the init of host {self.plan.name} does not answer: {error}"
            ) from error
        if "error" in reply:
            raise DevError(f"host {self.plan.name}: {reply['error']}")
        keys = ("name", "wanted", "pid", "restarts", "last_exit")
        return {n: DaemonStatus(**{key: d[key] for key in keys}) for n, d in reply.items()}

    def enter(self, command: Sequence[str]) -> list[str]:
        """The argv that runs a command in all namespaces of the host.

        Raises DevError if the host is off.
        """
        pid = self.pid()
        if pid is None:
            name = self.plan.name
            raise DevError(f"host {name} is off: 'orc dev start {name}' boots it")
        return ["nsenter", "-t", str(pid), "-m", "-u", "-i", "-n", "-p", "--wdns=/", "--", *command]

    def partition(self, reachable: Sequence[IPv4Address]) -> None:
        """Block all traffic except with these addresses until `heal`, across reboots."""
        self._partition.write_text("".join(f"{address}\n" for address in reachable))
        if (pid := self.pid()) is not None:
            underlay.ensure_partition(pid, reachable)

    def partitioned_with(self) -> list[IPv4Address]:
        """The addresses that it can reach while partitioned."""
        return [IPv4Address(line) for line in self._partition.read_text().split()]

    @property
    def partitioned(self) -> bool:
        """Whether it is partitioned."""
        return self._partition.exists()

    def heal(self) -> None:
        """End a partition; no-op without one."""
        if (pid := self.pid()) is not None:
            underlay.remove_partition(pid)
        self._partition.unlink(missing_ok=True)
