# SPDX-License-Identifier: Apache-2.0
"""A manager in its real process, with its real etcd, and the processes of the simulated agents."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc

from orchestrator.identity import ca, join_tokens
from orchestrator.identity.bootstrap import init_cluster
from orchestrator.identity.certificates import KeyPair
from orchestrator.identity.host_identity import ManagerIdentity
from orchestrator.identity.tls import channel_options
from orchestrator.pb import control_pb2, control_pb2_grpc
from tests.bench import processes
from tests.enclosure import enclosed
from tests.freeports import free_ports
from tests.scale.agents import Report, parse

ORC = str(Path(sys.executable).with_name("orc"))
ROOT = Path(__file__).parents[2]
AGENTS_A_PROCESS = 250


class ScaleError(Exception):
    """Something did not start; the text says what."""


class ManagerProcess:
    """`orc manager` on loopback ports. All that it starts ends with it."""

    def __init__(self, folder: Path, *, external_etcd: bool = False) -> None:
        self._folder = folder
        self._external = external_etcd
        self.identity: ManagerIdentity
        self._authority = ""
        self._admin: KeyPair
        self._process: subprocess.Popen[bytes]
        self._etcd: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Of the manager itself."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.identity.port}"

    @property
    def join_address(self) -> str:
        return f"127.0.0.1:{self.identity.port + 1}"

    @property
    def token(self) -> str:
        return str(join_tokens.JoinToken(ca.digest(self._authority), self.identity.worker_token))

    @property
    def log(self) -> str:
        """All that it has written."""
        return (self._folder / "manager.log").read_text()

    def channel(self) -> grpc.aio.Channel:
        """An administrator's connection."""
        pair = self._admin
        credentials = grpc.ssl_channel_credentials(
            self._authority.encode(), pair.key.encode(), pair.certificate.encode()
        )
        return grpc.aio.secure_channel(self.address, credentials, options=channel_options())

    @property
    def cpu_seconds(self) -> float:
        return processes.cpu_seconds([_process(self.pid)])

    @property
    def memory(self) -> int:
        """Bytes resident."""
        return processes.memory([_process(self.pid)]).rss

    @property
    def store_cpu_seconds(self) -> float:
        """Of etcd."""
        return processes.cpu_seconds(self._store())

    @property
    def store_memory(self) -> int:
        """Bytes resident in etcd."""
        return processes.memory(self._store()).rss

    def _store(self) -> list[processes.Process]:
        root = self._etcd or self._process
        return [each for each in processes.descendants(root.pid) if each.program == "etcd"]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have it run while the body does."""
        self.identity, self._authority, self._admin = init_cluster(
            self._folder / "data", "127.0.0.1", free_ports(6), "10.128.0.0/14"
        )
        try:
            self._start()
            yield
        finally:
            for process in (getattr(self, "_process", None), self._etcd):
                if process is not None:
                    process.kill()
                    process.wait()

    def _start(self) -> None:
        command = [ORC, "manager", "--data-dir", str(self._folder / "data")]
        if self._external:
            port = free_ports(2)
            client, peer = (f"http://127.0.0.1:{number}" for number in (port, port + 1))
            with (self._folder / "etcd.log").open("wb") as log:
                self._etcd = subprocess.Popen(
                    enclosed(
                        [
                            "etcd",
                            f"--data-dir={self._folder / 'etcd'}",
                            f"--listen-client-urls={client}",
                            f"--advertise-client-urls={client}",
                            f"--listen-peer-urls={peer}",
                            f"--initial-advertise-peer-urls={peer}",
                            f"--initial-cluster=default={peer}",
                        ]
                    ),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            command += ["--etcd-endpoints", client]
        with (self._folder / "manager.log").open("wb") as log:
            self._process = subprocess.Popen(
                enclosed(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def ready(self) -> None:
        """Wait until it leads and answers. Raises ScaleError when it has ended."""
        while 'msg="elected"' not in self.log and "msg=elected" not in self.log:
            if self._process.poll() is not None:
                raise ScaleError(f"the manager ended: {self.log.splitlines()[-1:]}")
            await asyncio.sleep(0.05)
        async with self.channel() as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            await stub.GetCluster(control_pb2.GetClusterRequest(), wait_for_ready=True)
        self.pid = _manager_below(self._process.pid)

    def logged(self, message: str) -> int:
        """How many lines of its log have this message."""
        return len(re.findall(rf'msg="?{re.escape(message)}"?(?: |$)', self.log, re.M))


def _manager_below(pid: int) -> int:
    """`orc manager` among the descendants of an enclosure."""
    for process in processes.descendants(pid):
        if process.program.startswith("python") and "manager" in process.argv:
            return process.pid
    raise ScaleError("the manager's process cannot be found")


def _process(pid: int) -> processes.Process:
    return processes.Process(pid, 0, ())


class Agents:
    """Simulated agents in a few processes."""

    def __init__(self, manager: ManagerProcess, count: int) -> None:
        self.count = count
        self._manager = manager
        self._processes: list[asyncio.subprocess.Process] = []
        self._reports: list[Report] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have them join and be in session while the body runs."""
        try:
            async with asyncio.TaskGroup() as group:
                readers = []
                for first in range(0, self.count, AGENTS_A_PROCESS):
                    count = min(AGENTS_A_PROCESS, self.count - first)
                    process = await self._start(first, count)
                    self._reports.append(Report())
                    reading = self._read(process, len(self._processes) - 1)
                    readers.append(group.create_task(reading))
                yield
                for reader in readers:
                    reader.cancel()
        finally:
            for process in self._processes:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _start(self, first: int, count: int) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-m", "tests.scale.agents"),
            *("--first", str(first), "--count", str(count)),
            *("--join", self._manager.join_address),
            cwd=ROOT,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._processes.append(process)
        assert process.stdin is not None
        process.stdin.write(f"{self._manager.token}\n".encode())
        return process

    async def _read(self, process: asyncio.subprocess.Process, index: int) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._reports[index] = parse(line.decode())
        raise ScaleError("a process of simulated agents has ended")

    def fail(self, count: int) -> None:
        """Stop `count` agents permanently; their nodes go down."""
        for first, process in zip(
            range(0, self.count, AGENTS_A_PROCESS), self._processes, strict=True
        ):
            here = min(AGENTS_A_PROCESS, self.count - first, count)
            if here > 0 and process.stdin is not None:
                process.stdin.write(f"fail {here}\n".encode())
                count -= here

    def reconnect(self) -> None:
        """Break all sessions at once."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"reconnect\n")

    @property
    def report(self) -> Report:
        """The sum of what they have seen, as of a quarter of a second ago."""
        total = Report()
        for each in self._reports:
            for field in fields(Report):
                ours, theirs = getattr(total, field.name), getattr(each, field.name)
                added: Any
                if isinstance(ours, dict):
                    added = dict(Counter(ours) + Counter(theirs))
                else:
                    added = ours + theirs
                setattr(total, field.name, added)
        return total


@contextmanager
def burning(cores: int) -> Iterator[None]:
    """So many processes that do nothing but use a core each."""
    burners = [
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", "while True: pass"]
        )
        for _ in range(cores)
    ]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
