# SPDX-License-Identifier: Apache-2.0
"""conmon, the monitor of one container: command line, files and messages.

Source: conmon(8) and the behaviour of version 2.1:
- it forks, and the first process ends at once, after writing the pid file of the second;
- it reports on `_OCI_SYNCPIPE`, as a line of JSON, the container's pid once `create` is done, or -1
  with the OCI runtime's stderr;
- it stays in the cgroup of its parent. Moving it to another takes about 3 ms (the kernel waits for
  all CPUs), a fifth of a container's start; so a service manager must kill the agent alone
  (systemd: `KillMode=process`);
- it writes `exit` (the status, atomically) and `oom` to `--persist-dir`, and a second `oom` to its
  working folder, which must therefore be the bundle;
- `--log-path` is cut at a colon, so it is given relative to the bundle;
- at `--log-size-max` it replaces the log by an empty one, and the content is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.linux import spawn
from orchestrator.linux.priority import with_default_priority
from orchestrator.linux.processes import ProcessIdentity, identify

CONTAINER_PID = "pid"
MONITOR_PID = "conmon.pid"
EXIT = "exit"
OOM = "oom"
CONTROL = "ctl"
ATTACH = "attach"
STATE_LINK = "state"
"""A symbolic link in the bundle to the container's state folder, where the log is."""
LOG = "log"

_REOPEN_LOG = b"2 0 0\n"
_PID_FILE_CHECKS = 200
"""Checks, 10 ms apart, for the pid file of a starting monitor."""
_MAX_CELLS = 1000
"""conmon's maximum of rows and columns."""


def command(
    conmon: str,
    bundle: Path,
    container_id: str,
    name: str,
    runtime: str,
    runtime_root: Path,
    log_limit: int,
    *,
    tty: bool = False,
    stdin: bool = False,
    logged: bool = True,
) -> list[str]:
    """The argv to monitor a container; to be run with the bundle as the working folder.

    `log_limit`: bytes at which conmon itself truncates the log, if no agent rotated it. `stdin`:
    the container has an input, which ends with that of the first attached client; with a terminal
    it stays open for the next. `logged`: the container's output is written to a log file.
    """
    streams = ["--terminal"] if tty else []
    if stdin:
        streams += ["--stdin", *(["--leave-stdin-open"] if tty else [])]
    return [
        conmon,
        "--api-version",
        f"--cid={container_id}",
        f"--cuuid={container_id}",
        f"--name={name}",
        f"--runtime={runtime}",
        "--runtime-arg=--root",
        f"--runtime-arg={runtime_root}",
        f"--bundle={bundle}",
        "--persist-dir=.",
        f"--container-pidfile={CONTAINER_PID}",
        f"--conmon-pidfile={MONITOR_PID}",
        f"--log-path=k8s-file:{STATE_LINK}/{LOG}" if logged else "--log-path=none",
        f"--log-size-max={log_limit}",
        "--log-level=error",
        "--no-sync-log",
        "--full-attach",
        *streams,
    ]


@dataclass(frozen=True, slots=True)
class Report:
    """conmon's report of `create`."""

    pid: int
    """The container's first process; -1 when it could not be created."""
    message: str = ""
    """The OCI runtime's error output then."""


def parse_report(line: bytes) -> Report | None:
    """The message on the sync pipe; None when conmon ended without one."""
    try:
        message = json.loads(line)
        return Report(int(message["data"]), str(message.get("message", "")))
    except (ValueError, KeyError, TypeError):
        return None


async def launch(argv: Sequence[str], bundle: Path) -> Report:
    """Start a monitor and wait until it has created its container, or failed to.

    When cancelled, the monitor continues; it can be found by its pid file.
    """
    with spawn.descriptors() as owned:
        sync_read, sync_write = owned.pipe()
        stderr = owned.memory_file()
        path = os.environ.get("PATH", os.defpath)
        process = spawn.spawn(
            # Monitor and container do not inherit the agent's priority.
            (*with_default_priority(), *argv),
            stderr=stderr,
            cwd=bundle,
            # conmon does not inherit the agent's environment.
            env={"PATH": path, "TZ": "UTC", "_OCI_SYNCPIPE": str(sync_write)},
            pass_fds=(sync_write,),
        )
        try:
            owned.close(sync_write)
            line = await spawn.read_line(sync_read)
        finally:
            # The first process ends at once, but must not be killed: it writes the pid file.
            status = process.wait()
        if (report := parse_report(line)) is not None:
            return report
        # Exit status 0 without a report: the OCI runtime printed nothing.
        ended = f"conmon ended with status {status}" if status else ""
        return Report(-1, spawn.read_text(stderr) or ended)


def read_pid(path: Path) -> int | None:
    """The content of a pid file; None when it is missing or incomplete."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def find_monitor(bundle: Path, container_id: str) -> ProcessIdentity | None:
    """The running conmon of a bundle, verified by its command line, not by the pid file alone."""
    pid = read_pid(bundle / MONITOR_PID)
    found = identify(pid) if pid else None
    if found is None:
        return None
    try:
        argv = Path(f"/proc/{found.pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found if f"--cid={container_id}".encode() in argv else None


async def end_unrecorded(bundles: Path) -> None:
    """Ensure that each monitor of a bundle below `bundles` can be found by its pid file.

    If the agent is killed right after starting a monitor, that is in no pid file yet and continues
    to create its container, independent of the next agent. Wait until it has written the file; kill
    one that has not within the timeout, with its descendants.
    """
    for _ in range(_PID_FILE_CHECKS):
        if not (unrecorded := await asyncio.to_thread(_unrecorded, bundles)):
            return
        await asyncio.sleep(0.01)
    for monitor in unrecorded:
        for process in (monitor, *_descendants(monitor.pid)):
            process.send(signal.SIGKILL)


def _unrecorded(bundles: Path) -> list[ProcessIdentity]:
    mark = b"\0--bundle=%s/" % os.fsencode(bundles)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            command_line = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        _, there, rest = command_line.partition(mark)
        if not there:
            continue
        name = os.fsdecode(rest.split(b"\0", 1)[0])
        process = identify(int(entry))
        if process is not None and read_pid(bundles / name / MONITOR_PID) != process.pid:
            found.append(process)
    return found


def _descendants(pid: int) -> list[ProcessIdentity]:
    found = []
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if (process := identify(int(child))) is not None:
                found += [process, *_descendants(process.pid)]
    return found


def reopen_log(bundle: Path) -> bool:
    """Request a new log file from conmon; False when no conmon is listening.

    It does so asynchronously: a new `log` appears, and the old file does not grow any more.
    """
    return _control(bundle, _REOPEN_LOG)


def resize(bundle: Path, rows: int, columns: int) -> bool:
    """Set the size of the container's terminal; False when no conmon is listening."""
    size = f"{min(max(rows, 0), _MAX_CELLS)} {min(max(columns, 0), _MAX_CELLS)}"
    return _control(bundle, f"1 {size}\n".encode())


def _control(bundle: Path, message: bytes) -> bool:
    try:
        fd = os.open(bundle / CONTROL, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.write(fd, message) == len(message)
    except OSError:
        return False
    finally:
        os.close(fd)
