"""Makes user namespaces, each with a network namespace that belongs to it: a process of its own.

It uses the standard library alone, so that it is small: a new namespace takes a fork, and the agent
itself has threads, of which no fork is safe.

Orders come over the sequenced socket that is its stdin: the decimal number of the first user id of
a range, or `join` with the descriptor of a user namespace. It answers `ok` with two descriptors, of
the user namespace and of the network namespace, or with that of a network namespace which belongs
to the given one; or with one line that says what the kernel refused. It ends when the other end
closes.
"""

from __future__ import annotations

import os
import socket

from orchestrator.linux import libc

SIZE = 65_536


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _child(ready: int, done: int, joined: int) -> None:
    try:
        if joined >= 0:
            libc.setns(joined, libc.CLONE_NEWUSER)
            libc.unshare(libc.CLONE_NEWNET)
        else:
            libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNET)
        os.write(ready, b"k")
        os.read(done, 1)
    except OSError as error:
        os.write(ready, str(error.strerror).encode())
    os._exit(0)


def make(first: int, joined: int = -1) -> tuple[int, ...]:
    """Descriptors of a new user namespace and of its network namespace; with `joined`, a user
    namespace that is there, only of the latter. Raises OSError."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    done_read, done_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            os.close(done_write)
            _child(ready_write, done_read, joined)
        try:
            said = os.read(ready_read, 256)
            if said != b"k":
                raise OSError(0, said.decode())
            if joined >= 0:
                return (os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC),)
            for kind in ("uid", "gid"):
                _write(f"/proc/{pid}/{kind}_map", f"0 {first} {SIZE}\n")
            user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return user, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                os.close(user)
                raise
        finally:
            os.write(done_write, b"k")
            os.waitpid(pid, 0)
    finally:
        for descriptor in (ready_read, ready_write, done_read, done_write):
            os.close(descriptor)


def main(argv: list[str]) -> None:
    """Serve until the other end closes."""
    with socket.socket(fileno=os.dup(0)) as orders:
        while (received := socket.recv_fds(orders, 64, 1))[0]:
            order, given, _, _ = received
            try:
                made = make(-1, given[0]) if order == b"join" else make(int(order))
            except OSError as error:
                orders.send((error.strerror or str(error)).encode())
                continue
            finally:
                for descriptor in given:
                    os.close(descriptor)
            socket.send_fds(orders, [b"ok"], made)
            for descriptor in made:
                os.close(descriptor)
