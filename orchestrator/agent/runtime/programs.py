"""Whether the kernel would execute a program: told before it is tried, in words for the user.

What the kernel says of one that it does not execute is a number, and comes when the container has
been made. Here its header is read as the kernel reads it: ELF (elf(5)) or `#!` (execve(2)).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.rootfs import read_in_root
from orchestrator.model.states import CANNOT_INVOKE, NOT_FOUND

_HEAD = 4096
"""Bytes of a program that are looked at: the kernel, too, wants the program headers early."""
_PT_INTERP = 3

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


def check_program(root: Path, program: str, env: Sequence[str], workdir: str, machine: str) -> None:
    """Refuse a program that cannot be executed in the root of a container.

    `program` is looked up in the PATH of `env` as execvp(3) does. What is not found, or not to be
    executed by its mode, is left to the OCI runtime to judge; so is everything on a host that runs
    foreign programs by binfmt_misc. Raises RuntimeFailure.
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
        heads = (read_in_root(root_fd, place, _HEAD, executable=True) for place in places)
        head = next((found for found in heads if found is not None), None)
        if head is None:
            return
        if head.startswith(b"\x7fELF") and len(head) >= 20:
            _check_machine(program, head, native, machine)
            needed = _loader(head)
        elif head.startswith(b"#!"):
            needed = next(iter(head[2:].split(b"\n", 1)[0].split()), b"").decode(errors="replace")
        else:
            raise RuntimeFailure(no_program(program, machine), CANNOT_INVOKE)
        if needed.startswith("/") and read_in_root(root_fd, needed, 1) is None:
            raise RuntimeFailure(f"{no_interpreter(program)}: `{needed}`", NOT_FOUND)
    finally:
        os.close(root_fd)


def no_program(program: str, machine: str) -> str:
    """What is said of a file of which the kernel does not know the format."""
    return (
        f"`{program}` is no program for this node ({machine}): it is damaged, made for another "
        "architecture, or a script without `#!`"
    )


def no_interpreter(program: str) -> str:
    """What is said of a program whose interpreter is missing."""
    return f"`{program}` needs an interpreter or loader that the image does not have"


def _check_machine(program: str, head: bytes, native: set[int], machine: str) -> None:
    kind = _number(head, 18, 2)
    if kind not in native:
        made_for = _MACHINE_NAMES.get(kind, f"machine type {kind}")
        raise RuntimeFailure(
            f"the image is for another architecture: `{program}` is made for {made_for}, "
            f"this node is {machine}",
            CANNOT_INVOKE,
        )


def _loader(head: bytes) -> str:
    """The dynamic loader that an ELF program names; empty when there is none, or it is not
    within the head."""
    wide = head[4] == 2
    table = _number(head, 32, 8) if wide else _number(head, 28, 4)
    size, count = _number(head, 54 if wide else 42, 2), _number(head, 56 if wide else 44, 2)
    for at in range(table, min(table + size * count, len(head)), size or 1):
        if _number(head, at, 4) == _PT_INTERP:
            begin = _number(head, at + 8, 8) if wide else _number(head, at + 4, 4)
            end = head.find(b"\0", begin)
            return head[begin:end].decode(errors="replace") if 0 < begin < end else ""
    return ""


def _number(head: bytes, at: int, size: int) -> int:
    return int.from_bytes(head[at : at + size], "little" if head[5] == 1 else "big")


def _emulates() -> bool:
    try:
        return bool(set(os.listdir("/proc/sys/fs/binfmt_misc")) - {"register", "status"})
    except OSError:
        return False
