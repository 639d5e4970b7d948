# SPDX-License-Identifier: Apache-2.0
"""A program that makes user namespaces, each with a network namespace that belongs to it.

It uses the standard library and `orchestrator.linux` alone, so that it is small: a new namespace
takes a fork, which is not safe in the agent, which has threads.

Requests come over the sequenced socket that is its stdin: the decimal number of the first user id
of a range, or `join` with the descriptor of a user namespace. The response is `ok` with two
descriptors, of the user and the network namespace (with `join`: of the network namespace only), or
one line with the kernel's error. The program ends when the other end closes.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

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
    """Descriptors of a new user namespace and its network namespace; with `joined`, an existing
    user namespace, only of the latter. Raises OSError."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    done_read, done_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            os.close(done_write)
            _child(ready_write, done_read, joined)
        try:
            result = os.read(ready_read, 256)
            if result != b"k":
                raise OSError(0, result.decode())
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
    """Serve requests until the other end closes, or is killed with a request under way."""
    with socket.socket(fileno=os.dup(0)) as requests, suppress(ConnectionError):
        while (received := socket.recv_fds(requests, 64, 1))[0]:
            request, given, _, _ = received
            try:
                made = make(-1, given[0]) if request == b"join" else make(int(request))
            except OSError as error:
                requests.send((error.strerror or str(error)).encode())
                continue
            finally:
                for descriptor in given:
                    os.close(descriptor)
            socket.send_fds(requests, [b"ok"], made)
            for descriptor in made:
                os.close(descriptor)
