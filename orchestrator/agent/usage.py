"""`top` and `stats`: the processes of a container and what containers use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from orchestrator.agent.runner import TaskRunner
from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.resources.stats import StatsReader, node_memory
from orchestrator.model.states import TaskState
from orchestrator.pb import dispatch_pb2, interact_pb2

INTERVAL = 1.0
"""Seconds between two looks at a container's figures."""
_DEFAULT_OPTIONS = ("-ef",)


class Usage:
    """What this node's containers do and use, for whoever asks."""

    def __init__(
        self, runners: Mapping[str, TaskRunner], access: Callable[[str], ContainerHandle]
    ) -> None:
        self._runners = runners
        self._access = access
        self._memory = node_memory()

    async def top(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send what ps(1) says of a container's processes. Raises RuntimeFailure."""
        access = self._access(order.top.container)
        access.running()
        options = tuple(order.top.ps_options) or _DEFAULT_OPTIONS
        try:
            process = await asyncio.create_subprocess_exec(
                # All of the node's, for these may have any user; `pick` leaves the container's.
                *("ps", *options, "-A"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            raise RuntimeFailure("its node has no program `ps`; install procps there") from None
        try:
            output, said = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await asyncio.shield(process.wait())
            raise
        if process.returncode:
            raise RuntimeFailure(_first_line(said) or f"ps ended with status {process.returncode}")
        reply = pick(output.decode(errors="replace"), set(access.pids()))
        await call.write(dispatch_pb2.Frame(top=reply))
        return dispatch_pb2.TunnelResult()

    async def stats(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Send the figures of some containers, or of all that run, once a second until hung up."""
        wanted = frozenset(order.stats.containers)
        loop = asyncio.get_running_loop()
        due = loop.time()
        files: dict[tuple[str, int], StatsReader] = {}
        while True:
            rows = interact_pb2.NodeStats(containers=self._figures(wanted, files))
            await call.write(dispatch_pb2.Frame(stats=rows))
            # Where nobody takes them, none are collected to be sent later.
            due = max(due + INTERVAL, loop.time())
            await asyncio.sleep(due - loop.time())

    def _figures(
        self, wanted: frozenset[str], files: dict[tuple[str, int], StatsReader]
    ) -> Iterator[interact_pb2.ContainerStats]:
        """The figures of what runs. `files` are those of containers that were looked at before,
        by id and process."""
        known = dict(files)
        files.clear()
        for task_id in wanted or list(self._runners):
            runner = self._runners.get(task_id)
            if runner is None or runner.status.state is not TaskState.RUNNING:
                continue
            pid = runner.status.pid
            found = known.get((task_id, pid))
            if found is None:
                found = StatsReader(self._access(task_id).cgroups, task_id)
            files[task_id, pid] = found
            at = time.monotonic()
            figures = found.read(pid)
            yield interact_pb2.ContainerStats(
                task_id=task_id,
                name=runner.task.name,
                at=at,
                cpu=figures.cpu,
                memory=figures.memory,
                memory_limit=figures.memory_limit or self._memory,
                pids=figures.pids,
                pids_limit=figures.pids_limit,
                net_received=figures.net_received,
                net_sent=figures.net_sent,
                block_read=figures.block_read,
                block_written=figures.block_written,
            )


def pick(output: str, pids: set[int]) -> interact_pb2.TopReply:
    """The rows of some processes in what ps(1) prints, by its column PID.

    Raises RuntimeFailure when it prints no such column.
    """
    heading, *lines = output.splitlines() or [""]
    titles = heading.split()
    if "PID" not in titles:
        raise RuntimeFailure("with these options ps prints no column PID; add it")
    column = titles.index("PID")
    rows = []
    for line in lines:
        # The last column is the command, spaces and all.
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            rows.append(interact_pb2.ProcessRow(fields=fields))
    return interact_pb2.TopReply(titles=titles, processes=rows)


def _first_line(text: bytes) -> str:
    return next(iter(text.decode(errors="replace").strip().splitlines()), "")
