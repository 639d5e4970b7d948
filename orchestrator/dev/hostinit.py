# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a dev host: makes the host's namespaces, reaps, and keeps its daemons running.

Runs in a bare interpreter (`daemon.bareprogram`, arguments DIRECTORY HOSTNAME) with the standard
library and `orchestrator.linux` only, so that a host boots in tens of milliseconds and takes a few
megabytes. The first process leaves the machine's namespaces, forks PID 1 of the new PID namespace,
and exits once that listens. Killing PID 1 from outside kills all processes of the host at once.

PID 1 holds a POSIX lock on `DIRECTORY/lock` while it runs. The kernel reports the holder's pid
(`F_GETLK`, in the caller's PID namespace), so there is no pid file that a crash could leave stale.

Requests arrive on the Unix socket `DIRECTORY/init.sock`; request and reply are a line of JSON:
`{"order": "start", "daemon": NAME, "argv": [...], "env": {...}}`, `{"order": "signal",
"daemon": NAME, "signal": NUMBER, "wanted": BOOL}` and `{"order": "status"}`. The reply is the
status of all daemons, or `{"error": TEXT}`.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.linux import libc
from orchestrator.linux.mounts import unmount

LOCK = "lock"
SOCKET = "init.sock"
LOGS = "log"

# Backoff of restarts in seconds: the first pause doubles up to the last, and is reset after a run
# of LONG_LIFE (systemd: RestartSec, RestartMaxDelaySec).
FIRST_PAUSE, LAST_PAUSE, LONG_LIFE = 0.1, 2.0, 5.0

_NAMESPACES = (
    libc.CLONE_NEWNS | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC | libc.CLONE_NEWPID | libc.CLONE_NEWNET
)
_NO_PROGRAMS = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


@dataclass(slots=True)
class Daemon:
    """A supervised process: desired and actual state. Times are monotonic seconds."""

    name: str
    argv: list[str]
    env: dict[str, str]
    wanted: bool = True
    pid: int | None = None
    restarts: int = 0
    started_at: float = 0.0
    pause: float = FIRST_PAUSE
    due_at: float = 0.0
    last_exit: int | None = None

    def died(self, status: int, now: float) -> None:
        """Record its wait status and when it may be restarted."""
        if now - self.started_at >= LONG_LIFE:
            self.pause = FIRST_PAUSE
        self.pid = None
        self.last_exit = os.waitstatus_to_exitcode(status)
        self.due_at = now + self.pause
        self.pause = min(self.pause * 2, LAST_PAUSE)


@dataclass(slots=True)
class Supervisor:
    """The daemons of one host, by name."""

    logs: Path
    daemons: dict[str, Daemon] = field(default_factory=dict)

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Handle a request and return the status of every daemon.

        Raises KeyError for an unknown request or daemon, OSError from the kernel.
        """
        match request["order"]:
            case "start":
                self._start(request["daemon"], list(request["argv"]), dict(request["env"]))
            case "signal":
                daemon = self.daemons[request["daemon"]]
                daemon.wanted = bool(request["wanted"])
                if daemon.pid is not None:
                    os.kill(daemon.pid, int(request["signal"]))
            case "status":
                pass
            case unknown:
                raise KeyError(unknown)
        return {name: asdict(daemon) for name, daemon in self.daemons.items()}

    def tend(self, now: float) -> float | None:
        """Reap children, restart daemons that are due; return the seconds until the next start."""
        by_pid = {d.pid: d for d in self.daemons.values() if d.pid is not None}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in by_pid:
                by_pid[pid].died(status, now)
        waits = []
        for daemon in self.daemons.values():
            if daemon.pid is None and daemon.wanted:
                if daemon.due_at <= now:
                    daemon.restarts += 1
                    self._spawn(daemon, now)
                else:
                    waits.append(daemon.due_at - now)
        return min(waits, default=None)

    def _start(self, name: str, argv: list[str], env: dict[str, str]) -> None:
        daemon = self.daemons.get(name)
        if daemon is None:
            daemon = self.daemons[name] = Daemon(name, argv, env)
        daemon.argv, daemon.env, daemon.wanted, daemon.pause = argv, env, True, FIRST_PAUSE
        if daemon.pid is None:
            self._spawn(daemon, time.monotonic())

    def _spawn(self, daemon: Daemon, now: float) -> None:
        log = str(self.logs / f"{daemon.name}.log")
        daemon.started_at = now
        try:
            daemon.pid = os.posix_spawn(
                daemon.argv[0],
                daemon.argv,
                daemon.env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM],
            )
        except OSError as error:
            # For example, the program was removed: log the reason and retry with backoff.
            print(f"{daemon.name}: cannot start: {error}", file=sys.stderr, flush=True)
            daemon.died(127 << 8, now)


def serve(listener: socket.socket, supervisor: Supervisor) -> None:
    """Supervise the daemons and answer requests, forever."""
    wake_r, wake_w = socket.socketpair()
    wake_r.setblocking(False)
    wake_w.setblocking(False)
    signal.set_wakeup_fd(wake_w.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(wake_r, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while True:
            pause = supervisor.tend(time.monotonic())
            for key, _ in selector.select(pause):
                if key.fileobj is wake_r:
                    wake_r.recv(4096)
                else:
                    connection, _ = listener.accept()
                    with connection:
                        _answer(connection, supervisor)


def _answer(connection: socket.socket, supervisor: Supervisor) -> None:
    # A silent client must not block PID 1.
    connection.settimeout(1.0)
    try:
        with connection.makefile("rwb") as stream:
            try:
                reply: dict[str, Any] = supervisor.handle(json.loads(stream.readline()))
            except (KeyError, ValueError, TypeError, OSError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")
    except OSError as error:
        print(f"request lost: {error}", file=sys.stderr, flush=True)


def take_lock(path: Path) -> int:
    """Take the host's lock; return its file descriptor, which must stay open.

    Raises OSError if another init holds it, or if the host was removed concurrently.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
        raise FileNotFoundError(f"{path} was replaced")
    return descriptor


def _set_up_namespaces(directory: Path, hostname: str) -> None:
    """Set up the new namespaces as a host, without changing the machine."""
    socket.sethostname(hostname)
    # A daemon has a few open files per container; on real hosts, its unit raises the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("proc", "/proc", "proc", _NO_PROGRAMS)
    libc.mount("tmpfs", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755")
    os.mkdir("/run/lock", 0o1777)
    _own_cgroup_folder()
    _plain_bridges()
    # The kernel lets a user namespace mount /proc only if an instance without mounts on top is
    # visible, and the next lines mount over a file of the host's.
    os.mkdir("/run/proc", 0o700)
    libc.mount("proc", "/run/proc", "proc", _NO_PROGRAMS)
    boot_id = directory / "boot_id"
    boot_id.write_text(Path("/proc/sys/kernel/random/uuid").read_text())
    libc.mount(boot_id, "/proc/sys/kernel/random/boot_id", flags=libc.MS_BIND)
    # As in systemd: mounts of the host's programs propagate to its agent. The peer group consists
    # of this host's namespaces only.
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_SHARED)


def _plain_bridges() -> None:
    """Keep bridged frames out of netfilter, as on hosts without br_netfilter. If it is built into
    the kernel, new network namespaces start with it enabled."""
    for switch in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        switch.write_text("0")


def _own_cgroup_folder() -> None:
    """With cgroup v1 or hybrid, give the host its own folder of the hierarchies.

    It is a tmpfs, in which folders that are created (by crun, if `unified` was unmounted) would
    remain on the machine. The hierarchies in it are the kernel's own.
    """
    folder, staged = "/sys/fs/cgroup", "/run/cgroup"
    mounts: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mounts[before.split()[4]] = after.split()[0]
    if mounts.get(folder) != "tmpfs":
        return
    os.mkdir(staged)
    libc.mount("tmpfs", staged, "tmpfs", _NO_PROGRAMS, "mode=755")
    for entry in os.scandir(folder):
        target = f"{staged}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.path in mounts:
            os.mkdir(target)
            libc.mount(entry.path, target, flags=libc.MS_BIND)
    # The machine's folder is unmounted, not covered, so that the mount table has no duplicates.
    unmount(folder)
    libc.mount(staged, folder, flags=libc.MS_MOVE)
    os.rmdir(staged)


def _run_as_pid_1(directory: Path, hostname: str, ready: int) -> None:
    lock = take_lock(directory / LOCK)
    os.set_inheritable(lock, False)
    os.chdir("/")
    _set_up_namespaces(directory, hostname)
    logs = directory / LOGS
    logs.mkdir(mode=0o700, exist_ok=True)
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(16)
    for target, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        name = os.devnull if target == 0 else str(logs / "init.log")
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, target)
        os.close(opened)
    os.dup2(1, 2)
    os.write(ready, b"1")
    os.close(ready)
    serve(listener, Supervisor(logs))


def main(argv: list[str]) -> int:
    """Boot a host. Returns 0 once its PID 1 listens; 1, with the reason on stderr, if it failed."""
    directory, hostname = Path(argv[0]).resolve(), argv[1]
    libc.unshare(_NAMESPACES)
    reader, ready = os.pipe()
    if os.fork():
        os.close(ready)
        return 0 if os.read(reader, 1) else 1
    os.close(reader)
    try:
        _run_as_pid_1(directory, hostname, ready)
    except Exception:
        traceback.print_exc()
    os._exit(1)
