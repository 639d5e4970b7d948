"""Reading files inside a container's root: links in an image must never lead out of it."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.model.states import CANNOT_INVOKE

_SYS_OPENAT2 = 437
"""The same number on every architecture since Linux 5.6."""
_RESOLVE_IN_ROOT = 0x10
_ATTEMPTS = 8
_LARGEST = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_in_root(root_fd: int, path: str) -> int:
    """Open a file for reading as if `root_fd` were `/` (openat2(2)). Raises OSError."""
    how = _OpenHow(os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE_IN_ROOT)
    for _ in range(_ATTEMPTS):
        fd: int = _libc.syscall(
            _SYS_OPENAT2, root_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # Something was renamed on the host meanwhile, and the kernel is not sure.
        if code != errno.EAGAIN:
            break
    raise OSError(code, os.strerror(code), path)


def read_in_root(root_fd: int, path: str, limit: int = _LARGEST) -> bytes | None:
    """The first `limit` bytes of a regular file; None when it is not there or not a file."""
    try:
        fd = open_in_root(root_fd, path)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with open(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What the configuration needs to know of the files in an image."""

    passwd: str = ""
    group: str = ""


def read_image_files(root: Path) -> ImageFiles:
    """Read the user tables of a mounted root."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        group = read_in_root(root_fd, "etc/group") or b""
        passwd = read_in_root(root_fd, "etc/passwd") or b""
    finally:
        os.close(root_fd)
    return ImageFiles(passwd.decode(errors="replace"), group.decode(errors="replace"))


_ELF_MACHINES = {
    "x86_64": {3, 62},
    "aarch64": {40, 183},
    "armv7l": {40},
    "ppc64le": {21},
    "s390x": {22},
    "riscv64": {243},
}
"""`e_machine` (elf(5)) of the programs that a machine of this kind runs."""
_MACHINE_NAMES = {
    3: "x86",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
}


def check_architecture(
    root: Path, program: str, env: Sequence[str], workdir: str, machine: str
) -> None:
    """Refuse a program that is made for another kind of machine, before it is run.

    `program` is looked up in the PATH of `env` as execvp(3) does. Anything that is not found, or
    not ELF, is left to the OCI runtime to judge; so is everything on a host that runs foreign
    programs by binfmt_misc. Raises RuntimeFailure.
    """
    native = _ELF_MACHINES.get(machine)
    if native is None or _emulates():
        return
    if "/" in program:
        places = [os.path.join(workdir, program)]
    else:
        path = next((entry[5:] for entry in env if entry.startswith("PATH=")), "")
        places = [f"{folder or workdir}/{program}" for folder in path.split(":")]
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        header = next(
            (found for place in places if (found := read_in_root(root_fd, place, 20)) is not None),
            b"",
        )
    finally:
        os.close(root_fd)
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return
    kind = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    if kind not in native:
        made_for = _MACHINE_NAMES.get(kind, f"machine type {kind}")
        raise RuntimeFailure(
            f"the image is for another architecture: `{program}` is made for {made_for}, "
            f"this node is {machine}",
            CANNOT_INVOKE,
        )


def _emulates() -> bool:
    try:
        return bool(set(os.listdir("/proc/sys/fs/binfmt_misc")) - {"register", "status"})
    except OSError:
        return False
