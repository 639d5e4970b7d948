# SPDX-License-Identifier: Apache-2.0
"""Runs CNI plugins: programs that read JSON from stdin and write JSON to stdout.

Source: CNI specification 1.1, section 2 ("Execution Protocol") and section 5 ("Result Types").
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.linux.spawn import descriptors, kill, readable, spawn

FOLDERS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
"""Folders of plugins, in the order of the search."""

TRY_AGAIN = 11
"""Error code of a plugin that may succeed later."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOST = 1 << 20
"""Maximum bytes of a response."""
_LONGEST = 400
"""Maximum characters of an error."""


@dataclass(frozen=True, slots=True)
class Call:
    """The parameters of a call."""

    command: str
    container: str = ""
    netns: str = ""
    ifname: str = ""


class Programs:
    """The plugins of this node."""

    def __init__(self, hostname: str, folders: Sequence[Path] = FOLDERS) -> None:
        self._hostname = hostname
        self._folders = tuple(folders)
        self._versions: dict[tuple[Path, int, int], frozenset[str]] = {}
        """Program (path, inode, time of change) → the versions that it supports."""

    def names(self) -> tuple[str, ...]:
        """The names of all plugins, sorted."""
        return tuple(sorted({entry for folder in self._folders for entry in _programs(folder)}))

    def find(self, name: str) -> Path:
        """The program of a plugin. Raises NetworkError."""
        for folder in self._folders:
            if os.access(path := folder / name, os.X_OK) and path.is_file():
                return path
        places = " or ".join(map(str, self._folders))
        raise NetworkError(f"node {self._hostname} has no CNI plugin {name} in {places}")

    async def versions(self, name: str, version: str, timeout: float) -> frozenset[str]:
        """The versions of the specification that a plugin supports; cached. `version` is that of
        the request. Raises NetworkError."""
        path = self.find(name)
        status = path.stat()
        key = path, status.st_ino, status.st_mtime_ns
        if key not in self._versions:
            found = await self.call(name, Call("VERSION"), {"cniVersion": version}, timeout)
            versions = found.get("supportedVersions")
            self._versions[key] = frozenset(
                map(str, versions if isinstance(versions, list) else ())
            )
        return self._versions[key]

    async def call(
        self,
        name: str,
        call: Call,
        config: Mapping[str, Any],
        timeout: float,
        lock: int | None = None,
    ) -> dict[str, Any]:
        """Call a plugin and return its response, which may be empty. It is killed after `timeout`
        seconds and on cancellation. It inherits the descriptor `lock`. Raises NetworkError with
        the plugin's error code."""
        path = self.find(name)
        what = f"CNI plugin {name}"
        with descriptors() as owned:
            stdin, stdout, stderr = (owned.memory_file() for _ in range(3))
            os.pwrite(stdin, json.dumps(config).encode(), 0)
            try:
                process = spawn(
                    [str(path)],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=self._environment(call),
                    cwd=Path("/"),
                    process_group=0,
                    pass_fds=() if lock is None else (lock,),
                )
            except OSError as error:
                raise NetworkError(f"{what} cannot be started: {error.strerror}") from error
            status = await _end(process, timeout, what, call.command)
            answer, errors = os.pread(stdout, _MOST, 0), os.pread(stderr, _MOST, 0)
        document = _document(answer)
        if status == 0:
            if answer.strip() and document is None:
                raise NetworkError(f"{what} ({call.command}): its output is not a JSON object")
            return document or {}
        raise _failure(what, call.command, status, document, errors)

    def _environment(self, call: Call) -> dict[str, str]:
        parameters = {
            "CNI_COMMAND": call.command,
            "CNI_CONTAINERID": call.container,
            "CNI_NETNS": call.netns,
            "CNI_IFNAME": call.ifname,
            "CNI_PATH": ":".join(map(str, self._folders)),
        }
        return {"PATH": _PATH} | {key: value for key, value in parameters.items() if value}


async def _end(process: subprocess.Popen[bytes], timeout: float, what: str, command: str) -> int:
    """The exit status of a program, which is killed with its children after `timeout` seconds."""
    fd = os.pidfd_open(process.pid)
    try:
        async with asyncio.timeout(timeout):
            await readable(fd)
    except TimeoutError:
        await _kill(process)
        raise NetworkError(
            f"{what} ({command}) did not finish within {timeout:.0f} s and was killed"
        ) from None
    except BaseException:
        await _kill(process)
        raise
    finally:
        os.close(fd)
    return process.wait()


async def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await kill(process)


def _programs(folder: Path) -> Iterable[str]:
    try:
        with os.scandir(folder) as entries:
            return [each.name for each in entries if each.is_file() and os.access(each, os.X_OK)]
    except OSError:
        return ()


def _document(answer: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _failure(
    what: str, command: str, status: int, document: Mapping[str, Any] | None, stderr: bytes
) -> NetworkError:
    """A plugin's error as one line: CNI's error object, else its stderr."""
    code, details = 999, ""
    words = stderr.decode(errors="replace").strip() or f"exit status {status}"
    if document is not None and "msg" in document:
        given, details = document.get("code"), str(document.get("details") or "")
        code = given if isinstance(given, int) else code
        words = ": ".join(filter(None, (str(document["msg"]), details))) or f"error {code}"
    words = " ".join(words.split())
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]}…"
    return NetworkError(f"{what} ({command}): {words}", code, details)
