# SPDX-License-Identifier: Apache-2.0
"""Agents that die of SIGKILL just before a given step: `python mortalagent.py FOLDER ARGUMENT…`.

For each line on its input this program starts an agent, by a fork, since most of what an agent's
start takes is imports; it prints the agent's exit status when that has ended.

A *step* is whatever changes something outside of the process: a file, a folder, a mount, a
process, the state file, a request to a helper. Python tells most of them itself (audit hooks, PEP
578); the few that go through libc, SQLite and sockets are wrapped here. So no step can be
forgotten, and the agent has nothing for it in its own code.

`FOLDER/steps` gets the steps, a line each, once an order has named a task. The agent dies before
the step in the first line of `FOLDER/death`, if any; that is read at each such order, and when it
is new, calls are counted from 1 again.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PATHS = {
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"),
    *("os.chown", "os.truncate", "open"),
}
_TASK = re.compile(r"\bwalk-\d+")
_VARIABLE = (
    (re.compile(r"/(\d+|[0-9a-f]{32})(?=/|$)"), "/N"),
    (re.compile(r"/(hosts|hostname|resolv\.conf)$"), "/ETC"),
    # What is removed with its folder, which is named relative to that.
    (re.compile(r"^(os\.rmdir|os\.remove) [^/]+$"), r"\1 OF FOLDER"),
)
"""What of a step's words is not the same each time, or makes no difference."""


class Death:
    """Counts steps, and ends this process before the one that is its turn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._order = self._last = self._task = ""
        self._calls: Counter[str] = Counter()
        self._armed = self._within = False

    def arm(self, task: str) -> None:
        """A task is ordered: from now on its steps count. Those of one before, which the agent may
        still be about to forget, do not."""
        self._armed = False
        self._task = task
        order = (self._folder / "death").read_text()
        if order != self._order:
            self._order, self._calls = order, Counter()
            self._last = order.splitlines()[0]
        self._armed = True

    def step(self, words: str) -> None:
        """Something is about to be done."""
        if not self._armed or self.foreign(words):
            return
        words = _TASK.sub("TASK", words).replace(str(self._folder), "")
        for varies, same in _VARIABLE:
            words = varies.sub(same, words)
        os.write(self._steps, f"{words}\n".encode())
        if words == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def foreign(self, text: object) -> bool:
        """Whether this names another task than the one that was ordered last."""
        named = _TASK.search(text) if isinstance(text, str) else None
        return named is not None and named[0] != self._task

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What Python tells of this process (sys.addaudithook)."""
        if self._within or not self._armed:
            return
        self._within = True
        try:
            if event == "subprocess.Popen":
                argv = [os.fsdecode(word) for word in arguments[1]]
                verbs = [w for w in argv[1:] if re.fullmatch("create|start|state|delete", w)]
                self.step(" ".join(["exec", os.path.basename(argv[0]), *verbs]))
            elif (
                event in _PATHS
                and isinstance(arguments[0], str | bytes | os.PathLike)
                and (event != "open" or (arguments[2] or 0) & _WRITES)
            ):
                self.step(f"{event} {os.fsdecode(arguments[0])}")
        finally:
            self._within = False

    def wrap(self, owner: Any, name: str) -> None:
        """Make each call of `owner.name` a step."""
        call: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(call)
        def stepped(*arguments: Any, **named: Any) -> Any:
            if any(map(self.foreign, arguments)):
                return call(*arguments, **named)
            # A file has one meaning; a call has many, so each of them counts.
            self._calls[name] += 1
            self.step(f"{name} {self._calls[name]}")
            return call(*arguments, **named)

        setattr(owner, name, stepped)


def _agent(folder: Path, arguments: list[str]) -> None:
    from orchestrator.agent.command import agent
    from orchestrator.agent.network.helper_process import HelperProcess
    from orchestrator.agent.runtime.isolation import rootfs, userns
    from orchestrator.agent.statedb import StateDb
    from orchestrator.agent.tasks.worker import Worker
    from orchestrator.linux import libc, processes

    death = Death(folder)
    for owner, names in (
        (StateDb, ("put_status", "put_renewed", "put_released", "forget")),
        (HelperProcess, ("request",)),
        (userns.NamespaceMaker, ("make",)),
        (libc, ("mount",)),
        (rootfs, ("unmount",)),
        (processes.ProcessIdentity, ("send",)),
    ):
        for name in names:
            death.wrap(owner, name)
    apply = Worker.apply

    def applied(self: Worker, tasks: Any, *rest: Any, **named: Any) -> None:
        if tasks:
            death.arm(tasks[-1].task.id)
        apply(self, tasks, *rest, **named)

    Worker.apply = applied  # type: ignore[method-assign]
    sys.addaudithook(death.hear)
    agent(arguments)


def main(folder: Path, arguments: list[str]) -> None:
    import orchestrator.agent.command
    import orchestrator.agent.daemon  # noqa: F401 - imported once for all

    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            _agent(folder, arguments)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
