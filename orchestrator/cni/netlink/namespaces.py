# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces: create, enter and remove them without fork, single-threaded.

A namespace exists while a process, a descriptor or a mount refers to it. Ours are bind-mounted on
an ordinary file, as `ip netns` does it, so they outlive the process that created them.

pyroute2's `netns.create` is not used: it forks, which takes 27 ms at best, for each container; this
takes 1 ms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL, ENOENT
from pathlib import Path

from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netlink.links import set_loopback_up
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.linux import libc

OWN_NAMESPACE = "/proc/thread-self/ns/net"
ORPHAN_RETRIES = Path("/proc/sys/net/ipv4/tcp_orphan_retries")


@contextmanager
def _returning() -> Iterator[None]:
    """Return to the current namespace at the end."""
    original = os.open(OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            libc.setns(original, libc.CLONE_NEWNET)
        finally:
            os.close(original)


@contextmanager
def opened(path: Path | str) -> Iterator[int]:
    """A descriptor of the namespace at `path`; raises `CniError` INVALID_NETNS."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CniError(
            Code.INVALID_NETNS, f"network namespace {path} cannot be opened: {error.strerror}"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def same(one: int, other: int) -> bool:
    """Whether two descriptors are of one namespace."""
    return os.path.samestat(os.fstat(one), os.fstat(other))


def is_own(namespace: int) -> bool:
    """Whether a descriptor is of the namespace that this process is in."""
    return os.path.samestat(os.fstat(namespace), os.stat(OWN_NAMESPACE))


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Enter another namespace (a descriptor); sockets opened meanwhile stay there."""
    with _returning():
        try:
            libc.setns(namespace, libc.CLONE_NEWNET)
        except OSError as error:
            raise CniError(
                Code.INVALID_NETNS, f"not a network namespace: {error.strerror}"
            ) from error
        yield


@contextmanager
def route_socket(namespace: int, groups: int = 0) -> Iterator[RouteSocket]:
    """A netlink socket of another namespace, which is entered only to open it."""
    with inside(namespace):
        sock = RouteSocket(groups)
    with sock:
        yield sock


def limit_orphan_retries(namespace: int) -> None:
    """Limit retries of orphaned TCP connections in a namespace (tcp_orphan_retries).

    By default the kernel retransmits unsent data of ended processes for a minute or two, and keeps
    the namespace and its devices meanwhile.
    """
    with inside(namespace), suppress(OSError):
        ORPHAN_RETRIES.write_text("1")


def exists(path: Path | str) -> bool:
    """Whether `path` is a file with a namespace mounted on it."""
    try:
        return os.stat(path).st_dev == os.stat(OWN_NAMESPACE).st_dev
    except FileNotFoundError:
        return False


def ensure(path: Path) -> bool:
    """Create the namespace at `path`, loopback up, unless it exists; return whether it did."""
    if exists(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o444)
    with _returning():
        libc.unshare(libc.CLONE_NEWNET)
        with RouteSocket() as sock:
            set_loopback_up(sock)
        libc.mount(OWN_NAMESPACE, path, flags=libc.MS_BIND)
    return True


def remove(path: Path) -> None:
    """Unmount and unlink the namespace at `path`, if it exists."""
    while True:
        try:
            libc.umount(path, libc.MNT_DETACH)
        except OSError as error:
            if error.errno in (EINVAL, ENOENT):
                break
            raise
    with suppress(FileNotFoundError):
        path.unlink()
