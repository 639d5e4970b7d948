# SPDX-License-Identifier: Apache-2.0
"""CPU and I/O priority: children are started with the default, not with the agent's.

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
_DEFAULT_LEVEL = 4

IO_PRIORITY = {"class": "IOPRIO_CLASS_BE", "priority": _DEFAULT_LEVEL}
"""The default I/O priority, in the form of the OCI runtime-spec's `process`."""


def has_default_io(pid: int = 0) -> bool:
    """Whether a process has the default I/O priority; 0: this one."""
    number = _IOPRIO_GET.get(os.uname().machine)
    if number is None:
        return True
    try:
        found = libc.syscall(number, _PROCESS, pid)
    except OSError:
        return True
    kind, level = found >> _CLASS_SHIFT, found & ((1 << _CLASS_SHIFT) - 1)
    return kind == _NONE or (kind == _BEST_EFFORT and level == _DEFAULT_LEVEL)


def is_default() -> bool:
    """Whether this process has the default priority and scheduling policy."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return nice == 0 and os.sched_getscheduler(0) == os.SCHED_OTHER and has_default_io()


def with_default_priority() -> tuple[str, ...]:
    """A command prefix that runs the rest with the default priority and scheduling policy; empty
    where this process has them."""
    if is_default():
        return ()
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    return (
        *("chrt", "--other", "0"),
        *("nice", "-n", str(-nice)),
        *("ionice", "-t", "-c", "none"),
    )
