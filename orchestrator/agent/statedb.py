# SPDX-License-Identifier: Apache-2.0
"""What an agent must not forget, in one SQLite file.

A task's row is written when it is assigned (before anything is done about it), when it is about to
start, when it runs, and when it has ended; a row goes when the task is no longer assigned and
nothing is left of it. What lies between (preparing, ready) is only reported, not written: an agent
that dies there simply does it again.

**WAL with `synchronous=NORMAL`**: a commit is an append to the log without an fsync, about 10 µs,
so it is done on the event loop, and 60 starts a second cost nothing. It survives the death of the
process at any instant (the kernel has the pages). A loss of *power* may take back the last
commits, never tear the file; then every container is gone as well, the file is an older consistent
picture, and the manager's first full set mends it: newer tasks come again, ended ones are not in
it. `FULL` would buy nothing and cost an fsync at each step.

**Checkpoints** move the log into the database, and wait for the disk; so does the first commit
after one. A thread does both (`run`), and meanwhile nothing else touches the connection.

**Deferred writes.** A write that the disk refuses (no space, an I/O error), or that comes during a
checkpoint, is either refused with `CannotRecord`, or, where the caller can go on without it, kept
in memory and retried with backoff. Until then `trouble` says what is wrong. So a full disk keeps
new tasks from starting, and neither ends the agent nor keeps tasks from being stopped.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from google.protobuf.message import DecodeError

from orchestrator.model.convert import decode, encode
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2

log = logging.getLogger(__name__)

_SCHEMAS = (
    """
CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    assigned BLOB NOT NULL,
    status BLOB NOT NULL,
    boot_id TEXT NOT NULL,
    released INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE settings (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
""",
    """
CREATE TABLE endpoints (
    id TEXT NOT NULL,
    network_id TEXT NOT NULL,
    entry BLOB NOT NULL,
    PRIMARY KEY (id, network_id)
) WITHOUT ROWID;
""",
    """
CREATE TABLE endpoint_tasks (
    id TEXT NOT NULL,
    network_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    endpoint BLOB NOT NULL,
    PRIMARY KEY (id, network_id, task_id)
) WITHOUT ROWID;
""",
)
"""What each version adds to the one before."""
_SCHEMA_VERSION = len(_SCHEMAS)

_NETWORKS = "networks"
_MANAGERS = "managers"
_SCRAPE = "scrape"
_CONTAINER_ACCESS = "container_access"
_REVOCATIONS = "revocations"
_PROBE = "probe"
"""Written to find out whether anything can be."""

_CHECKPOINT_AFTER = 1000
"""Pages in the log after which it is moved into the database (SQLite's own default)."""
_PAGE = 4096
"""Bytes of a page of the database."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 5.0
"""Seconds between attempts to record what the disk refused."""

_Statement = tuple[str, tuple[Any, ...]]
"""SQL and its parameters."""

EndpointKey = tuple[str, str]
"""Id of the service, or of the standalone container's task; id of the network."""


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """What has changed of an entry of the endpoint table."""

    head: dispatch_pb2.ServiceEndpoints
    """All of it but its endpoints."""
    put: Sequence[dispatch_pb2.Endpoint]
    """New or changed ones."""
    gone: Sequence[str] = ()
    """Ids of the tasks of those that it has no longer."""


class StateDbError(Exception):
    """The agent's state file cannot be used; the text says why and what to do."""


class CannotRecord(StateDbError):
    """Something could not be recorded now; it may be later, see `StateDb.writable`."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one task."""

    assigned: dispatch_pb2.AssignedTask
    status: TaskStatus
    boot_id: str
    """The boot of the host in which the status was recorded."""
    released: bool
    """Nothing is left of its container and network."""


class StateDb:
    """The agent's state file.

    Every method commits before it returns, except with `defer`: what cannot be committed then is
    kept in memory, and `run` retries. Raises StateDbError when the file is locked by another agent,
    broken, or of a newer version.
    """

    def __init__(self, path: Path, wake: Callable[[], None] = lambda: None) -> None:
        """`wake` is called when `trouble` changes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.wake = wake
        self.trouble = ""
        """Why nothing can be recorded now, in words; empty while all is well."""
        self._deferred: dict[Hashable, _Statement] = {}
        """By what it is about: writes that are yet to be made, in this order."""
        self._after: list[Callable[[], None]] = []
        """Called once what was deferred for a checkpoint is recorded."""
        self._logged = 0
        """Pages in the log, about."""
        self._checkpoint: Future[None] | None = None
        """The newest."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state-db")
        self._due = asyncio.Event()
        """`run` has something to do."""
        self._writable = asyncio.Event()
        self._writable.set()
        # The thread has it to itself during a checkpoint.
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
        try:
            # EXCLUSIVE also keeps a second agent off the same folder, and needs no shared memory.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA wal_autocheckpoint=0")
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version < _SCHEMA_VERSION:
                for schema in _SCHEMAS[version:]:
                    for statement in schema.split(";"):
                        self._db.execute(statement)
                self._split_endpoints()
                self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._db.execute("COMMIT")
            self._settings: dict[str, bytes] = {}
            if version <= _SCHEMA_VERSION:
                self._settings.update(self._db.execute("SELECT key, value FROM settings"))
        except sqlite3.OperationalError as error:
            self._db.close()
            why = (
                "does another agent run on this data folder?"
                if "locked" in str(error)
                else f"see 'df {path.parent}' and the kernel's log"
            )
            raise StateDbError(f"cannot use {path}: {error}; {why}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StateDbError(
                f"{path} is not usable ({error}); move it away and start the agent again, its"
                " containers are then replaced"
            ) from error
        if version > _SCHEMA_VERSION:
            self._db.close()
            raise StateDbError(f"{path} was written by a newer version of Orc; run that one")
        # The first commit flushes the log; and a disk may be full from the beginning.
        self._retry()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        if self._deferred:
            self._write((), defer=True)
        self._db.close()

    def _split_endpoints(self) -> None:
        """Have endpoints in rows of their own, which had been in those of their entries."""
        for (row,) in self._db.execute("SELECT entry FROM endpoints").fetchall():
            entry = dispatch_pb2.ServiceEndpoints.FromString(row)
            for endpoint in entry.endpoints:
                self._db.execute(*_endpoint((entry.id, entry.network_id), endpoint))
            del entry.endpoints[:]
            self._db.execute(*_endpoint_head(entry))

    async def run(self) -> None:
        """Retry what could not be recorded, and make checkpoints, until cancelled."""
        pause = _RETRY_FIRST
        while True:
            await self._due.wait()
            if self.trouble:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _RETRY_MOST)
                self._retry()
                continue
            pause = _RETRY_FIRST
            self._due.clear()
            if self._logged >= _CHECKPOINT_AFTER:
                await self._move_log()

    async def writable(self) -> None:
        """Until something can be recorded, as far as is known."""
        await self._writable.wait()

    def after(self, call: Callable[[], None]) -> None:
        """Call once all that was to be recorded is, unless the disk refuses it: at once, but for
        what a checkpoint delays for a moment."""
        if self._deferred and not self.trouble:
            self._after.append(call)
        else:
            call()

    def records(self) -> dict[str, Record]:
        """All tasks, by id."""
        rows = self._db.execute("SELECT id, assigned, status, boot_id, released FROM tasks")
        try:
            return {
                task_id: Record(
                    dispatch_pb2.AssignedTask.FromString(assigned),
                    decode(TaskStatus, status),
                    boot_id,
                    bool(released),
                )
                for task_id, assigned, status, boot_id, released in rows
            }
        except (DecodeError, ValueError) as error:
            raise StateDbError(f"{self._path} holds a task that cannot be read: {error}") from error

    def put_assignments(
        self,
        tasks: Sequence[dispatch_pb2.AssignedTask],
        networks: Sequence[dispatch_pb2.AssignedNetwork] | None,
        boot_id: str,
        *,
        defer: bool = False,
    ) -> None:
        """Record new and changed tasks, and the complete list of networks unless None; all of it
        or nothing. The status of a known task stays. Raises CannotRecord unless `defer`."""
        statements: list[tuple[Hashable, _Statement]] = [
            (
                ("assigned", task.id),
                (
                    "INSERT INTO tasks VALUES (?, ?, ?, ?, 0)"
                    " ON CONFLICT (id) DO UPDATE SET assigned = excluded.assigned",
                    (task.id, each.SerializeToString(), _accepted(task.status.run), boot_id),
                ),
            )
            for each in tasks
            for task in (each.task,)
        ]
        if networks is not None:
            whole = dispatch_pb2.Assignments(networks=networks)
            statements.append(self._setting(_NETWORKS, whole.SerializeToString()))
        self._write(statements, defer=defer)

    def put_status(
        self, task_id: str, status: TaskStatus, boot_id: str, *, defer: bool = False
    ) -> None:
        """Record the newest status of a task, seen in this boot of the host. Raises CannotRecord
        unless `defer`."""
        self._write([_status(task_id, status, boot_id)], defer=defer)

    def put_renewed(self, task_id: str, status: TaskStatus, boot_id: str) -> None:
        """Record, or defer it, that the next run of a container has begun, with which it holds
        things again."""
        self._write([_status(task_id, status, boot_id), _released(task_id, False)], defer=True)

    def put_released(self, task_id: str) -> None:
        """Record, or defer it, that nothing is left of a task's container and network."""
        self._write([_released(task_id, True)], defer=True)

    def forget(self, task_id: str) -> None:
        """Drop a task, or defer it."""
        for about in ("assigned", "status", "released"):
            self._deferred.pop((about, task_id), None)
        drop = "DELETE FROM tasks WHERE id = ?", (task_id,)
        self._write([(("forgotten", task_id), drop)], defer=True)

    def networks(self) -> list[dispatch_pb2.AssignedNetwork]:
        """The networks of the newest assignment; empty before the first."""
        value = self._settings.get(_NETWORKS, b"")
        return list(dispatch_pb2.Assignments.FromString(value).networks)

    def endpoints(self) -> list[dispatch_pb2.ServiceEndpoints]:
        """The entries of the newest endpoint table; empty before the first."""
        rows = self._db.execute("SELECT id, network_id, entry FROM endpoints")
        found = {row[:2]: dispatch_pb2.ServiceEndpoints.FromString(row[2]) for row in rows}
        for *key, endpoint in self._db.execute(
            "SELECT id, network_id, endpoint FROM endpoint_tasks"
        ):
            if (entry := found.get(tuple(key))) is not None:
                entry.endpoints.append(dispatch_pb2.Endpoint.FromString(endpoint))
        return list(found.values())

    def put_endpoints(
        self,
        changes: Iterable[EndpointChange],
        removed: Iterable[EndpointKey],
    ) -> None:
        """Record what changed in the endpoint table, or defer it; all of it or nothing."""
        statements: list[tuple[Hashable, _Statement]] = []
        for change in changes:
            key = change.head.id, change.head.network_id
            statements.append((("endpoints", *key), _endpoint_head(change.head)))
            for endpoint in change.put:
                about = "endpoint", *key, endpoint.task_id
                statements.append((about, _endpoint(key, endpoint)))
            for task_id in change.gone:
                sql = "DELETE FROM endpoint_tasks WHERE id = ? AND network_id = ? AND task_id = ?"
                statements.append((("endpoint", *key, task_id), (sql, (*key, task_id))))
        for key in removed:
            drop = "DELETE FROM {} WHERE id = ? AND network_id = ?"
            for table in ("endpoints", "endpoint_tasks"):
                statements.append(((table, *key), (drop.format(table), tuple(key))))
        self._write(statements, defer=True)

    def managers(self) -> tuple[str, ...]:
        """HOST:PORT of the managers that the last session named; empty before the first."""
        return tuple(self._settings.get(_MANAGERS, b"").decode().split())

    def put_managers(self, managers: Iterable[str]) -> None:
        """Remember where the managers are."""
        self._write([self._setting(_MANAGERS, " ".join(managers).encode())], defer=True)

    def scrape_digest(self) -> str:
        """Digest of the token that Prometheus must show; empty before a session told it."""
        return self._settings.get(_SCRAPE, b"").decode()

    def put_scrape_digest(self, digest: str) -> None:
        """Remember the token's digest."""
        self._write([self._setting(_SCRAPE, digest.encode())], defer=True)

    def revocations(self) -> dispatch_pb2.RevocationList:
        """The certificates that the node refuses, a complete list; empty before a session told of
        any."""
        kept = dispatch_pb2.RevocationList()
        with suppress(DecodeError):
            kept.ParseFromString(self._settings.get(_REVOCATIONS, b""))
        return kept

    def put_revocations(self, revocations: dispatch_pb2.RevocationList) -> None:
        """Remember which certificates are refused."""
        data = revocations.SerializeToString()
        self._write([self._setting(_REVOCATIONS, data)], defer=True)

    def container_access(self) -> tuple[str, ...]:
        """What of the cluster's hosts is open to containers; nothing before a session told it."""
        return tuple(self._settings.get(_CONTAINER_ACCESS, b"").decode().split())

    def put_container_access(self, access: Iterable[str]) -> None:
        """Remember what is open to containers."""
        self._write([self._setting(_CONTAINER_ACCESS, " ".join(access).encode())], defer=True)

    def forget_cluster(self) -> None:
        """Drop, or defer it, what sessions told of the cluster: the node is to join another."""
        self._settings.clear()
        self._write([(("settings",), ("DELETE FROM settings", ()))], defer=True)

    def _setting(self, key: str, value: bytes) -> tuple[Hashable, _Statement]:
        self._settings[key] = value
        return ("setting", key), ("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    @property
    def _moving(self) -> bool:
        """Whether the thread has the connection."""
        return self._checkpoint is not None and not self._checkpoint.done()

    def _write(self, statements: Iterable[tuple[Hashable, _Statement]], *, defer: bool) -> None:
        """Commit what was deferred and then these, as one. With `defer`, what cannot be committed
        is deferred, and not even tried while there is trouble. Raises CannotRecord."""
        whole = self._deferred if defer else dict(self._deferred)
        for about, statement in statements:
            whole.pop(about, None)
            whole[about] = statement
        if self._moving and not defer:
            raise CannotRecord("the state file is being written")
        if self._moving or (self.trouble and defer):
            return
        if not self._committed(whole.values()) and not defer:
            raise CannotRecord(self.trouble)

    def _committed(self, statements: Iterable[_Statement]) -> bool:
        """Commit these, what was deferred among them; whether the disk took it."""
        try:
            self._commit(statements)
        except sqlite3.DatabaseError as error:
            if not _refused(error):
                raise
            self._note(error)
            return False
        self._deferred = {}
        self._note(None)
        return True

    def _commit(self, statements: Iterable[_Statement]) -> None:
        try:
            self._db.execute("BEGIN")
            for sql, values in statements:
                self._db.execute(sql, values)
                self._logged += 2 + sum(len(v) // _PAGE for v in values if isinstance(v, bytes))
            self._db.execute("COMMIT")
        except BaseException:
            # Some errors have ended the transaction already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        if self._logged >= _CHECKPOINT_AFTER:
            self._due.set()

    def _note(self, error: sqlite3.Error | None) -> None:
        """Note how the newest attempt to record something went."""
        before = self.trouble
        if error is not None:
            self.trouble = f"the node's state cannot be recorded in {self._path}: {error}"
            self._writable.clear()
            self._due.set()
            if not before:
                log.error(
                    "state cannot be recorded; containers run on, new tasks wait",
                    extra={"path": str(self._path), "error": str(error)},
                )
        else:
            self.trouble = ""
            self._writable.set()
            if before:
                log.info("state is recorded again", extra={"path": str(self._path)})
        calls, self._after = self._after, []
        for call in calls:
            call()
        if bool(before) != bool(error):
            self.wake()

    def _retry(self) -> None:
        """Record what was deferred, or find out that still nothing can be."""
        probe = {_PROBE: self._setting(_PROBE, b"")[1]}
        self._committed((self._deferred | probe).values())

    async def _move_log(self) -> None:
        """Make a checkpoint in the thread."""
        self._writable.clear()
        self._checkpoint = self._thread.submit(self._checkpointed)
        try:
            await asyncio.wrap_future(self._checkpoint)
        except sqlite3.Error as error:
            log.warning("log of the state file cannot be checkpointed", extra={"error": str(error)})
        # Also after an error: as many writes later it is tried again.
        self._logged = 0
        if self._deferred:
            self._write((), defer=True)
        else:
            self._note(None)

    def _checkpointed(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint").fetchall()
        # The first commit after a checkpoint begins the log anew, and flushes that.
        self._db.execute(*self._setting(_PROBE, b"")[1])


def _status(task_id: str, status: TaskStatus, boot_id: str) -> tuple[Hashable, _Statement]:
    sql = "UPDATE tasks SET status = ?, boot_id = ? WHERE id = ?"
    return ("status", task_id), (sql, (encode(status), boot_id, task_id))


def _released(task_id: str, released: bool) -> tuple[Hashable, _Statement]:
    sql = "UPDATE tasks SET released = ? WHERE id = ?"
    return ("released", task_id), (sql, (int(released), task_id))


def _endpoint_head(head: dispatch_pb2.ServiceEndpoints) -> _Statement:
    values = head.id, head.network_id, head.SerializeToString()
    return "INSERT OR REPLACE INTO endpoints VALUES (?, ?, ?)", values


def _endpoint(key: EndpointKey, endpoint: dispatch_pb2.Endpoint) -> _Statement:
    values = *key, endpoint.task_id, endpoint.SerializeToString()
    return "INSERT OR REPLACE INTO endpoint_tasks VALUES (?, ?, ?, ?)", values


def _refused(error: sqlite3.Error) -> bool:
    """Whether the disk is at fault, or the file on it, and not the statement."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


@cache
def _accepted(run: int) -> bytes:
    return encode(TaskStatus(state=TaskState.ASSIGNED, run=run))
