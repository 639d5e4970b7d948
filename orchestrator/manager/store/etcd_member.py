# SPDX-License-Identifier: Apache-2.0
"""The etcd member that a manager runs if no endpoints are given.

It listens on loopback only and trusts only a CA in its own data folder. It outlives the manager: it
has a session of its own, so that killing the manager does not kill it; the next manager on the same
data folder finds it running and adopts it (`etcd_process`). A file lock excludes that two managers
do so at the same time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType

from orchestrator.daemon.background import background
from orchestrator.linux.atomicfile import write_file
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_process import EtcdProcess, find_orphan, start
from orchestrator.manager.store.etcd_tls import EtcdTls, MemberTls, ensure_member_tls
from orchestrator.manager.store.kv import StoreError, StoreUnavailable

log = logging.getLogger(__name__)

MAX_TXN_OPS = 4096
MAX_REQUEST_BYTES = 16 << 20
QUOTA_BYTES = 4 << 30
HISTORY = "10m"
"""How long etcd keeps history; a watch is never further behind than its reconnect takes."""

READY_TIMEOUT = 30.0
"""Seconds until a started member must answer (a large log is replayed first)."""

ADOPT_TIMEOUT = 5.0
"""Seconds that an etcd found running has to answer before it is restarted."""

FIRST_BACKOFF = 0.1
LONGEST_BACKOFF = 5.0
STABLE_AFTER = 10.0
"""Seconds of uptime after which the restart backoff is reset."""


class EtcdMember:
    """A running etcd, supervised while the `async with` lasts. Raises StoreError on entry: no etcd
    binary, data folder in use, or etcd's own reason for not starting."""

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: str = "etcd",
        client_port: int | None = None,
        peer_port: int | None = None,
    ) -> None:
        """`data_dir` is created if missing. Ports that are not given are chosen and remembered."""
        self._folder = data_dir.absolute()
        self._binary = binary
        self._given = (client_port, peer_port)
        self._stack = AsyncExitStack()
        self._command: tuple[str, ...] = ()
        self._process: EtcdProcess | None = None
        self._ports = (0, 0)
        self._tls: MemberTls | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Its client URLs; valid inside the `async with`."""
        return (f"https://127.0.0.1:{self._ports[0]}",)

    @property
    def tls(self) -> EtcdTls:
        """Client credentials; valid inside the `async with`."""
        assert self._tls is not None
        return self._tls.client

    @property
    def max_txn_ops(self) -> int:
        return MAX_TXN_OPS

    @property
    def pid(self) -> int:
        """The running process; changes with a restart."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> EtcdMember:
        async with self._stack as stack:
            binary = _find(self._binary)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.enter_context(_Lock(self._folder / "lock"))
            self._tls = ensure_member_tls(self._folder / "tls", dt.datetime.now(dt.UTC))
            orphan = find_orphan(self._folder)
            self._ports = _ports(self._folder / "ports.json", self._given, orphan is not None)
            self._command = await asyncio.to_thread(self._arguments, binary, self._tls.server)
            if orphan is not None and (self._tls.renewed_ca or orphan.command != self._command):
                log.info("etcd %d runs with other settings: restarting it", orphan.pid)
                await orphan.stop()
                orphan = None
            if orphan is not None and not await self._answers(orphan, ADOPT_TIMEOUT):
                log.warning("etcd %d runs but does not answer: restarting it", orphan.pid)
                await orphan.stop()
                orphan = None
            if orphan is not None:
                log.info("adopted etcd %d", orphan.pid)
            self._process = orphan or start(self._command, self._folder)
            stack.push_async_callback(self._stop)
            await self._ready(self._process)
            await stack.enter_async_context(background(self._supervise()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    def _arguments(self, binary: str, tls: EtcdTls) -> tuple[str, ...]:
        client = f"https://127.0.0.1:{self._ports[0]}"
        peer = f"https://127.0.0.1:{self._ports[1]}"
        rotation = {"maxsize": 10, "maxage": 0, "maxbackups": 1, "localtime": False}
        return (
            binary,
            "--name=orc",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=orc={peer}",
            f"--cert-file={tls.cert}",
            f"--key-file={tls.key}",
            f"--trusted-ca-file={tls.ca}",
            "--client-cert-auth",
            f"--peer-cert-file={tls.cert}",
            f"--peer-key-file={tls.key}",
            f"--peer-trusted-ca-file={tls.ca}",
            "--peer-client-cert-auth",
            f"--max-txn-ops={MAX_TXN_OPS}",
            f"--max-request-bytes={MAX_REQUEST_BYTES}",
            f"--quota-backend-bytes={QUOTA_BYTES}",
            # A single member hears only itself, so a short timeout causes no false election, and a
            # restarted member leads after 0.25 to 0.5 s instead of 1 to 2 s.
            "--heartbeat-interval=50",
            "--election-timeout=250",
            "--auto-compaction-mode=periodic",
            f"--auto-compaction-retention={HISTORY}",
            "--grpc-keepalive-min-time=1s",
            "--enable-grpc-gateway=false",
            "--logger=zap",
            f"--log-outputs={self._folder / 'etcd.log'}",
            *_known(
                binary,
                "--tls-min-version=TLS1.3",
                "--enable-log-rotation",
                f"--log-rotation-config-json={json.dumps(rotation)}",
            ),
        )

    async def _ready(self, process: EtcdProcess) -> None:
        """Wait until it serves; StoreError with etcd's reason if it does not."""
        if await self._answers(process, READY_TIMEOUT):
            return
        if process.ended:
            raise StoreError(f"etcd does not start: {_exit_reason(self._folder)}")
        raise StoreError(
            f"etcd did not get ready within {READY_TIMEOUT:g} s; see {self._folder / 'etcd.log'}"
        )

    async def _answers(self, process: EtcdProcess, within: float) -> bool:
        """Whether a linearizable read succeeds before the deadline and while the process lives."""
        loop = asyncio.get_running_loop()
        end = loop.time() + within
        async with EtcdKv(self.endpoints, self.tls, timeout=0.5) as kv:
            while loop.time() < end and not process.ended:
                with suppress(StoreUnavailable):
                    await kv.get("ready")
                    return True
        return False

    async def _supervise(self) -> None:
        """Restart etcd whenever it ends."""
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF
        while True:
            assert self._process is not None
            since = loop.time()
            await self._process.wait()
            if loop.time() - since >= STABLE_AFTER:
                backoff = FIRST_BACKOFF
            log.warning("etcd %d ended: %s", self._process.pid, self._cause(self._process))
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)
            try:
                fresh = start(self._command, self._folder)
            except OSError as error:  # its binary is being upgraded, or memory is short
                log.error("cannot start etcd: %s", error)
                continue
            os.close(self._process.pidfd)
            self._process = fresh

    def _cause(self, process: EtcdProcess) -> str:
        if process.child is None:
            return "its status went to another parent"
        if process.child.returncode < 0:
            return f"killed by {signal.Signals(-process.child.returncode).name}"
        return f"status {process.child.returncode}, {_exit_reason(self._folder)}"

    async def _stop(self) -> None:
        assert self._process is not None
        await self._process.stop()


class _Lock:
    """An exclusive file lock, released by the kernel when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> _Lock:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise StoreError(
                f"another manager runs on {self._path.parent}: stop it, or use another data folder"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _known(binary: str, *arguments: str) -> tuple[str, ...]:
    """The flags that this etcd knows: Debian 12 and Ubuntu 24.04 ship 3.4, which lacks some of
    3.5's."""
    asked = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False)
    words = set((asked.stdout + asked.stderr).split())
    return tuple(each for each in arguments if each.partition("=")[0] in words)


def _find(binary: str) -> str:
    found = shutil.which(binary)
    if found is None:
        raise StoreError(
            f"{binary} is not installed: apt install etcd-server, or give --etcd-endpoints"
        )
    return found


def _ports(memory: Path, given: tuple[int | None, int | None], running: bool) -> tuple[int, int]:
    """Client and peer port: as given, else as remembered if free (or ours), else chosen."""
    try:
        known = json.loads(memory.read_text())
        remembered = (int(known["client"]), int(known["peer"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        remembered = (0, 0)
    chosen: list[int] = []
    for wanted, last in zip(given, remembered, strict=True):
        if wanted is not None:
            chosen.append(wanted)
        elif last and (running or _free(last)):
            chosen.append(last)
        else:
            chosen.append(_free_port())
    ports = (chosen[0], chosen[1])
    if ports != remembered:
        write_file(memory, json.dumps({"client": ports[0], "peer": ports[1]}))
    return ports


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _exit_reason(folder: Path) -> str:
    """The reason that etcd gave for its end, as short as it can be found."""
    for line in reversed(_tail(folder / "etcd.log")):
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["level"] in ("fatal", "panic", "error"):
                return f"{entry.get('error') or entry['msg']} (see {folder / 'etcd.log'})"
    words = [line for line in _tail(folder / "etcd.err") if line.strip()]
    return words[-1] if words else f"no reason in {folder / 'etcd.log'}"


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
