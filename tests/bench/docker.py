# SPDX-License-Identifier: Apache-2.0
"""A Docker daemon of our own, to measure beside: it never meets one that the machine has.

It is the second process of a PID namespace, with namespaces of its own for mounts (a `/run` of
its own) and network (its iptables rules and bridges stay in there), and with all its folders in
the run's. So ending that namespace ends every process of it and takes every mount, link and rule
along, and all that is left to remove is its cgroups. If this process is killed, the kernel ends
the namespace by itself.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench import image, processes
from tests.bench.cluster import BenchError
from tests.bench.processes import Process

ADDRESS = "192.0.2.1"
"""Of its only interface, which leads nowhere (RFC 5737)."""
POLL = 0.05
"""Seconds between two looks at the state of tasks."""

_CGROUPS = Path("/sys/fs/cgroup")
_READY = 30.0
_SETUP = f"""
set -e
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add eth0 type veth peer name outside
ip link set outside up
ip address add {ADDRESS}/24 dev eth0
ip link set eth0 up
exec "$@"
"""


def missing() -> str:
    """Why Docker cannot be measured here; empty if it can."""
    lacking = [name for name in ("dockerd", "tini", "unshare") if shutil.which(name) is None]
    if not lacking:
        return ""
    return f"Docker was not measured: {lacking[0]} is not installed (Debian: docker.io)"


def cgroup(name: str) -> str:
    """The parent of all cgroups of a run's containers."""
    return f"{name}-docker"


def remove_cgroups(name: str) -> None:
    """Remove what a daemon that has ended left in the machine's cgroups."""
    for top in [_CGROUPS / cgroup(name), *_CGROUPS.glob(f"*/{cgroup(name)}")]:
        for folder, _, _ in os.walk(top, topdown=False):
            _rmdir(Path(folder))


def _rmdir(folder: Path, within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # A killed process leaves its cgroup a moment after it has ended for us.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class Docker:
    """A running daemon, by its API, over one connection that stays."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._socket = folder / "docker.sock"
        self._log = folder / "log"
        self._process = process
        self._connection = UnixConnection(self._socket)

    @property
    def host(self) -> str:
        """DOCKER_HOST for the `docker` command."""
        return f"unix://{self._socket}"

    def call(self, method: str, path: str, body: Any = None, data: bytes | None = None) -> Any:
        """One request; the decoded answer. Raises BenchError with the daemon's words."""
        headers = {"Content-Type": "application/x-tar" if data else "application/json"}
        content = data if data is not None else json.dumps(body) if body is not None else None
        try:
            self._connection.request(method, path, body=content, headers=headers)
            response = self._connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise BenchError(
                f"dockerd does not answer ({error}); it said: {self._last()}"
            ) from error
        if response.status >= 300:
            raise BenchError(f"dockerd refused {method} {path}: {text.decode(errors='replace')}")
        try:
            return json.loads(text) if text else None
        except ValueError:
            return text  # a stream of progress

    def await_ready(self) -> None:
        """Until it answers. Raises BenchError if it does not, or has ended."""
        deadline = time.monotonic() + _READY
        while True:
            try:
                self.call("GET", "/_ping")
                return
            except BenchError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def prepare(self, archive: Path) -> None:
        """Load the benchmark's image, and make a swarm of this one node."""
        self.call("POST", "/images/load?quiet=1", data=archive.read_bytes())
        self.call("POST", "/swarm/init", {"ListenAddr": ADDRESS, "AdvertiseAddr": ADDRESS})

    @contextmanager
    def service(self, replicas: int, network: str, within: float) -> Iterator[float]:
        """A Swarm service: the seconds from the API call until all of its tasks run. Removed, with
        its containers, when the block is left. Raises BenchError if it takes too long."""
        spec = {
            "Name": "bench",
            "TaskTemplate": {
                "ContainerSpec": {"Image": image.NAME, "StopSignal": "SIGKILL"},
                "Networks": [{"Target": network}],
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
        }
        began = time.monotonic()
        service_id = self.call("POST", "/services/create", spec)["ID"]
        try:
            yield self._running(service_id, replicas, began, within)
        finally:
            self.call("DELETE", f"/services/{service_id}")
            self._await(lambda: not self.call("GET", "/containers/json?all=1"), 90.0)

    def _running(self, service_id: str, replicas: int, began: float, within: float) -> float:
        query = urllib.parse.quote(json.dumps({"service": [service_id]}))

        def count() -> int:
            tasks = self.call("GET", f"/tasks?filters={query}")
            return sum(task["Status"]["State"] == "running" for task in tasks)

        if not self._await(lambda: count() == replicas, within):
            raise BenchError(f"only {count()} of {replicas} ran within {within:.0f} s")
        return time.monotonic() - began

    def _await(self, true: Callable[[], bool], within: float) -> bool:
        deadline = time.monotonic() + within
        while not true():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return True

    @contextmanager
    def overlay(self) -> Iterator[str]:
        """A network that spans hosts, by name."""
        name = "bench-overlay"
        self.call("POST", "/networks/create", {"Name": name, "Driver": "overlay"})
        try:
            yield name
        finally:
            # Its last endpoints go a moment after their containers.
            self._await(lambda: self._gone(name), 10.0)

    def _gone(self, network: str) -> bool:
        try:
            self.call("DELETE", f"/networks/{network}")
        except BenchError:
            return False
        return True

    def run(self) -> float:
        """One container on the default bridge, by the API: the seconds until it runs."""
        began = time.monotonic()
        made = self.call("POST", "/containers/create", {"Image": image.NAME})["Id"]
        self.call("POST", f"/containers/{made}/start")
        took = time.monotonic() - began
        self.call("DELETE", f"/containers/{made}?force=1")
        return took

    def processes(self) -> list[Process]:
        """The daemon, its containerd, and everything below."""
        return processes.descendants(self._process.pid)

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def _last(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing"


@contextmanager
def daemon(folder: Path, name: str, archive: Path) -> Iterator[Docker]:
    """A daemon that has the benchmark's image and is a swarm of one; gone with the block."""
    home = folder / "docker"
    home.mkdir()
    (home / "daemon.json").write_text("{}")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            _command(home, name),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for the benchmark, which then ends the daemon.
            start_new_session=True,
        )
    docker = Docker(home, process)
    try:
        docker.await_ready()
        docker.prepare(archive)
        yield docker
    finally:
        docker.close()
        process.send_signal(signal.SIGKILL)
        process.wait()
        remove_cgroups(name)


def _command(home: Path, name: str) -> Sequence[str]:
    return (
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--net", "--uts", "--ipc", "--pid"),
        *("--fork", "--mount-proc", "--kill-child=KILL"),
        *("sh", "-c", _SETUP, "sh", "tini", "-g", "--", "dockerd"),
        *("--config-file", str(home / "daemon.json")),
        *("--data-root", str(home / "data"), "--exec-root", str(home / "exec")),
        *("--pidfile", str(home / "pid"), "--host", f"unix://{home / 'docker.sock'}"),
        *("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{cgroup(name)}"),
    )


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
