# SPDX-License-Identifier: Apache-2.0
"""User namespaces of containers, and the network namespaces that belong to them.

Root in a container may set up its network, mount its `/sys` and listen on port 80 only where the
network namespace belongs to the container's user namespace. So both are made together, by a helper
(`nsmaker`), before the network is attached. One bind mount, of the network namespace, keeps both:
the network namespace references the user namespace that owns it, as `owner` reads from the kernel.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
from pathlib import Path
from typing import Self

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.isolation.idranges import IdRange
from orchestrator.daemon import bareprogram
from orchestrator.linux import libc, spawn

_NS_GET_USERNS = 0xB701
"""ioctl_nsfs(2): the user namespace that owns a namespace."""
_OWN = Path("/proc/self/ns/user")
_COMMAND = bareprogram.command("orchestrator.agent.runtime.isolation.nsmaker")
_ATTEMPTS = 2


class NamespaceMaker:
    """The helper process; started on first use, and restarted when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end()

    async def make(self, ids: IdRange) -> tuple[int, int]:
        """Descriptors of a new user namespace that maps `ids` to 0, 1, …, and of a network
        namespace that belongs to it; the caller closes both. Raises RuntimeFailure."""
        userns, netns = await self._made(str(ids.first).encode())
        return userns, netns

    async def join(self, userns: int) -> int:
        """A descriptor of a new network namespace that belongs to an existing user namespace; the
        caller closes it. Raises RuntimeFailure."""
        (netns,) = await self._made(b"join", userns)
        return netns

    async def _made(self, request: bytes, *given: int) -> list[int]:
        async with self._turn:
            for _ in range(_ATTEMPTS):
                answer, made = await self._ask(request, *given)
                if made:
                    return made
                if answer:
                    break
                self._end()
        reason = answer.decode() or "the helper process ended"
        raise RuntimeFailure(
            f"cannot create a user namespace ({reason}); "
            "see /proc/sys/user/max_user_namespaces, or use --userns host"
        )

    async def _ask(self, request: bytes, *given: int) -> tuple[bytes, list[int]]:
        """The response and its descriptors; both empty when the helper has ended."""
        try:
            connection = self._started()
            socket.send_fds(connection, [request], given)
            await spawn.readable(connection.fileno())
            answer, made, _, _ = socket.recv_fds(connection, 256, 2)
        except asyncio.CancelledError:
            # Its response would be taken for that of the next request.
            self._end()
            raise
        except OSError:
            return b"", []
        return answer, made

    def _started(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(_COMMAND, stdin=theirs.fileno())
            self._socket = ours
        return self._socket

    def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._socket = self._process = None


def owner(netns: Path) -> int | None:
    """A descriptor of the user namespace that owns a network namespace; None when that is the
    agent's own, or when there is no such network namespace."""
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = fcntl.ioctl(descriptor, _NS_GET_USERNS)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if os.fstat(found).st_ino == os.stat(_OWN).st_ino:
        os.close(found)
        return None
    return found


def keep(namespace: int, path: Path) -> None:
    """Bind mount a namespace, so that it outlives its processes (as `ip netns`). Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)
    libc.mount(f"/proc/self/fd/{namespace}", path, flags=libc.MS_BIND)
