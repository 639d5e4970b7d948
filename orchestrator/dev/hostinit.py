# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a dev host: makes the host's namespaces, reaps, and keeps its daemons running.

Run in a bare interpreter (`daemon.bareprogram`, arguments DIRECTORY HOSTNAME), with the standard
library and `orchestrator.linux` alone, so that a host boots in tens of milliseconds and costs a
few megabytes. The process that is started leaves the machine's namespaces, forks PID 1 of the new
PID namespace, and exits as soon as that one listens. Killing PID 1 from outside kills everything
in the host at once: a power loss.

PID 1 holds a POSIX lock on `DIRECTORY/lock` for as long as it lives. To find its pid, ask
the kernel who holds the lock (`F_GETLK` answers in the asker's PID namespace), so there is no pid
file that a crash could leave stale, and never a doubt whose process it is.

Orders come over the unix socket `DIRECTORY/init.sock`, a JSON object on a line each way:
`{"order": "start", "daemon": NAME, "argv": [...], "env": {...}}`, `{"order": "signal",
"daemon": NAME, "signal": NUMBER, "wanted": BOOL}` and `{"order": "status"}`. Each is answered
with the status of all daemons, or with `{"error": TEXT}`.
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

# A daemon that died comes back after the first pause; each quick death doubles it up to the
# last, and one that lived for a while starts anew (systemd: RestartSec, RestartMaxDelaySec).
FIRST_PAUSE, LAST_PAUSE, LONG_LIFE = 0.1, 2.0, 5.0

_NAMESPACES = (
    libc.CLONE_NEWNS | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC | libc.CLONE_NEWPID | libc.CLONE_NEWNET
)
_NO_PROGRAMS = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


@dataclass(slots=True)
class Daemon:
    """One supervised process: what it should be and what it is. Times are monotonic seconds."""

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
        """Note the wait status of its end and when it may start again."""
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

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order and return the status of every daemon.

        Raises KeyError for an order or daemon that is not known, OSError where the kernel refuses.
        """
        match order["order"]:
            case "start":
                self._start(order["daemon"], list(order["argv"]), dict(order["env"]))
            case "signal":
                daemon = self.daemons[order["daemon"]]
                daemon.wanted = bool(order["wanted"])
                if daemon.pid is not None:
                    os.kill(daemon.pid, int(order["signal"]))
            case "status":
                pass
            case unknown:
                raise KeyError(unknown)
        return {name: asdict(daemon) for name, daemon in self.daemons.items()}

    def tend(self, now: float) -> float | None:
        """Reap what ended, start what is due; return the seconds until the next start."""
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
            # The program is gone, say: as with any death, say why and try again later.
            print(f"{daemon.name}: cannot start: {error}", file=sys.stderr, flush=True)
            daemon.died(127 << 8, now)


def serve(listener: socket.socket, supervisor: Supervisor) -> None:
    """Supervise the daemons and answer requests, for ever."""
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
    # A client that says nothing must not hold up PID 1.
    connection.settimeout(1.0)
    try:
        with connection.makefile("rwb") as stream:
            try:
                reply: dict[str, Any] = supervisor.obey(json.loads(stream.readline()))
            except (KeyError, ValueError, TypeError, OSError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")
    except OSError as error:
        print(f"order lost: {error}", file=sys.stderr, flush=True)


def take_lock(path: Path) -> int:
    """Hold the host's lock; return its file descriptor, which must stay open.

    Raises OSError where another init holds it, or where the host was removed meanwhile.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.stat(path).st_ino != os.fstat(descriptor).st_ino:
        raise FileNotFoundError(f"{path} was replaced")
    return descriptor


def _furnish(directory: Path, hostname: str) -> None:
    """Set up the new namespaces as a host; the machine does not change."""
    socket.sethostname(hostname)
    # A daemon holds a few files per container: as many as its unit allows on a real host.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    libc.mount("proc", "/proc", "proc", _NO_PROGRAMS)
    libc.mount("tmpfs", "/run", "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=755")
    os.mkdir("/run/lock", 0o1777)
    _own_cgroup_folder()
    _plain_bridges()
    # A container's user namespace may mount its own /proc only where one is to be seen of which
    # nothing is covered, and the next lines cover a file of the host's.
    os.mkdir("/run/proc", 0o700)
    libc.mount("proc", "/run/proc", "proc", _NO_PROGRAMS)
    boot_id = directory / "boot_id"
    boot_id.write_text(Path("/proc/sys/kernel/random/uuid").read_text())
    libc.mount(boot_id, "/proc/sys/kernel/random/boot_id", flags=libc.MS_BIND)
    # As systemd has it: what a program of the host mounts arrives at its agent, too. The peers are
    # this host's namespaces alone.
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_SHARED)


def _plain_bridges() -> None:
    """Keep bridged frames out of netfilter, as on a host that has not loaded
    br_netfilter. Where the kernel has it built in, a new network namespace begins with it on."""
    for switch in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        switch.write_text("0")


def _own_cgroup_folder() -> None:
    """Where cgroups are v1 or hybrid, give the host its own folder of the hierarchies.

    It is a tmpfs, so what is made in it (crun makes folders where `unified` was unmounted) would
    stay on the machine. The hierarchies in it are the kernel's, and the same everywhere.
    """
    folder, staged = "/sys/fs/cgroup", "/run/cgroup"
    places: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        places[before.split()[4]] = after.split()[0]
    if places.get(folder) != "tmpfs":
        return
    os.mkdir(staged)
    libc.mount("tmpfs", staged, "tmpfs", _NO_PROGRAMS, "mode=755")
    for entry in os.scandir(folder):
        target = f"{staged}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif entry.path in places:
            os.mkdir(target)
            libc.mount(entry.path, target, flags=libc.MS_BIND)
    # The machine's is unmounted, not covered, so that the list of mounts has one of each.
    unmount(folder)
    libc.mount(staged, folder, flags=libc.MS_MOVE)
    os.rmdir(staged)


def _run_as_pid_1(directory: Path, hostname: str, ready: int) -> None:
    lock = take_lock(directory / LOCK)
    os.set_inheritable(lock, False)
    os.chdir("/")
    _furnish(directory, hostname)
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
    """Boot a host: 0 once its PID 1 listens, 1 with the reason on stderr if it could not."""
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
