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
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from google.protobuf.message import DecodeError

from orchestrator.model.convert import decode, encode
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import TaskStatus
from orchestrator.pb import dispatch_pb2

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
)
"""What each version adds to the one before."""
_SCHEMA_VERSION = len(_SCHEMAS)

_NETWORKS = "networks"
_MANAGERS = "managers"
_SCRAPE = "scrape"


EndpointKey = tuple[str, str]
"""Id of the service, or of the standalone container's task; id of the network."""


class StateDbError(Exception):
    """The agent's state file cannot be used; the text says why and what to do."""


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
    """The agent's state file. Every method commits before it returns.

    Raises StateDbError when the file is locked by another agent, broken, or of a newer version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            # EXCLUSIVE also keeps a second agent off the same folder, and needs no shared memory.
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version < _SCHEMA_VERSION:
                for schema in _SCHEMAS[version:]:
                    for statement in schema.split(";"):
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._db.close()
            raise StateDbError(
                f"cannot use {path}: {error}; does another agent run on this data folder?"
            ) from error
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise StateDbError(
                f"{path} is not usable ({error}); move it away and start the agent again, its"
                " containers are then replaced"
            ) from error
        if version > _SCHEMA_VERSION:
            self._db.close()
            raise StateDbError(f"{path} was written by a newer version of Orc; run that one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

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
    ) -> None:
        """Record new and changed tasks, and the complete list of networks unless None; all of it
        or nothing. The status of a known task stays."""
        self._db.execute("BEGIN")
        try:
            self._db.executemany(
                "INSERT INTO tasks VALUES (?, ?, ?, ?, 0)"
                " ON CONFLICT (id) DO UPDATE SET assigned = excluded.assigned",
                (
                    (task.id, each.SerializeToString(), _accepted(task.status.run), boot_id)
                    for each in tasks
                    for task in (each.task,)
                ),
            )
            if networks is not None:
                whole = dispatch_pb2.Assignments(networks=networks)
                self._set(_NETWORKS, whole.SerializeToString())
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def put_status(self, task_id: str, status: TaskStatus, boot_id: str) -> None:
        """Record the newest status of a task, seen in this boot of the host."""
        self._db.execute(
            "UPDATE tasks SET status = ?, boot_id = ? WHERE id = ?",
            (encode(status), boot_id, task_id),
        )

    def put_renewed(self, task_id: str, status: TaskStatus, boot_id: str) -> None:
        """Record that the next run of a container has begun, with which it holds things again."""
        self._db.execute(
            "UPDATE tasks SET status = ?, boot_id = ?, released = 0 WHERE id = ?",
            (encode(status), boot_id, task_id),
        )

    def put_released(self, task_id: str) -> None:
        """Record that nothing is left of a task's container and network."""
        self._db.execute("UPDATE tasks SET released = 1 WHERE id = ?", (task_id,))

    def forget(self, task_id: str) -> None:
        """Drop a task."""
        self._db.execute("DELETE FROM tasks WHERE id = ?", (task_id,))

    def networks(self) -> list[dispatch_pb2.AssignedNetwork]:
        """The networks of the newest assignment; empty before the first."""
        value = self._get(_NETWORKS)
        return list(dispatch_pb2.Assignments.FromString(value).networks) if value else []

    def endpoints(self) -> list[dispatch_pb2.ServiceEndpoints]:
        """The entries of the newest endpoint table; empty before the first."""
        rows = self._db.execute("SELECT entry FROM endpoints")
        return [dispatch_pb2.ServiceEndpoints.FromString(entry) for (entry,) in rows]

    def put_endpoints(
        self,
        changed: Mapping[EndpointKey, dispatch_pb2.ServiceEndpoints],
        removed: Iterable[EndpointKey],
    ) -> None:
        """Record what changed in the endpoint table, all of it or nothing."""
        self._db.execute("BEGIN")
        try:
            self._db.executemany(
                "INSERT OR REPLACE INTO endpoints VALUES (?, ?, ?)",
                ((*key, entry.SerializeToString()) for key, entry in changed.items()),
            )
            self._db.executemany("DELETE FROM endpoints WHERE id = ? AND network_id = ?", removed)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def managers(self) -> tuple[str, ...]:
        """HOST:PORT of the managers that the last session named; empty before the first."""
        value = self._get(_MANAGERS)
        return tuple(value.decode().split()) if value else ()

    def put_managers(self, managers: Iterable[str]) -> None:
        """Remember where the managers are."""
        self._set(_MANAGERS, " ".join(managers).encode())

    def scrape_digest(self) -> str:
        """Digest of the token that Prometheus must show; empty before a session told it."""
        return (self._get(_SCRAPE) or b"").decode()

    def put_scrape_digest(self, digest: str) -> None:
        """Remember the token's digest."""
        self._set(_SCRAPE, digest.encode())

    def _get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _set(self, key: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))


@cache
def _accepted(run: int) -> bytes:
    return encode(TaskStatus(state=TaskState.ASSIGNED, run=run))
