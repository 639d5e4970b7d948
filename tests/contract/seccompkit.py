# SPDX-License-Identifier: Apache-2.0
"""The seccomp filter of a process, read from the kernel and evaluated as the kernel does it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALLOW = 0x7FFF0000
ERRNO = 0x00050000
"""Actions (seccomp(2)); the low half of the second is the error."""
X32 = 0x40000000

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000


@dataclass(frozen=True, slots=True)
class Arch:
    """An architecture of a filter."""

    token: int
    """libseccomp's number."""
    audit: int
    """What the kernel tells a filter."""

    @property
    def arguments(self) -> int:
        """The bits of an argument that there are."""
        return (1 << 64) - 1 if self.token & 0x80000000 else (1 << 32) - 1


ARCHES = {
    "SCMP_ARCH_X86_64": Arch(0xC000003E, 0xC000003E),
    "SCMP_ARCH_X86": Arch(0x40000003, 0x40000003),
    "SCMP_ARCH_X32": Arch(0x4000003E, 0xC000003E),
    "SCMP_ARCH_AARCH64": Arch(0xC00000B7, 0xC00000B7),
    "SCMP_ARCH_ARM": Arch(0x40000028, 0x40000028),
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long,) * 2 + (ctypes.c_void_p,) * 2
_libc.ptrace.restype = ctypes.c_long
_seccomp = ctypes.CDLL("libseccomp.so.2")
_seccomp.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
_seccomp.seccomp_syscall_resolve_num_arch.argtypes = (ctypes.c_uint32, ctypes.c_int)


def read_filter(pid: int) -> list[tuple[int, int, int, int]]:
    """The instructions of the newest filter of a process: code, jt, jf, k."""
    _ptrace(_SEIZE, pid, 0, 0)
    try:
        _ptrace(_INTERRUPT, pid, 0, 0)
        os.waitpid(pid, _WALL)
        count = _ptrace(_GET_FILTER, pid, 0, 0)
        program = ctypes.create_string_buffer(8 * count)
        _ptrace(_GET_FILTER, pid, 0, ctypes.addressof(program))
    finally:
        _ptrace(_DETACH, pid, 0, 0)
    return list(struct.iter_unpack("=HBBI", program.raw))


def _ptrace(request: int, pid: int, address: int, data: int) -> int:
    result: int = _libc.ptrace(request, pid, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def evaluate(
    program: Sequence[tuple[int, int, int, int]], audit: int, number: int, args: Sequence[int]
) -> int:
    """What the filter returns for a system call (linux/filter.h, the part that seccomp takes)."""
    data = struct.pack("=iIQ6Q", struct.unpack("=i", struct.pack("=I", number))[0], audit, 0, *args)
    words = struct.unpack("=16I", data)
    at = register = other = 0
    memory = [0] * 16
    while True:
        code, jt, jf, k = program[at]
        at += 1
        match code:
            case 0x20:
                register = words[k // 4]
            case 0x00:
                register = k
            case 0x01:
                other = k
            case 0x02:
                memory[k] = register
            case 0x60:
                register = memory[k]
            case 0x07:
                other = register
            case 0x87:
                register = other
            case 0x54:
                register &= k
            case 0x05:
                at += k
            case 0x15:
                at += jt if register == k else jf
            case 0x25:
                at += jt if register > k else jf
            case 0x35:
                at += jt if register >= k else jf
            case 0x45:
                at += jt if register & k else jf
            case 0x06:
                return k
            case _:
                raise AssertionError(f"instruction {code:#x} is not known here")


def name_of(token: int, number: int) -> str:
    """A system call's name; empty if libseccomp knows none."""
    found = _seccomp.seccomp_syscall_resolve_num_arch(token, number)
    if not found:
        return ""
    try:
        return ctypes.string_at(found).decode()
    finally:
        _libc.free(ctypes.c_void_p(found))


def expected(profile: Mapping[str, Any], name: str, args: Sequence[int]) -> int:
    """What a profile (runtime-spec's `linux.seccomp`) says of a call."""
    refused = None
    for rule in profile["syscalls"]:
        if name not in rule["names"] or not all(_holds(arg, args) for arg in rule.get("args", ())):
            continue
        if rule["action"] == "SCMP_ACT_ALLOW":
            return ALLOW
        refused = ERRNO | rule["errnoRet"]
    default: int = ERRNO | profile["defaultErrnoRet"]
    return default if refused is None else refused


def _holds(arg: Mapping[str, Any], args: Sequence[int]) -> bool:
    value = args[arg["index"]]
    match arg["op"]:
        case "SCMP_CMP_EQ":
            return bool(value == arg["value"])
        case "SCMP_CMP_MASKED_EQ":
            return bool(value & arg["value"] == arg["valueTwo"])
        case other:
            raise AssertionError(f"{other} is not known here")
