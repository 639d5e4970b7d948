# SPDX-License-Identifier: Apache-2.0
"""Additional programs in a running container: `crun exec`, as a child of the agent.

crun passes the streams on to the program, waits for it and returns its exit status. It writes the
program's pid to a pipe, given as the pid file, when the program has started; before that, stderr
has only crun's own error, which is also in its log, as JSON. With a terminal, crun opens it inside
the container and sends its controlling end over a socket.

Output is read only on request, so a slow reader makes the program wait, as with any pipe; a write
waits until the program reads it.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import posixpath
import re
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from termios import TIOCSWINSZ
from typing import Any, Protocol

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.engine.program_errors import (
    NO_MESSAGE,
    check_program,
    known_failure,
)
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.spec.apparmor import UNCONFINED
from orchestrator.agent.runtime.spec.image_users import User, read_user_tables, resolve_user
from orchestrator.agent.runtime.spec.node_facts import own_capabilities
from orchestrator.linux import spawn
from orchestrator.linux.processes import ProcessIdentity, identify
from orchestrator.model.states import CANNOT_INVOKE

CHUNK = 1 << 16
"""Maximum bytes of one read or write."""


class Program(Protocol):
    """A program with its streams, owned by its opener."""

    tty: bool
    stdin: bool
    """Whether it has an input."""

    async def read(self) -> tuple[bool, bytes] | None:
        """The next output: whether it is stderr, and the bytes; None at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Write all of `data` to its input; discarded if the program has closed it."""
        ...

    async def end_input(self) -> None:
        """End its input."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        ...

    async def signal(self, number: int) -> None:
        """Send it a signal."""
        ...

    async def wait(self) -> int:
        """Its exit status, 0 to 255, once it has ended."""
        ...

    def close(self) -> None:
        """Release its streams; the program may continue."""
        ...


async def write_all(descriptor: int, data: bytes, most: int = CHUNK) -> None:
    """Write all of `data`, at most `most` bytes at a time. Raises OSError without a reader."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest[:most]) :]
        except BlockingIOError:
            await spawn.writable(descriptor)


def set_size(terminal: int, rows: int, columns: int) -> None:
    """Set a terminal's size; its foreground programs get SIGWINCH if it changed."""
    ioctl(
        terminal,
        TIOCSWINSZ,
        struct.pack("HHHH", _terminal_cells(rows), _terminal_cells(columns), 0, 0),
    )


def _terminal_cells(count: int) -> int:
    return max(0, min(count, 0xFFFF))


_END_OF_INPUT = b"\x04"
"""Ctrl-D, which ends the input of a terminal."""
_KILL_TIMEOUT = 1.0
"""Seconds to wait for a killed program to end."""
_LOG_LIMIT = 4096
_SCORED = ("/bin/sh", "-c", 'echo "$0" > /proc/self/oom_score_adj; exec "$@"')
"""Runs a program with an OOM score adjustment, which precedes its arguments."""
_READ_TIMEOUT = 30.0
"""Seconds until the container's file systems must have returned the files to read."""
_NO_FOLDER = re.compile(r"chdir to `([^`]*)`: No such file")


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A program to run, with its differences from the container's own program."""

    command: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    env: tuple[str, ...] = ()
    """`KEY=value`, overrides the container's; a key alone unsets the variable."""
    user: str = ""
    """Empty: the container's."""
    workdir: str = ""
    """Empty: the container's, to which a relative path refers."""
    privileged: bool = False
    rows: int = 0
    columns: int = 0


def process(
    spec: ExecSpec, first: Mapping[str, Any], user: User | None, every: Sequence[str]
) -> dict[str, Any]:
    """The OCI runtime's `process`, derived from that of the container's own program, `first`.

    `user` is the resolved `spec.user`, None for the container's; `every`: all capabilities that can
    be granted.
    """
    own = first["user"]
    capabilities = first.get("capabilities", {})
    variables = dict(entry.partition("=")[::2] for entry in first["env"])
    if user is not None:
        own = {"uid": user.uid, "gid": user.gid, "umask": own.get("umask", 0o022)}
        own["additionalGids"] = list(user.groups)
        held = capabilities.get("bounding", []) if user.uid == 0 else []
        capabilities = dict(capabilities) | {"effective": held, "permitted": held}
        variables["HOME"] = user.home
    if spec.privileged:
        capabilities = {kind: list(every) for kind in ("bounding", "effective", "permitted")}
    if spec.tty:
        variables.setdefault("TERM", "xterm")
    for entry in spec.env:
        key, equals, value = entry.partition("=")
        if equals:
            variables[key] = value
        else:
            variables.pop(key, None)
    changed = {
        "args": list(spec.command),
        "terminal": spec.tty,
        "user": own,
        "capabilities": capabilities,
        "env": [f"{key}={value}" for key, value in variables.items()],
        "cwd": posixpath.normpath(posixpath.join(first["cwd"], spec.workdir)),
        "noNewPrivileges": bool(first.get("noNewPrivileges")) and not spec.privileged,
    }
    if spec.privileged and "apparmorProfile" in first:
        changed["apparmorProfile"] = UNCONFINED
    if spec.tty and spec.rows and spec.columns:
        changed["consoleSize"] = {"height": spec.rows, "width": spec.columns}
    return {**first, **changed}


class ExecProgram:
    """A program started by `start`, as a `Program`. Its owner must `wait` and then `close`, or
    `end` it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        pid: int,
        outputs: Mapping[int, bool],
        stdin: int,
        tty: bool,
    ) -> None:
        """`process` is the OCI runtime's, `pid` the program's. `outputs`: output descriptors, and
        whether each is stderr; `stdin`: the input descriptor, or -1."""
        self._process = process
        self._pid = pid
        self._outputs = dict(outputs)
        self._input = stdin
        self._owned = {*outputs, *((stdin,) if stdin >= 0 else ())}
        self._exited = os.pidfd_open(process.pid)
        self.tty = tty
        self.stdin = stdin >= 0

    @property
    def identity(self) -> ProcessIdentity | None:
        """The program's process; None when it has ended."""
        return identify(self._pid) if self._process.poll() is None else None

    async def read(self) -> tuple[bool, bytes] | None:
        """See `Program.read`. The program's children may keep the streams open, so output ends with
        what is available when the program itself has ended."""
        while True:
            ended = self._process.poll() is not None
            for descriptor, stderr in list(self._outputs.items()):
                try:
                    data = os.read(descriptor, CHUNK)
                except BlockingIOError:
                    continue
                except OSError as error:
                    # A terminal whose other end is closed.
                    if error.errno != errno.EIO:
                        raise
                    data = b""
                # Move to the end, so that both streams are served alternately.
                del self._outputs[descriptor]
                if data:
                    self._outputs[descriptor] = stderr
                    return stderr, data
            if ended or not self._outputs:
                return None
            await spawn.readable(*self._outputs, self._exited)

    async def write(self, data: bytes) -> None:
        """See `Program.write`."""
        if self._input < 0:
            return
        try:
            await write_all(self._input, data)
        except OSError:
            self._close_input()

    async def end_input(self) -> None:
        """See `Program.end_input`."""
        if self.tty:
            await self.write(_END_OF_INPUT)
        else:
            self._close_input()

    def resize(self, rows: int, columns: int) -> None:
        """See `Program.resize`."""
        if self.tty and self._input >= 0:
            set_size(self._input, rows, columns)

    async def signal(self, number: int) -> None:
        """No-op: as in Docker, a program of `exec` gets signals from its terminal only."""

    async def wait(self) -> int:
        """See `Program.wait`. When cancelled, the program continues."""
        await spawn.readable(self._exited)
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def kill(self) -> None:
        """Send SIGKILL to the program, unless it has ended; its children continue."""
        # The OCI runtime reaps the program, so its pid is not reused while that runs.
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    async def end(self) -> ProcessIdentity | None:
        """Kill the program and the OCI runtime's process that waits for it. Returns the program if
        it hangs in the kernel and has not ended yet."""
        self.kill()
        hanging = None
        try:
            async with asyncio.timeout(_KILL_TIMEOUT):
                await spawn.readable(self._exited)
        except TimeoutError:
            hanging = identify(self._pid)
        await spawn.kill(self._process)
        return hanging

    async def drain(self) -> None:
        """Read and discard all output, so that a program continues after its client has left."""
        if not self.tty:
            self._close_input()
        while await self.read() is not None:
            pass
        await self.wait()

    def close(self) -> None:
        """See `Program.close`."""
        self._outputs.clear()
        self._input = -1
        for descriptor in (*self._owned, self._exited):
            os.close(descriptor)
        self._owned.clear()
        self._exited = -1

    def _close_input(self) -> None:
        if self._input >= 0 and not self.tty:
            self._owned.remove(self._input)
            os.close(self._input)
        self._input = -1


async def start(access: ContainerHandle, spec: ExecSpec) -> ExecProgram:
    """Run a program in a running container. Raises RuntimeFailure, with an exit status if the
    program itself is the cause."""
    access.running()
    made = await _prepared(access, spec)
    with _Memory() as memory, _document(access, made) as document:
        if spec.tty:
            return await _on_terminal(access, document, memory)
        return await _on_pipes(access, document, memory, spec)


async def _on_pipes(
    access: ContainerHandle, document: str, memory: _Memory, spec: ExecSpec
) -> ExecProgram:
    with spawn.descriptors() as owned:
        stdout, its_stdout = owned.pipe()
        stderr, its_stderr = owned.pipe()
        # Not /dev/null, whose owner crun until 1.21 would change to the program's user.
        its_stdin, stdin = owned.pipe()
        if not spec.stdin:
            owned.close(stdin)
            stdin = -1
        process, pid = await _launch(
            access, document, memory, owned, stdin=its_stdin, stdout=its_stdout, stderr=its_stderr
        )
        ours = [stdout, stderr, *([stdin] if spec.stdin else [])]
        for descriptor in ours:
            owned.release(descriptor)
            os.set_blocking(descriptor, False)
        return ExecProgram(process, pid, {stdout: False, stderr: True}, stdin, tty=False)


async def _on_terminal(access: ContainerHandle, document: str, memory: _Memory) -> ExecProgram:
    with (
        tempfile.TemporaryDirectory(dir=access.bundle.run) as folder,
        socket.socket(socket.AF_UNIX) as listener,
        spawn.descriptors() as owned,
    ):
        # By the folder's descriptor, since the length of a socket's path is limited.
        place = owned.keep(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        listener.bind(f"/proc/self/fd/{place}/console")
        listener.listen(1)
        process, pid = await _launch(
            access,
            document,
            memory,
            owned,
            f"--console-socket=/proc/self/fd/{place}/console",
            pass_fds=(place,),
            stderr=memory.spare,
        )
        # The program runs, so its terminal has been sent.
        connection, _ = listener.accept()
        with connection:
            _, (terminal, *_), _, _ = socket.recv_fds(connection, CHUNK, 1)
        os.set_blocking(terminal, False)
        os.set_inheritable(terminal, False)
        return ExecProgram(process, pid, {terminal: False}, terminal, tty=True)


async def _launch(
    access: ContainerHandle,
    document: str,
    memory: _Memory,
    owned: spawn.Descriptors,
    *options: str,
    stderr: int,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    pass_fds: tuple[int, ...] = (),
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the OCI runtime and wait until the program runs. Returns the OCI runtime's process and
    the program's pid. Raises RuntimeFailure."""
    pid_read, pid_write = owned.pipe()
    argv = [
        *_scored(access),
        *_logging(access, memory.fd),
        "exec",
        f"--process={document}",
        f"--pid-file=/proc/self/fd/{pid_write}",
        *options,
        access.container_id,
    ]
    process = spawn.spawn(
        argv, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(memory.fd, pid_write, *pass_fds)
    )
    try:
        for theirs in {pid_write, stdin, stdout, stderr} - {subprocess.DEVNULL, memory.spare}:
            owned.close(theirs)
        # Closed without a pid: the program was not started.
        started = await spawn.read_some(pid_read)
        if not started:
            await spawn.reap(process)
            raise _failure(memory.text())
    except asyncio.CancelledError:
        await asyncio.shield(_abandon(process, pid_read))
        raise
    return process, int(started)


async def _abandon(process: subprocess.Popen[bytes], pid_read: int) -> None:
    """Kill a program that is being started, and the OCI runtime's process that starts it.

    The program does not end with the OCI runtime, so its pid is waited for.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILL_TIMEOUT):
            if started := await spawn.read_some(pid_read):
                with suppress(ProcessLookupError):
                    os.kill(int(started), signal.SIGKILL)
                await spawn.reap(process)
    await spawn.kill(process)


async def start_detached(access: ContainerHandle, spec: ExecSpec) -> None:
    """Run a program detached, without waiting for its end. Raises as `start`."""
    access.running()
    made = await _prepared(access, spec)
    with _Memory() as memory, _document(access, made) as document:
        argv = [
            *_scored(access),
            *_logging(access, memory.fd),
            "exec",
            "--detach",
            f"--process={document}",
            access.container_id,
        ]
        process = spawn.spawn(argv, stderr=memory.spare, pass_fds=(memory.fd,))
        if await spawn.reap(process) != 0:
            raise _failure(memory.text())


class _Memory:
    """Files in memory: the OCI runtime's log, and its stderr where that is not the program's."""

    def __enter__(self) -> _Memory:
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)
        self.spare = os.memfd_create("stderr", os.MFD_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self.spare)

    def text(self) -> str:
        """The error; empty if none was reported."""
        for line in os.pread(self.fd, _LOG_LIMIT, 0).decode(errors="replace").splitlines():
            try:
                return str(json.loads(line)["msg"])
            except (ValueError, KeyError, TypeError):
                return line
        return spawn.read_text(self.spare)


def _logging(access: ContainerHandle, log: int) -> list[str]:
    program, *options = access.runtime
    return [program, f"--log=/proc/self/fd/{log}", "--log-format=json", *options]


def _scored(access: ContainerHandle) -> list[str]:
    """A command prefix for the OCI runtime if the agent's OOM score adjustment is not the
    container's: the runtime sets that of a container's first program only (crun 1.21)."""
    first = json.loads((access.bundle.run / "config.json").read_bytes())["process"]
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        own = int(file.read())
    wanted = first.get("oomScoreAdj", own)
    return [*_SCORED, str(wanted)] if wanted != own else []


async def _prepared(access: ContainerHandle, spec: ExecSpec) -> dict[str, Any]:
    """`_prepare` in a thread, since a file system that is mounted in the container may not respond.
    Until it does, no other thread is started for this container."""
    try:
        async with asyncio.timeout(_READ_TIMEOUT) as limit:
            return await access.file_threads.run(access.container_id, _prepare, access, spec)
    except TimeoutError:
        if not limit.expired():
            raise
        raise RuntimeFailure(
            f"a file system of the container has not responded for {_READ_TIMEOUT:.0f} s; "
            "check its mounts",
            CANNOT_INVOKE,
        ) from None


def _prepare(access: ContainerHandle, spec: ExecSpec) -> dict[str, Any]:
    """The process to run, checked against the container's own files. Raises RuntimeFailure."""
    first = json.loads((access.bundle.run / "config.json").read_bytes())["process"]
    user = None
    if spec.user:
        files = read_user_tables(access.root())
        try:
            user = resolve_user(spec.user, files.passwd, files.group)
        except RuntimeFailure as failure:
            raise RuntimeFailure(str(failure), CANNOT_INVOKE) from None
    made = process(spec, first, user, own_capabilities())
    check_program(access.root(), spec.command[0], made["env"], made["cwd"], os.uname().machine)
    # The root was opened by a pid, which was the container's if the container still runs.
    access.running()
    return made


@contextmanager
def _document(access: ContainerHandle, process: Mapping[str, Any]) -> Iterator[str]:
    """The path of a temporary file with the process to run."""
    with tempfile.NamedTemporaryFile("w", dir=access.bundle.run) as file:
        json.dump(process, file)
        file.flush()
        yield file.name


def _failure(text: str) -> RuntimeFailure:
    """The failure of a program that was not started, with its exit status."""
    if known := known_failure(text):
        return known
    if match := _NO_FOLDER.search(text):
        return RuntimeFailure(f"the container has no folder `{match[1]}` to work in", CANNOT_INVOKE)
    if "is paused" in text:
        return RuntimeFailure("the container is paused; resume it with 'orc unpause'")
    return RuntimeFailure(f"the program could not be run: {text or NO_MESSAGE}", CANNOT_INVOKE)
