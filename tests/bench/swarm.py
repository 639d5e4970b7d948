# SPDX-License-Identifier: Apache-2.0
"""A Docker Swarm of three managers, to measure the loss of its leader beside Orc's.

Its three daemons have network namespaces of their own, joined by a bridge in a fourth one; a
process of a PID namespace holds that, so that all of it ends with this process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import image
from tests.bench.cluster import MANAGERS, BenchError
from tests.bench.docker import Docker, cgroup, remove_cgroups
from tests.bench.processes import descendants, say

ROUNDS = 5
_WITHIN = 60.0
_POLL = 0.05
_SWITCH = "ip link add br0 type bridge && ip link set br0 up && exec sleep infinity"
_DAEMON = """
set -e
mount -t tmpfs tmpfs /run
ip link set lo up
# The kernel removes that of a daemon that was killed in its own time.
nsenter -t 1 -n ip link delete port$1 2>/dev/null || true
ip link add eth0 type veth peer name port$1 netns 1
nsenter -t 1 -n ip link set port$1 master br0 up
ip address add 192.0.2.$1/24 dev eth0
ip link set eth0 up
shift
exec "$@"
"""


@dataclass(slots=True)
class _Manager:
    """One of the daemons, while it runs."""

    number: int
    home: Path
    process: subprocess.Popen[bytes]
    docker: Docker

    @property
    def address(self) -> str:
        return f"192.0.2.{self.number}"


@dataclass(slots=True)
class _Swarm:
    folder: Path
    name: str
    switch: subprocess.Popen[bytes]
    managers: dict[int, _Manager] = field(default_factory=dict)

    def start(self, number: int) -> _Manager:
        """Start a daemon, with what it had before."""
        home = self.folder / f"swarm{number}"
        home.mkdir(exist_ok=True)
        (home / "daemon.json").write_text("{}")
        for stale in ("pid", "docker.sock"):
            (home / stale).unlink(missing_ok=True)
        shutil.rmtree(home / "exec", ignore_errors=True)  # of a containerd that was killed
        with (home / "log").open("ab") as log:
            process = subprocess.Popen(
                self._command(home, number),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        manager = _Manager(number, home, process, Docker(home, process))
        self.managers[number] = manager
        manager.docker.await_ready()
        return manager

    def kill(self, manager: _Manager) -> None:
        """SIGKILL for the daemon and its containerd."""
        del self.managers[manager.number]
        manager.docker.close()
        for each in reversed(descendants(manager.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        manager.process.wait()

    def _command(self, home: Path, number: int) -> Sequence[str]:
        (held,) = [each.pid for each in descendants(self.switch.pid) if each.program == "sleep"]
        return (
            *("nsenter", "-t", str(held), "--net", "--pid", "--mount"),
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--net", "--uts", "--ipc"),
            *("sh", "-c", _DAEMON, "sh", str(number), "dockerd"),
            *("--config-file", str(home / "daemon.json")),
            *("--data-root", str(home / "data"), "--exec-root", str(home / "exec")),
            *("--pidfile", str(home / "pid"), "--host", f"unix://{home / 'docker.sock'}"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--cgroup-parent", f"/{cgroup(self.name)}"),
        )

    def call(self, method: str, path: str, body: object = None) -> object:
        """A request to the first daemon that answers it."""
        reason: BenchError | None = None
        for manager in list(self.managers.values()):
            try:
                return manager.docker.call(method, path, body)
            except BenchError as error:
                reason = error
        raise reason or BenchError("no daemon of the swarm runs")

    def leader(self) -> int | None:
        """The number of the leader; None while there is none, or a manager is not reachable."""
        with suppress(BenchError):
            found = self.call("GET", "/nodes")
            assert isinstance(found, list)
            ready = [
                node["ManagerStatus"]
                for node in found
                if node["Status"]["State"] == "ready"
                and node.get("ManagerStatus", {}).get("Reachability") == "reachable"
            ]
            if len(ready) == MANAGERS:
                for each in ready:
                    if each.get("Leader"):
                        return int(each["Addr"].split(":")[0].rpartition(".")[2])
        return None

    def placed(self, service: str) -> None:
        """Create a service of one task, and wait until it has a node."""
        spec = {"Name": service, "TaskTemplate": {"ContainerSpec": {"Image": image.NAME}}}
        deadline = time.monotonic() + _WITHIN
        query = urllib.parse.quote(json.dumps({"service": [service]}))
        while time.monotonic() < deadline:
            with suppress(BenchError):
                for manager in list(self.managers.values()):
                    with suppress(BenchError):
                        manager.docker.call("POST", "/services/create", spec)
                        break
                found = self.call("GET", f"/tasks?filters={query}")
                if isinstance(found, list) and any(task.get("NodeID") for task in found):
                    return
            time.sleep(_POLL)
        raise BenchError(f"the swarm placed no task within {_WITHIN:.0f} s")


@contextmanager
def _swarm(folder: Path, name: str, archive: Path) -> Iterator[_Swarm]:
    switch = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--net", "--pid", "--fork"),
            *("--mount-proc", "--kill-child=KILL", "sh", "-c", _SWITCH),
        ],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    swarm = _Swarm(folder, name, switch)
    try:
        deadline = time.monotonic() + 10.0
        while not any(each.program == "sleep" for each in descendants(switch.pid)):
            if time.monotonic() > deadline:
                raise BenchError("the bridge between the daemons cannot be made")
            time.sleep(_POLL)
        first = swarm.start(1)
        own = {"ListenAddr": f"{first.address}:2377", "AdvertiseAddr": first.address}
        first.docker.call("POST", "/images/load?quiet=1", data=archive.read_bytes())
        first.docker.call("POST", "/swarm/init", own)
        token = first.docker.call("GET", "/swarm")["JoinTokens"]["Manager"]
        for number in range(2, MANAGERS + 1):
            other = swarm.start(number)
            other.docker.call("POST", "/images/load?quiet=1", data=archive.read_bytes())
            own = {"ListenAddr": f"{other.address}:2377", "AdvertiseAddr": other.address}
            joined = {**own, "RemoteAddrs": [f"{first.address}:2377"], "JoinToken": token}
            other.docker.call("POST", "/swarm/join", joined)
        yield swarm
    finally:
        for manager in list(swarm.managers.values()):
            swarm.kill(manager)
        switch.kill()
        switch.wait()
        remove_cgroups(name)


def measure(folder: Path, name: str, archive: Path, rounds: int = ROUNDS) -> list[float]:
    """Seconds from SIGKILL for the leader's daemon until a task of a new service has a node, of
    each round. `archive` is the benchmark's image; the daemons have their folders in `folder`.
    `name` is the run's. Raises BenchError when the swarm does not recover."""
    took: list[float] = []
    with _swarm(folder, name, archive) as swarm:
        for number in range(rounds):
            leader = swarm.managers[_await_leader(swarm)]
            began = time.monotonic()
            swarm.kill(leader)
            swarm.placed(f"r{number}")
            took.append(time.monotonic() - began)
            say(f"failover: swarm, round {number + 1} of {rounds}: {took[-1]:.2f}")
            swarm.start(leader.number)
            swarm.call("DELETE", f"/services/r{number}")
    return took


def _await_leader(swarm: _Swarm) -> int:
    deadline = time.monotonic() + _WITHIN
    while (leader := swarm.leader()) is None:
        if time.monotonic() > deadline:
            raise BenchError(f"the swarm has not recovered within {_WITHIN:.0f} s")
        time.sleep(_POLL)
    return leader
