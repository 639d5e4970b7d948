"""CPU and I/O priority: what an agent was started with is not for what it starts.

Sources: sched(7), ioprio_set(2).
"""

from __future__ import annotations

import os

from orchestrator.linux import libc

_IOPRIO_GET = {"x86_64": 252, "aarch64": 31, "riscv64": 31, "armv7l": 315, "i686": 290}
"""System call numbers; the C library has no wrapper."""
_PROCESS = 1
_CLASS_SHIFT = 13
_NONE, _BEST_EFFORT = 0, 2
_USUAL_LEVEL = 4

IO_PRIORITY = {"class": "IOPRIO_CLASS_BE", "priority": _USUAL_LEVEL}
"""The usual I/O priority, as the OCI's `process` has it."""


def has_usual_io(pid: int = 0) -> bool:
    """Whether a process has the usual I/O priority; 0: this one."""
    number = _IOPRIO_GET.get(os.uname().machine)
    if number is None:
        return True
    try:
        found = libc.syscall(number, _PROCESS, pid)
    except OSError:
        return True
    kind, level = found >> _CLASS_SHIFT, found & ((1 << _CLASS_SHIFT) - 1)
    return kind == _NONE or (kind == _BEST_EFFORT and level == _USUAL_LEVEL)


def is_usual() -> bool:
    """Whether this process has the usual priority and scheduling policy."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return nice == 0 and os.sched_getscheduler(0) == os.SCHED_OTHER and has_usual_io()


def usual() -> tuple[str, ...]:
    """A command that runs the one behind it with the usual priority and scheduling policy; empty
    where this process has them."""
    if is_usual():
        return ()
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return (
        *("chrt", "--other", "0"),
        *("nice", "-n", str(-nice)),
        *("ionice", "-t", "-c", "none"),
    )
