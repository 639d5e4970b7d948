# SPDX-License-Identifier: Apache-2.0
"""Runs lifecycle hooks: programs in a running container that the agent waits for.

If the agent ends during a hook, the next agent kills the hook's process and runs it again from the
beginning. So a hook may run more than once, but never concurrently with itself.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io import execs
from orchestrator.agent.runtime.io.execs import ExecProgram, ExecSpec
from orchestrator.agent.tasks.backends import ContainerEnding
from orchestrator.linux import spawn
from orchestrator.linux.processes import ProcessIdentity
from orchestrator.model.hooks import Hook

_TAIL = 4096
"""Bytes at the end of a hook's streams that are searched for the last line."""
_LINE_LIMIT = 300
"""Characters of that line that are shown."""
_KILLED = 1.0
"""Seconds until a killed program must have ended."""


class Hooks:
    """Runs hooks in the containers of a node."""

    def __init__(self, access: Callable[[str], ContainerHandle]) -> None:
        self._access = access

    async def run(self, container_id: str, hook: Hook) -> str:
        """Run a hook to its end; on cancellation its program is killed. Returns why it failed, in
        one line; empty: it succeeded.

        Raises ContainerEnding, and OSError where the agent itself lacks what it takes.
        """
        access = self._access(container_id)
        spec = ExecSpec(
            hook.command,
            env=hook.env,
            user=hook.user,
            workdir=hook.workdir,
            privileged=hook.privileged,
        )
        try:
            await _kill_earlier(access)
            program = await execs.start(access, spec)
        except RuntimeFailure as failure:
            if _is_ending(access):
                raise ContainerEnding from None
            return str(failure)
        with _recorded(access, program):
            try:
                line = await _last_line(program)
                status = await program.wait()
            except BaseException:
                await asyncio.shield(program.end())
                raise
            finally:
                program.close()
        if status == 0:
            return ""
        # The kernel kills what runs in a PID namespace before its first process is a zombie.
        if _is_ending(access):
            raise ContainerEnding
        return f"exit status {status}: {line}" if line else f"exit status {status}"


def _is_ending(access: ContainerHandle) -> bool:
    process = access.process()
    return process is None or process.exiting()


def _record(access: ContainerHandle) -> Path:
    return access.bundle.run / "hook"


@contextmanager
def _recorded(access: ContainerHandle, program: ExecProgram) -> Iterator[None]:
    """Note which program runs, for the next agent to find."""
    path = _record(access)
    if (identity := program.identity) is not None:
        path.write_text(json.dumps([identity.pid, identity.start]))
    yield
    # Not if the agent ends: the next agent must find a program that hangs in the kernel.
    path.unlink(missing_ok=True)


async def _kill_earlier(access: ContainerHandle) -> None:
    """Kill the hook that an earlier agent left running. Raises RuntimeFailure if it cannot be."""
    try:
        pid, start = json.loads(_record(access).read_text())
    except (FileNotFoundError, ValueError):
        return
    earlier = ProcessIdentity(pid, start)
    if (fd := earlier.open()) is None:
        return
    with spawn.descriptors() as owned:
        owned.keep(fd)
        earlier.send(signal.SIGKILL)
        try:
            async with asyncio.timeout(_KILLED):
                await spawn.readable(fd)
        except TimeoutError:
            raise RuntimeFailure(
                f"an earlier run of it hangs in the kernel (process {pid})"
            ) from None


async def _last_line(program: ExecProgram) -> str:
    """The last line that it prints, on stderr if there is one; all of its output is read."""
    tails = {False: b"", True: b""}
    while (chunk := await program.read()) is not None:
        stderr, data = chunk
        tails[stderr] = (tails[stderr] + data)[-_TAIL:]
    lines = (tails[True].strip() or tails[False].strip()).decode(errors="replace").splitlines()
    line = " ".join(lines[-1].split()) if lines else ""
    return line if len(line) <= _LINE_LIMIT else line[: _LINE_LIMIT - 1] + "…"
