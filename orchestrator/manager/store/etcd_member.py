# SPDX-License-Identifier: Apache-2.0
"""The etcd member that a manager runs if no endpoints are given.

It serves clients on loopback only and trusts only a CA in its own data folder. It outlives the
manager: it has a session of its own, so that killing the manager does not kill it; the next manager
on the same data folder finds it running and adopts it (`etcd_process`). A file lock excludes that
two managers do so at the same time.

Members of other managers (peers) are a matter of `Peering`: without it, the peer port is on
loopback, too. With it, the port is at the manager's address and accepts only certificates of
managers, which the cluster's CA signed: `--peer-cert-allowed-hostname` requires the name that only
they carry. etcd reads certificate and key at each handshake, so it follows their renewal.
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
import subprocess
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from orchestrator.daemon.background import background
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.ports import choose_port, is_free
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_maintenance import EtcdMaintenance
from orchestrator.manager.store.etcd_membership import EtcdMembership, Member
from orchestrator.manager.store.etcd_process import EtcdProcess, find_orphan, start
from orchestrator.manager.store.etcd_tls import EtcdTls, MemberTls, ensure_member_tls
from orchestrator.manager.store.kv import StoreError, StoreUnavailable
from orchestrator.model.administration.managers import host_port

log = logging.getLogger(__name__)

MAX_TXN_OPS = 4096
MAX_REQUEST_BYTES = 16 << 20
QUOTA = 4 << 30
"""Bytes of the database's file at which etcd refuses writes, unless another quota is given."""
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


_MEMBERS_CHANGED = ("member count is unequal", "unmatched member while checking PeerURLs")


class MemberRemoved(StoreError):
    """The etcd cluster has removed this member for good."""


class MembersChanged(StoreError):
    """The cluster has other members than those that this one was to join."""


@dataclass(frozen=True, slots=True)
class Peering:
    """How a member meets those of other managers."""

    name: str
    """Of the member: the manager's id."""
    address: str
    """Of this host, which the others reach."""
    port: int
    tls: EtcdTls
    """The manager's certificate of the cluster's CA."""
    allowed_name: str
    """A DNS name that every manager's certificate carries, and no other."""
    initial_cluster: str = ""
    """Members that a new member joins, as etcd's flag has them; empty: it begins a cluster."""

    @property
    def url(self) -> str:
        """The member's peer URL."""
        return f"https://{host_port(self.address, self.port)}"


class EtcdMember:
    """A running etcd, supervised while the `async with` lasts. Raises StoreError on entry: no etcd
    binary, data folder in use, or etcd's own reason for not starting. MemberRemoved ends the body
    if the cluster removes the member."""

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: str = "etcd",
        client_port: int | None = None,
        peer_port: int | None = None,
        peering: Peering | None = None,
        quota: int = QUOTA,
        force_new_cluster: bool = False,
    ) -> None:
        """`data_dir` is created if missing. Ports that are not given are chosen and remembered.
        `peer_port` is that on loopback, without `peering`. `quota` is in bytes.
        `force_new_cluster` makes it the only member of its cluster, without the agreement of the
        others."""
        self._folder = data_dir.absolute()
        self._binary = binary
        self._given = (client_port, peer_port)
        self._peering = peering
        self._quota = quota
        self._force = force_new_cluster
        self._opening = asyncio.Lock()
        self._replaced = asyncio.Event()
        """Set when the process that runs has the newest command line."""
        self._membership: EtcdMembership | None = None
        self._maintenance: EtcdMaintenance | None = None
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
    def peering(self) -> Peering | None:
        """How it meets other members; None: it listens on loopback only."""
        return self._peering

    @property
    def membership(self) -> EtcdMembership:
        """Calls about the cluster's members; valid inside the `async with`."""
        assert self._membership is not None
        return self._membership

    @property
    def maintenance(self) -> EtcdMaintenance:
        """Calls about its database; valid inside the `async with`."""
        assert self._maintenance is not None
        return self._maintenance

    @property
    def quota(self) -> int:
        """Bytes of the database's file at which etcd refuses writes."""
        return self._quota

    async def open_to_peers(self, peering: Peering) -> Member:
        """Listen for members of other managers from now on; the member itself, as the others are to
        know it. Restarts etcd if it listens on loopback only, which takes about a second; no-op
        otherwise. Raises StoreError."""
        async with self._opening:
            if self._peering is None:
                log.info("opening etcd to other managers", extra={"url": peering.url})
                assert self._tls is not None
                self._peering = peering
                self._command = await asyncio.to_thread(
                    self._arguments, _find(self._binary), self._tls.server
                )
                self._replaced.clear()
                assert self._process is not None
                signal.pidfd_send_signal(self._process.pidfd, signal.SIGTERM)
                await self._replaced.wait()
                await self._ready(self._process)
            return await self._advertise(self._peering)

    async def restart(self) -> None:
        """Restart etcd, so that it reads the CAs that it trusts; return once it serves. No-op if it
        listens on loopback only, with a CA of its own. Raises StoreError."""
        async with self._opening:
            if self._peering is None:
                return
            log.info("restarting etcd for the CAs that it trusts")
            self._replaced.clear()
            assert self._process is not None
            signal.pidfd_send_signal(self._process.pidfd, signal.SIGTERM)
            await self._replaced.wait()
            await self._ready(self._process)

    async def _advertise(self, peering: Peering) -> Member:
        """Have the cluster know this member by its peer URL."""
        own = (await self.membership.status()).id
        member = next(each for each in await self.membership.members() if each.id == own)
        if member.peer_urls != (peering.url,):
            log.info(
                "changing the peer URL of the etcd member",
                extra={"was": ",".join(member.peer_urls), "url": peering.url},
            )
            await self.membership.update(own, peering.url)
        return member

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
            self._membership = await stack.enter_async_context(
                EtcdMembership(self.endpoints, self._tls.client)
            )
            self._maintenance = await stack.enter_async_context(
                EtcdMaintenance(self.endpoints, self._tls.client)
            )
            if orphan is not None and not await self._lives(orphan):
                log.warning("etcd %d runs but does not answer: restarting it", orphan.pid)
                await orphan.stop()
                orphan = None
            if orphan is not None:
                log.info("adopted etcd %d", orphan.pid)
            self._process = orphan or start(self._command, self._folder)
            stack.push_async_callback(self._stop)
            await self._ready(self._process)
            if self._peering is not None:
                await self._advertise(self._peering)
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
        name, peer, joins, peers_tls = "orc", f"https://127.0.0.1:{self._ports[1]}", "", tls
        # A single member hears only itself, so a short timeout causes no false election, and a
        # restarted member leads after 0.25 to 0.5 s instead of 1 to 2 s.
        timing = ("--heartbeat-interval=50", "--election-timeout=250")
        more: tuple[str, ...] = ()
        if (peering := self._peering) is not None:
            name, peer, joins = peering.name, peering.url, peering.initial_cluster
            peers_tls = peering.tls
            timing = ("--heartbeat-interval=100", "--election-timeout=1000")
            more = (
                f"--initial-cluster-state={'existing' if joins else 'new'}",
                # The manager compares healthy members with the quorum itself; etcd would refuse
                # each change within five seconds of the last.
                "--strict-reconfig-check=false",
                *_known(
                    binary,
                    f"--peer-cert-allowed-hostname={peering.allowed_name}",
                    # A manager may connect from another address than the one it advertises.
                    "--experimental-peer-skip-client-san-verification",
                    "--peer-skip-client-san-verification",
                ),
            )
            if f"--peer-cert-allowed-hostname={peering.allowed_name}" not in more:
                raise StoreError(
                    f"{binary} is too old for several managers: install etcd 3.5 or newer"
                )
        rotation = {"maxsize": 10, "maxage": 0, "maxbackups": 1, "localtime": False}
        return (
            binary,
            f"--name={name}",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={joins or f'{name}={peer}'}",
            f"--cert-file={tls.cert}",
            f"--key-file={tls.key}",
            f"--trusted-ca-file={tls.ca}",
            "--client-cert-auth",
            f"--peer-cert-file={peers_tls.cert}",
            f"--peer-key-file={peers_tls.key}",
            f"--peer-trusted-ca-file={peers_tls.ca}",
            "--peer-client-cert-auth",
            f"--max-txn-ops={MAX_TXN_OPS}",
            f"--max-request-bytes={MAX_REQUEST_BYTES}",
            f"--quota-backend-bytes={self._quota}",
            *timing,
            "--auto-compaction-mode=periodic",
            f"--auto-compaction-retention={HISTORY}",
            "--grpc-keepalive-min-time=1s",
            "--enable-grpc-gateway=false",
            *(("--force-new-cluster",) if self._force else ()),
            "--logger=zap",
            f"--log-outputs={self._folder / 'etcd.log'}",
            *more,
            *_known(
                binary,
                "--tls-min-version=TLS1.3",
                "--enable-log-rotation",
                f"--log-rotation-config-json={json.dumps(rotation)}",
            ),
        )

    async def _ready(self, process: EtcdProcess) -> None:
        """Wait until it serves; StoreError with etcd's reason if it does not. A member with peers
        is waited for as long as it runs: it serves once a quorum does and it has been promoted."""
        while not await self._answers(process, READY_TIMEOUT):
            if process.ended and _was_removed(self._folder):
                raise MemberRemoved("this manager was removed from the cluster")
            if process.ended:
                reason = _exit_reason(self._folder)
                if any(each in reason for each in _MEMBERS_CHANGED):
                    raise MembersChanged(reason)
                remedy = (
                    "remove this manager at another one with 'orc manager rm', and join again"
                    if self._peering is not None
                    else "restore a backup with 'orc cluster restore'"
                )
                raise StoreError(
                    f"etcd does not start: {reason}; if its data are damaged, {remedy}"
                )
            if self._peering is None:
                raise StoreError(
                    f"etcd did not get ready within {READY_TIMEOUT:g} s; "
                    f"see {self._folder / 'etcd.log'}"
                )
            log.warning(
                "etcd waits for a quorum of managers, or to be promoted",
                extra={"log": str(self._folder / "etcd.log")},
            )

    async def _lives(self, orphan: EtcdProcess) -> bool:
        """Whether an etcd found running answers. Without a quorum, one with peers still reports its
        status."""
        if self._peering is None:
            return await self._answers(orphan, ADOPT_TIMEOUT)
        with suppress(StoreError):
            await self.membership.status()
            return True
        return False

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
            intended = self._process.command != self._command
            if not intended:
                if _was_removed(self._folder):
                    raise MemberRemoved("this manager was removed from the cluster")
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
            self._replaced.set()

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
        elif last and (running or is_free("127.0.0.1", last)):
            chosen.append(last)
        else:
            chosen.append(choose_port("127.0.0.1", chosen))
    ports = (chosen[0], chosen[1])
    if ports != remembered:
        write_file(memory, json.dumps({"client": ports[0], "peer": ports[1]}))
    return ports


def _exit_reason(folder: Path) -> str:
    """The reason that etcd gave for its end, as short as it can be found."""
    logged = _tail(folder / "etcd.log")
    # The log goes on over starts: a crash without an entry of its own is newer than what it has.
    if not (logged and _failure(logged[-1], "fatal", "panic")):
        for line in _head(folder / "etcd.err"):
            if line.startswith(_CRASHES):
                return f"{line.strip()} (see {folder / 'etcd.err'})"
    for line in reversed(logged):
        if reason := _failure(line, "fatal", "panic", "error"):
            return f"{reason} (see {folder / 'etcd.log'})"
    words = [line for line in _tail(folder / "etcd.err") if line.strip()]
    return words[-1] if words else f"no reason in {folder / 'etcd.log'}"


def _failure(line: str, *levels: str) -> str:
    """What a line of etcd's log of one of these levels says; empty for another line."""
    with suppress(ValueError, KeyError, TypeError):
        entry = json.loads(line)
        if entry["level"] in levels:
            return str(entry.get("error") or entry["msg"])
    return ""


_CRASHES = ("panic: ", "fatal error: ", "unexpected fault address")
"""How a Go program begins to say that it crashed; a stack of calls follows."""


def _was_removed(folder: Path) -> bool:
    """Whether etcd's log says that its member was removed from the cluster, or the host has left
    the cluster and deleted the folder."""
    return not folder.exists() or any(
        "has been permanently removed" in line for line in _tail(folder / "etcd.log")
    )


def _head(path: Path) -> list[str]:
    return _lines(path, 0)


def _tail(path: Path) -> list[str]:
    with suppress(OSError):
        return _lines(path, max(0, path.stat().st_size - _READ))
    return []


_READ = 16_384
"""Bytes of a file of etcd's words that are read."""


def _lines(path: Path, start: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(_READ).decode(errors="replace").splitlines()
    except OSError:
        return []
