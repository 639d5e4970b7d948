# SPDX-License-Identifier: Apache-2.0
"""The secrets and configs of this node's tasks: in memory, and nowhere else.

They are in a separate tmpfs below the node's run folder, which only root can enter and which is
never swapped where the kernel supports that (Linux 6.4). It outlives the agent, so running
containers keep their files, and so do containers that have not started yet. A reboot empties it;
then a task that uses a secret waits until a manager has sent it again.

`data/` has received data by key, as long as a task of this node uses it. `tasks/ID/` has a task's
own files, with the owner and mode in its container; each is mounted separately, read-only. `files`
in it lists those in place, so that the work of a killed agent is resumed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.interface import Mount
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.libc import MS_NODEV, MS_NOEXEC, MS_NOSUID, mount
from orchestrator.linux.mounts import is_mounted
from orchestrator.pb import documents_pb2

log = logging.getLogger(__name__)

NOT_REPLACED = "secrets and configs are as they were: "
"""Prefix of the message of a container that continues with older files."""

_IN_PLACE = "files"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class FileError(Exception):
    """A secret or config cannot be given to a task; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """A replaced file of a task."""

    file: documents_pb2.AssignedFile
    source: Path
    """The new file."""


def mount_memory(folder: Path) -> None:
    """Mount the tmpfs of `SecretFiles`, unless it is mounted. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o711)
    if is_mounted(folder):
        return
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    try:
        mount("tmpfs", folder, "tmpfs", flags, "mode=711,noswap")
    except OSError:
        # An older kernel.
        mount("tmpfs", folder, "tmpfs", flags, "mode=711")


class SecretFiles:
    """Keeps the data that managers send, and creates the files of tasks."""

    def __init__(self, folder: Path) -> None:
        """`folder` must be in memory; see `mount_memory`."""
        self._data = folder / "data"
        self._tasks = folder / "tasks"
        self._data.mkdir(exist_ok=True, mode=0o700)
        self._tasks.mkdir(exist_ok=True, mode=0o711)
        self._ahead: set[str] = set()
        """Received keys that no assignment has named yet."""
        self._errors: dict[str, str] = {}
        """Key → why a manager has no data for it."""
        self._arrived = asyncio.Event()

    @classmethod
    def in_memory(cls, folder: Path) -> SecretFiles:
        """The files of a node, in a tmpfs that is mounted if necessary. Raises FileError."""
        try:
            mount_memory(folder)
            return cls(folder)
        except OSError as error:
            raise FileError(
                f"cannot keep secrets in memory at {folder} ({error.strerror}); see 'df {folder}'"
            ) from error

    def take(self, payload: documents_pb2.Payload) -> None:
        """Keep received data, which the next assignment names."""
        if not _KEY.fullmatch(payload.key):
            log.warning("data with the key %r is not kept", payload.key)
            return
        self._ahead.add(payload.key)
        if payload.error:
            self._errors[payload.key] = payload.error
        else:
            self._errors.pop(payload.key, None)
            try:
                _write(self._data / payload.key, payload.data, 0o600)
            except OSError as error:
                reason = f"a file cannot be kept in memory on its node: {error.strerror}"
                log.error("secret or config is not kept", extra={"error": reason})
                self._errors[payload.key] = reason
        arrived, self._arrived = self._arrived, asyncio.Event()
        arrived.set()

    def retain(self, keys: Collection[str], *, assigned: bool) -> None:
        """Drop data that no task of this node names any more. `assigned`: an assignment has named
        the data received before it."""
        if assigned:
            self._ahead.clear()
        needed = {*keys, *self._ahead}
        for entry in list(os.scandir(self._data)):
            if entry.name not in needed:
                os.unlink(entry.path)
        for key in self._errors.keys() - needed:
            del self._errors[key]

    def retain_tasks(self, task_ids: Collection[str]) -> None:
        """Remove the files of other tasks."""
        for entry in list(os.scandir(self._tasks)):
            if entry.name not in task_ids:
                self.remove(entry.name)

    def missing(self, files: Iterable[documents_pb2.AssignedFile]) -> str:
        """The data not received yet, such as `secret db`; empty if all is complete or
        unavailable."""
        names = [
            file.name
            for file in files
            if not (self._data / file.payload).exists() and file.payload not in self._errors
        ]
        return ", ".join(dict.fromkeys(names))

    async def wait(self, files: Sequence[documents_pb2.AssignedFile]) -> None:
        """Wait until all data is received. Safe to cancel. Raises FileError for unavailable
        data."""
        while self.missing(files):
            await self._arrived.wait()
        for file in files:
            if file.payload in self._errors and not (self._data / file.payload).exists():
                raise FileError(self._errors[file.payload])

    def place(
        self, task_id: str, files: Sequence[documents_pb2.AssignedFile], users: range
    ) -> tuple[Mount, ...]:
        """Create a task's files; return their mounts. The users of its container have the ids
        `users` of the host; empty: the host's own. Raises FileError."""
        if not files:
            return ()
        folder = self._folder(task_id, users)
        found = []
        for file in files:
            source = self._make(folder, file, users)
            found.append(Mount(target=file.target, source=str(source), read_only=True, exact=True))
        self._record(folder, files)
        return tuple(found)

    def stale(
        self, task_id: str, files: Sequence[documents_pb2.AssignedFile]
    ) -> list[documents_pb2.AssignedFile]:
        """The files of a task that are outdated in its container."""
        if not files:
            return []
        there = self._in_place(self._tasks / task_id)
        return [file for file in files if there.get(file.target) not in (None, file.payload)]

    def renew(
        self, task_id: str, files: Sequence[documents_pb2.AssignedFile], users: range
    ) -> list[Replaced]:
        """Create the new versions of outdated files, which then have to be mounted and `settle`d.
        Raises FileError."""
        folder = self._folder(task_id, users)
        return [
            Replaced(file, self._make(folder, file, users)) for file in self.stale(task_id, files)
        ]

    def settle(self, task_id: str, files: Sequence[documents_pb2.AssignedFile]) -> None:
        """Record that these are in place, and remove older ones."""
        folder = self._tasks / task_id
        self._record(folder, files)
        current = {_name(file) for file in files} | {_IN_PLACE}
        for entry in list(os.scandir(folder)):
            if entry.name not in current:
                os.unlink(entry.path)

    def remove(self, task_id: str) -> None:
        """Remove a task's files, if there are any."""
        shutil.rmtree(self._tasks / task_id, ignore_errors=True)

    def _folder(self, task_id: str, users: range) -> Path:
        folder = self._tasks / task_id
        folder.mkdir(exist_ok=True, mode=0o700)
        if users:
            # The container's root user must be able to traverse to the mounted files.
            os.chown(folder, -1, users.start)
            folder.chmod(0o710)
        return folder

    def _make(self, folder: Path, file: documents_pb2.AssignedFile, users: range) -> Path:
        uid, gid = file.uid, file.gid
        if users:
            if uid >= len(users) or gid >= len(users):
                raise FileError(
                    f"{file.name} cannot belong to {uid}:{gid}: this container has users of its "
                    f"own, below {len(users)}"
                )
            uid, gid = users.start + uid, users.start + gid
        try:
            data = (self._data / file.payload).read_bytes()
        except FileNotFoundError:
            raise FileError(
                self._errors.get(file.payload, f"{file.name} was not received from a manager")
            ) from None
        path = folder / _name(file)
        _write(path, data, file.mode, (uid, gid))
        return path

    def _record(self, folder: Path, files: Iterable[documents_pb2.AssignedFile]) -> None:
        there = {file.target: file.payload for file in files}
        _write(folder / _IN_PLACE, json.dumps(there).encode(), 0o600)

    def _in_place(self, folder: Path) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((folder / _IN_PLACE).read_bytes())
        except FileNotFoundError:
            return {}
        return found


def _name(file: documents_pb2.AssignedFile) -> str:
    """The name of a file in its task's folder: unique per target and version."""
    return f"{file.target.replace('%', '%25').replace('/', '%2f')[-150:]}={file.payload}"


def _write(path: Path, data: bytes, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    # A temporary name derived from the file's name could be too long.
    write_file(path, data, mode=mode, owner=owner, temporary=path.with_name(".new"))
