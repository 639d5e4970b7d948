"""conmon, the monitor of one container: its command line, its files and its messages.

Source: conmon(8) and the behaviour of version 2.1. Worth knowing of it:
- it forks and lets its caller go at once; the first process writes the pid file of the second;
- it reports on `_OCI_SYNCPIPE`, as a line of JSON, the container's pid once `create` is done, or -1
  with what the OCI runtime printed on stderr;
- it stays in the cgroup of who starts it. Moving it to one of its own takes some 3 ms (the kernel
  waits for all CPUs), a fifth of a container's start; so a service manager must be told to kill the
  agent alone (systemd: `KillMode=process`);
- `--persist-dir` gets `exit` (the status, written whole) and `oom`; a second `oom` goes to its
  working folder, so that must be the bundle;
- `--log-path` is cut at a colon, so it is given relative to the bundle;
- at `--log-size-max` it replaces the log by an empty one and what was in it is lost.
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
from orchestrator.linux.priority import usual
from orchestrator.linux.processes import ProcessIdentity, identify

CONTAINER_PID = "pid"
MONITOR_PID = "conmon.pid"
EXIT = "exit"
OOM = "oom"
CONTROL = "ctl"
ATTACH = "attach"
STATE_LINK = "state"
"""A symbolic link in the bundle to the container's other folder, where the log is."""
LOG = "log"

_REOPEN_LOG = b"2 0 0\n"
_PATIENCE = 200
"""Looks, a hundredth of a second apart, at a monitor that is yet to be in its pid file."""
_MOST_CELLS = 1000
"""Rows and columns that conmon takes."""


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

    `log_limit`: bytes at which conmon itself starts the log anew, as nobody else did. `stdin`: the
    container has an input, which ends with that of the first client that was attached; behind a
    terminal it stays open for the next. `logged`: what the container writes is kept in a file.
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
    """What conmon says of `create`."""

    pid: int
    """The container's first process; -1 when it could not be made."""
    message: str = ""
    """What the OCI runtime printed then."""


def parse_report(line: bytes) -> Report | None:
    """The message on the sync pipe; None when conmon ended without one."""
    try:
        message = json.loads(line)
        return Report(int(message["data"]), str(message.get("message", "")))
    except (ValueError, KeyError, TypeError):
        return None


async def launch(argv: Sequence[str], bundle: Path) -> Report:
    """Start a monitor and wait until it has created its container, or could not.

    Cancelled, it leaves a monitor that goes on, and can be found by its pid file.
    """
    with spawn.descriptors() as owned:
        sync_read, sync_write = owned.pipe()
        stderr = owned.memory_file()
        path = os.environ.get("PATH", os.defpath)
        process = spawn.spawn(
            # The agent's priority is not for what runs as long as the container.
            (*usual(), *argv),
            stderr=stderr,
            cwd=bundle,
            # Nothing of the agent's own environment gets to conmon.
            env={"PATH": path, "TZ": "UTC", "_OCI_SYNCPIPE": str(sync_write)},
            pass_fds=(sync_write,),
        )
        try:
            owned.close(sync_write)
            line = await spawn.read_line(sync_read)
        finally:
            # The first process ends at once, but must not be cut short: it writes the pid file.
            status = process.wait()
        if (report := parse_report(line)) is not None:
            return report
        # Ended well without a report: the OCI runtime has said nothing.
        ended = f"conmon ended with status {status}" if status else ""
        return Report(-1, spawn.read_text(stderr) or ended)


def read_pid(path: Path) -> int | None:
    """The content of a pid file; None when it is not there or not finished."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def find_monitor(bundle: Path, container_id: str) -> ProcessIdentity | None:
    """The living conmon of a bundle, told by its command line and not by the pid file alone."""
    pid = read_pid(bundle / MONITOR_PID)
    found = identify(pid) if pid else None
    if found is None:
        return None
    try:
        argv = Path(f"/proc/{found.pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return found if f"--cid={container_id}".encode() in argv else None


async def end_unnamed(bundles: Path) -> None:
    """See to it that each monitor of a bundle below `bundles` can be found by its pid file.

    An agent that is killed right after it has started one leaves one that is in no file yet, which
    goes on to make its container whatever the next agent decides. It gets the moment that it needs;
    who is in no file after that is killed, with what it has started.
    """
    for _ in range(_PATIENCE):
        if not (unnamed := await asyncio.to_thread(_unnamed, bundles)):
            return
        await asyncio.sleep(0.01)
    for monitor in unnamed:
        for process in (monitor, *_descendants(monitor.pid)):
            process.send(signal.SIGKILL)


def _unnamed(bundles: Path) -> list[ProcessIdentity]:
    mark = b"\0--bundle=%s/" % os.fsencode(bundles)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            words = Path("/proc", entry, "cmdline").read_bytes()
        except OSError:
            continue
        _, there, rest = words.partition(mark)
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
    """Tell conmon to begin a new log file; False when there is no conmon that listens.

    It does so in its own time: then a new `log` appears, and the old file gets nothing more.
    """
    return _control(bundle, _REOPEN_LOG)


def resize(bundle: Path, rows: int, columns: int) -> bool:
    """Tell conmon the size of the container's terminal; False when there is none that listens."""
    size = f"{min(max(rows, 0), _MOST_CELLS)} {min(max(columns, 0), _MOST_CELLS)}"
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
