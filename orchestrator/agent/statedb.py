# SPDX-License-Identifier: Apache-2.0
"""The agent's durable state, in one SQLite file.

A task's row is written when it is assigned (before the agent acts), before it starts, when it
runs, and when it has ended; the row is deleted when the task is no longer assigned and its
resources are released. The states in between (preparing, ready) are reported but not recorded:
after a crash, the agent repeats them.

**WAL with `synchronous=NORMAL`**: a commit appends to the log without an fsync and takes about
10 µs, so it runs on the event loop. It survives a crash of the process at any instant, since the
kernel has the pages. A power loss may revert the last commits but cannot corrupt the file. All
containers are lost then as well, and the manager's first full set corrects the older state: newer
tasks are assigned again, and ended ones are missing from it. `FULL` would add an fsync to each
step without a benefit.

**Checkpoints** move the log into the database and wait for the disk; so does the first commit
after one. A thread does both (`run`) and has the connection to itself meanwhile.

**Deferred writes.** When the disk refuses a write (no space, an I/O error), or a checkpoint is
running, the write either fails with `CannotRecord` or, where the caller can continue without it,
is kept in memory and retried with backoff. Until then `trouble` describes the error. So a full
disk prevents new tasks from starting, but neither stops the agent nor prevents it from stopping
tasks.
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
from orchestrator.pb import dispatch_pb2, types_pb2

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
"""The statements of each schema version, which extend the previous one."""
_SCHEMA_VERSION = len(_SCHEMAS)

_NETWORKS = "networks"
_MANAGERS = "managers"
_SCRAPE = "scrape"
_CONTAINER_ACCESS = "container_access"
_REVOCATIONS = "revocations"
_INCARNATION, _ORPHANS, _ORPHAN_REMOVALS = "incarnation", "orphans", "orphan_removals"
_PROBE = "probe"
"""Written to test whether the disk accepts writes."""

_CHECKPOINT_AFTER = 1000
"""Pages in the log after which a checkpoint is due (SQLite's default)."""
_PAGE = 4096
"""Bytes of a database page."""
_RETRY_FIRST, _RETRY_MOST = 0.5, 5.0
"""Seconds between retries of deferred writes."""

_Statement = tuple[str, tuple[Any, ...]]
"""SQL and its parameters."""

EndpointKey = tuple[str, str]
"""Id of the service, or of the standalone container's task; id of the network."""


@dataclass(frozen=True, slots=True)
class EndpointChange:
    """A change of an entry of the endpoint table."""

    head: dispatch_pb2.ServiceEndpoints
    """The entry without its endpoints."""
    put: Sequence[dispatch_pb2.Endpoint]
    """New or changed endpoints."""
    gone: Sequence[str] = ()
    """Ids of the tasks whose endpoints were removed."""


class StateDbError(Exception):
    """The agent's state file cannot be used; one line with the cause and the remedy."""


class CannotRecord(StateDbError):
    """A write failed; it may succeed later, see `StateDb.writable`."""


@dataclass(frozen=True, slots=True)
class Record:
    """The recorded state of a task."""

    assigned: dispatch_pb2.AssignedTask
    status: TaskStatus
    boot_id: str
    """The boot of the host in which the status was recorded."""
    released: bool
    """Whether its container and network are released."""


class StateDb:
    """The agent's state file.

    Every method commits before it returns. A deferrable write that cannot be committed is kept in
    memory, and `run` retries it. Raises StateDbError when the file is locked by another agent,
    corrupt, or of a newer version.
    """

    def __init__(self, path: Path, wake: Callable[[], None] = lambda: None) -> None:
        """`wake` is called when `trouble` changes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.wake = wake
        self.trouble = ""
        """Why the state cannot be recorded, for display; empty if it can."""
        self._deferred: dict[Hashable, _Statement] = {}
        """Subject → its pending write, in the order of execution."""
        self._after: list[Callable[[], None]] = []
        """Called once the writes deferred by a checkpoint are recorded."""
        self._logged = 0
        """Approximate number of pages in the log."""
        self._checkpoint: Future[None] | None = None
        """The newest checkpoint."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state-db")
        self._due = asyncio.Event()
        """Set when `run` has work."""
        self._writable = asyncio.Event()
        self._writable.set()
        # The checkpoint thread uses the connection too.
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
        try:
            # EXCLUSIVE also locks out a second agent, and needs no shared memory.
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
            hint = (
                "is another agent running on this data folder?"
                if "locked" in str(error)
                else f"see 'df {path.parent}' and the kernel's log"
            )
            raise StateDbError(f"cannot use {path}: {error}; {hint}") from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StateDbError(
                f"{path} is not usable ({error}); move it away and restart the agent, its"
                " containers are then replaced"
            ) from error
        if version > _SCHEMA_VERSION:
            self._db.close()
            raise StateDbError(
                f"{path} was written by a newer version of Orc; install that version"
            )
        # The first commit flushes the log, and finds a disk that is full already.
        self._retry()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        if self._deferred:
            self._write((), defer=True)
        self._db.close()

    def _split_endpoints(self) -> None:
        """Migrate endpoints from their entries' rows to rows of their own."""
        for (row,) in self._db.execute("SELECT entry FROM endpoints").fetchall():
            entry = dispatch_pb2.ServiceEndpoints.FromString(row)
            for endpoint in entry.endpoints:
                self._db.execute(*_endpoint((entry.id, entry.network_id), endpoint))
            del entry.endpoints[:]
            self._db.execute(*_endpoint_head(entry))

    async def run(self) -> None:
        """Retry deferred writes and make checkpoints, until cancelled."""
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
                await self._make_checkpoint()

    async def writable(self) -> None:
        """Wait until writes are expected to succeed."""
        await self._writable.wait()

    def after(self, call: Callable[[], None]) -> None:
        """Call once all writes so far are recorded, or the disk has refused them: immediately,
        unless a checkpoint is running."""
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
        """Record new and changed tasks, and the complete list of networks unless None, atomically.
        The status of a recorded task stays. Raises CannotRecord unless `defer`."""
        statements: list[tuple[Hashable, _Statement]] = [
            (
                ("assigned", task.id),
                (
                    "INSERT INTO tasks VALUES (?, ?, ?, ?, 0)"
                    " ON CONFLICT (id) DO UPDATE SET assigned = excluded.assigned",
                    (task.id, each.SerializeToString(), _first_status(task), boot_id),
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
        """Record the newest status of a task, observed in this boot of the host. Raises
        CannotRecord unless `defer`."""
        self._write([_status(task_id, status, boot_id)], defer=defer)

    def put_renewed(self, task_id: str, status: TaskStatus, boot_id: str) -> None:
        """Record that the next run of a container has begun, which holds resources again;
        deferrable."""
        self._write([_status(task_id, status, boot_id), _released(task_id, False)], defer=True)

    def put_released(self, task_id: str) -> None:
        """Record that a task's container and network are released; deferrable."""
        self._write([_released(task_id, True)], defer=True)

    def forget(self, task_id: str) -> None:
        """Delete a task; deferrable."""
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
        """Record changes of the endpoint table atomically; deferrable."""
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
        """HOST:PORT of the managers, from the last session; empty before the first."""
        return tuple(self._settings.get(_MANAGERS, b"").decode().split())

    def put_managers(self, managers: Iterable[str]) -> None:
        """Record the managers' addresses; deferrable."""
        self._write([self._setting(_MANAGERS, " ".join(managers).encode())], defer=True)

    def scrape_digest(self) -> str:
        """Digest of the scrape token, from the last session; empty before the first."""
        return self._settings.get(_SCRAPE, b"").decode()

    def put_scrape_digest(self, digest: str) -> None:
        """Record the digest of the scrape token; deferrable."""
        self._write([self._setting(_SCRAPE, digest.encode())], defer=True)

    def revocations(self) -> dispatch_pb2.RevocationList:
        """The complete list of revoked certificates, from the last session; empty before the
        first."""
        kept = dispatch_pb2.RevocationList()
        with suppress(DecodeError):
            kept.ParseFromString(self._settings.get(_REVOCATIONS, b""))
        return kept

    def put_revocations(self, revocations: dispatch_pb2.RevocationList) -> None:
        """Record the revoked certificates; deferrable."""
        data = revocations.SerializeToString()
        self._write([self._setting(_REVOCATIONS, data)], defer=True)

    def container_access(self) -> tuple[str, ...]:
        """The cluster's host ports open to containers, from the last session; empty before the
        first."""
        return tuple(self._settings.get(_CONTAINER_ACCESS, b"").decode().split())

    def put_container_access(self, access: Iterable[str]) -> None:
        """Record which host ports are open to containers; deferrable."""
        self._write([self._setting(_CONTAINER_ACCESS, " ".join(access).encode())], defer=True)

    def incarnation(self) -> str:
        """Of the cluster, from the last session with a full set; empty before the first."""
        return self._settings.get(_INCARNATION, b"").decode()

    def orphans(self) -> frozenset[str]:
        """Ids of the tasks that are held although they are not assigned."""
        return frozenset(self._settings.get(_ORPHANS, b"").decode().split())

    def put_orphans(self, incarnation: str, orphans: Iterable[str]) -> None:
        """Record the orphans of an incarnation of the cluster, together; deferrable."""
        statements = [
            self._setting(_INCARNATION, incarnation.encode()),
            self._setting(_ORPHANS, " ".join(sorted(orphans)).encode()),
        ]
        self._write(statements, defer=True)

    def orphan_removals(self) -> int:
        """How often orphans were removed, as a manager counts."""
        return int(self._settings.get(_ORPHAN_REMOVALS, b"0"))

    def put_orphan_removals(self, times: int) -> None:
        """Record how often orphans were removed; deferrable."""
        self._write([self._setting(_ORPHAN_REMOVALS, str(times).encode())], defer=True)

    def forget_cluster(self) -> None:
        """Delete the settings that belong to the cluster, so that the node can join another;
        deferrable."""
        self._settings.clear()
        self._write([(("settings",), ("DELETE FROM settings", ()))], defer=True)

    def _setting(self, key: str, value: bytes) -> tuple[Hashable, _Statement]:
        self._settings[key] = value
        return ("setting", key), ("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    @property
    def _checkpointing(self) -> bool:
        """Whether the checkpoint thread uses the connection."""
        return self._checkpoint is not None and not self._checkpoint.done()

    def _write(self, statements: Iterable[tuple[Hashable, _Statement]], *, defer: bool) -> None:
        """Commit the deferred statements and then these, in one transaction. With `defer`, they
        are deferred if that fails, and not tried while there is trouble. Raises CannotRecord."""
        whole = self._deferred if defer else dict(self._deferred)
        for about, statement in statements:
            whole.pop(about, None)
            whole[about] = statement
        if self._checkpointing and not defer:
            raise CannotRecord("a checkpoint of the state file is running")
        if self._checkpointing or (self.trouble and defer):
            return
        if not self._committed(whole.values()) and not defer:
            raise CannotRecord(self.trouble)

    def _committed(self, statements: Iterable[_Statement]) -> bool:
        """Commit these statements, which include the deferred ones; False if the disk refuses."""
        try:
            self._commit(statements)
        except sqlite3.DatabaseError as error:
            if not _is_disk_error(error):
                raise
            self._note_result(error)
            return False
        self._deferred = {}
        self._note_result(None)
        return True

    def _commit(self, statements: Iterable[_Statement]) -> None:
        try:
            self._db.execute("BEGIN")
            for sql, values in statements:
                self._db.execute(sql, values)
                self._logged += 2 + sum(len(v) // _PAGE for v in values if isinstance(v, bytes))
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back after some errors.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        if self._logged >= _CHECKPOINT_AFTER:
            self._due.set()

    def _note_result(self, error: sqlite3.Error | None) -> None:
        """Update `trouble` after a write, which failed with `error` unless None."""
        before = self.trouble
        if error is not None:
            self.trouble = f"cannot write the node's state to {self._path}: {error}"
            self._writable.clear()
            self._due.set()
            if not before:
                log.error(
                    "cannot write the state file; containers continue, new tasks wait",
                    extra={"path": str(self._path), "error": str(error)},
                )
        else:
            self.trouble = ""
            self._writable.set()
            if before:
                log.info("the state file is writable again", extra={"path": str(self._path)})
        calls, self._after = self._after, []
        for call in calls:
            call()
        if bool(before) != bool(error):
            self.wake()

    def _retry(self) -> None:
        """Commit the deferred writes, or a probe if there are none."""
        probe = {_PROBE: self._setting(_PROBE, b"")[1]}
        self._committed((self._deferred | probe).values())

    async def _make_checkpoint(self) -> None:
        """Make a checkpoint in the thread."""
        self._writable.clear()
        self._checkpoint = self._thread.submit(self._checkpoint_and_flush)
        try:
            await asyncio.wrap_future(self._checkpoint)
        except sqlite3.Error as error:
            log.warning("checkpoint of the state file failed", extra={"error": str(error)})
        # Also after an error, so that the next attempt comes after as many writes.
        self._logged = 0
        if self._deferred:
            self._write((), defer=True)
        else:
            self._note_result(None)

    def _checkpoint_and_flush(self) -> None:
        self._db.execute("PRAGMA wal_checkpoint").fetchall()
        # The first commit after a checkpoint restarts the log, and flushes it.
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


def _is_disk_error(error: sqlite3.Error) -> bool:
    """Whether the cause is the disk or the file, not the statement."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def _first_status(task: types_pb2.Task) -> bytes:
    """The status of a task that is not recorded yet. If this node has run it, and the record was
    lost, it is the manager's: otherwise the next agent would run the task again."""
    if task.status.state > TaskState.ACCEPTED:
        return task.status.SerializeToString()
    return _accepted(task.status.run)


@cache
def _accepted(run: int) -> bytes:
    return encode(TaskStatus(state=TaskState.ASSIGNED, run=run))
