# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin that takes away from Orc what only Linux, or only Unix, has.

Python's own libraries keep it, since they would do without it elsewhere: what is tested is that no
module of the client imports or calls it.
"""

from __future__ import annotations

import builtins
import os
import select
import signal
from typing import Any

MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
_CALLS = (
    *("eventfd", "eventfd_read", "eventfd_write", "memfd_create", "pidfd_open", "setns", "unshare"),
    *("getxattr", "listxattr", "setxattr", "fchmod", "mkfifo", "sched_getaffinity", "uname"),
    *("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_TMPFILE", "O_PATH"),
)


class _Without:
    """A module as the client sees it."""

    def __init__(self, module: Any, names: tuple[str, ...]) -> None:
        self._module, self._names = module, names

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            raise AttributeError(f"{self._module.__name__}.{name} is not there on this platform")
        return getattr(self._module, name)


_ELSEWHERE = {
    "os": _Without(os, _CALLS),
    "select": _Without(select, ("poll", "epoll")),
}
_import = builtins.__import__


def _guarded(
    name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
) -> Any:
    if str((globals or {}).get("__name__")).startswith("orchestrator."):
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"no module {name} on this platform", name=name)
        if name in _ELSEWHERE:
            return _ELSEWHERE[name]
    return _import(name, globals, locals, fromlist, level)


builtins.__import__ = _guarded
for _name in ("SIGWINCH", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE"):
    delattr(signal, _name)
