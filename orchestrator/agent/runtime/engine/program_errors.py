# SPDX-License-Identifier: Apache-2.0
"""Error messages for programs that cannot be executed, detected before or reported by crun.

For a program that it cannot execute the kernel reports only an error number, after the container is
created. So the program's header is read first, as the kernel does: ELF (elf(5)) or `#!`
(execve(2)).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.linux.openat import read_in_root
from orchestrator.model.states import CANNOT_INVOKE, NOT_FOUND

_HEAD = 4096
"""Bytes of a program that are read: the kernel, too, requires the program headers early."""
_PT_INTERP = 3

_ELF_MACHINES = {
    "x86_64": {3, 62},
    "aarch64": {40, 183},
    "armv7l": {40},
    "ppc64le": {21},
    "s390x": {22},
    "riscv64": {243},
}
"""`e_machine` (elf(5)) of the programs that a machine of this type runs."""
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
    """Reject a program that cannot be executed in the root of a container.

    `program` is looked up in the PATH of `env` as execvp(3) does. A program that is missing or not
    executable is left to the OCI runtime to report; so is any program on a host that runs foreign
    ones by binfmt_misc. Raises RuntimeFailure.
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
    """The message for a file in a format unknown to the kernel."""
    return (
        f"`{program}` is not a program for this node ({machine}): it is damaged, built for another "
        "architecture, or a script without `#!`"
    )


def no_interpreter(program: str) -> str:
    """The message for a program whose interpreter is missing."""
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
    """The dynamic loader that an ELF program names; empty when there is none, or it is beyond the
    part that was read."""
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


_MISSING = re.compile(
    r"executable file `(?P<a>[^`]*)` not found"
    r'|exec: "(?P<b>[^"]*)": (?:executable file not found|stat .*: no such file)'
)
_FORBIDDEN = re.compile(
    r"the path `(?P<a>[^`]*)` exists but it is not executable"
    r'|exec: "(?P<b>[^"]*)": permission denied'
)
_FOLDER = re.compile(
    r'the path `(?P<a>[^`]*)` is not a regular file|exec: "(?P<b>[^"]*)": is a dir'
)
_FORMAT = re.compile(r"`(?P<a>[^`]*)`: Exec format error|exec (?P<b>\S+): exec format error")
_INTERPRETER = re.compile(
    r"exec container process (?:\(missing dynamic library\?\) )?`(?P<a>[^`]*)`: No such file(?P<b>)"
)

_KNOWN: tuple[tuple[re.Pattern[str], int, Callable[[str], str]], ...] = (
    (_MISSING, NOT_FOUND, lambda program: f"the image has no program `{program}`"),
    (_FORBIDDEN, CANNOT_INVOKE, lambda program: f"`{program}` in the image is not executable"),
    (_FOLDER, CANNOT_INVOKE, lambda program: f"`{program}` in the image is not a program"),
    (
        _FORMAT,
        CANNOT_INVOKE,
        lambda program: no_program(program, os.uname().machine),
    ),
    (
        _INTERPRETER,
        NOT_FOUND,
        no_interpreter,
    ),
)


NO_MESSAGE = "the OCI runtime ended without an error message; was it killed?"


def known_failure(text: str) -> RuntimeFailure | None:
    """The failure with a line for the user and a shell's exit status, if `text` reports that a
    program cannot be run."""
    for pattern, exit_code, message in _KNOWN:
        if match := pattern.search(text):
            return RuntimeFailure(message(match["a"] or match["b"]), exit_code)
    return None


def failure(text: str, action: str) -> RuntimeFailure:
    """The failure that an OCI runtime's stderr reports; `action` is such as `created`."""
    if known := known_failure(text):
        return known
    first = next((line.strip() for line in text.splitlines() if line.strip()), NO_MESSAGE)
    return RuntimeFailure(f"the container could not be {action}: {first}")
