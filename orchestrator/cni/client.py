"""The command `orc-cni` as container runtimes execute it: a thin client of a warm server.

It hands its environment and stdin to the server (`server`) of its network namespace, starts one
when there is none, and prints the answer. If no server can be had, it becomes the plugin itself
(`plugin`), which is slower and does the same.

A start of Python costs more than connecting a container, and the standard library's own `socket`
and `os` cost as much again. So this file imports only what is compiled into the interpreter, and is
installed with the options that leave everything else out (`install`): it does not know the package
that it comes from, but by the name of the server's module.

    ORC_CNI_RUN    folder of the servers' sockets         /run/orc-cni
"""

import posix
import sys
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

SERVER, PLUGIN = "orchestrator.cni.server", "orchestrator.cni.plugin"
PASSED = (b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME", b"CNI_ARGS")
FOLDER = b"/run/orc-cni"
ATTEMPTS = 3


def _read(descriptor: int) -> bytes:
    found = b""
    while part := posix.read(descriptor, 1 << 16):
        found += part
    return found


def _path() -> bytes:
    """The socket of the server for this network namespace, and this view of the file system."""
    network, mounts = (posix.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt"))
    return posix.environ.get(b"ORC_CNI_RUN", FOLDER) + b"/%d-%d" % (network, mounts)


def _ask(path: bytes, request: bytes) -> bytes:
    """The server's answer; empty if there is no server, or if it died over it."""
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.connect(path)
        sock.sendall(request)
        sock.shutdown(SHUT_WR)
        return _read(sock.fileno())
    except OSError:
        return b""
    finally:
        sock.close()


def _lock(path: bytes) -> int:
    """A descriptor of the file that is locked while a server is started."""
    try:  # noqa: SIM105 - contextlib takes long to import
        posix.mkdir(path.rpartition(b"/")[0], 0o700)
    except FileExistsError:
        pass
    return posix.open(path + b".start", posix.O_CREAT | posix.O_RDWR | posix.O_CLOEXEC, 0o600)


def _start(path: bytes, request: bytes) -> bytes:
    """Have a server, and ask it: one that another command has started meanwhile, or a new one."""
    import fcntl

    try:
        lock = _lock(path)
    except OSError:
        return b""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answer := _ask(path, request):
            return answer
        ready, write = posix.pipe()
        # It must hold nothing of the runtime's: that waits until all have closed its pipe.
        posix.posix_spawn(
            sys.executable,
            [sys.executable, "-m", SERVER, path.decode()],
            posix.environ,
            file_actions=[
                (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDWR, 0),
                (posix.POSIX_SPAWN_DUP2, write, 1),
                (posix.POSIX_SPAWN_OPEN, 2, "/dev/null", posix.O_RDWR, 0),
            ],
            setsid=True,
        )
        posix.close(write)
        _read(ready)  # until it listens, or has died
        return _ask(path, request)
    except OSError:
        return b""
    finally:
        posix.close(lock)


def _become_plugin(data: bytes) -> int:
    """Do it in this process, with the same stdin."""
    copy = posix.memfd_create("stdin")
    posix.write(copy, data)
    posix.lseek(copy, 0, 0)
    posix.dup2(copy, 0)
    posix.execv(sys.executable, [sys.executable, "-m", PLUGIN])
    return 1


def main() -> int:
    """Entry point of `orc-cni`."""
    environment = posix.environ
    if not environment.get(b"CNI_COMMAND"):
        posix.execv(sys.executable, [sys.executable, "-m", PLUGIN, *sys.argv[1:]])
    data = _read(0)
    request = b"\0".join([*(environment.get(name, b"") for name in PASSED), data])
    path = _path()
    answer = _ask(path, request)
    for _ in range(ATTEMPTS):
        answer = answer or _start(path, request)
    if not answer:
        return _become_plugin(data)
    # The first byte is the exit status.
    view = answer[1:]
    while view:
        view = view[posix.write(1, view) :]
    return answer[0] - ord("0")


if __name__ == "__main__":
    sys.exit(main())
