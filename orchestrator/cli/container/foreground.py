# SPDX-License-Identifier: Apache-2.0
"""A container from its start to its end: watched, or attached to in the foreground.

The client attaches before the program starts, so that no byte is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from orchestrator.cli.app.errors import CliError, ManagerLost, Refused
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.rpc.resumption import resumed
from orchestrator.model.states import CANNOT_INVOKE, NOT_FOUND, TaskState, is_terminal
from orchestrator.pb import containers_pb2, types_pb2


class NotRun(CliError):
    """`orc run` could not run the container: Orc failed, not the program. Exit status 125, as
    in Docker."""

    exit_code = 125


class CannotInvoke(NotRun):
    """The program is there and cannot be run. Exit status 126."""

    exit_code = CANNOT_INVOKE


class NotFound(NotRun):
    """The program is not in the image. Exit status 127."""

    exit_code = NOT_FOUND


_KINDS: dict[int, type[NotRun]] = {CANNOT_INVOKE: CannotInvoke, NOT_FOUND: NotFound}


@dataclass(frozen=True, slots=True)
class ContainerState:
    """The state of a container at one moment."""

    task: Any
    """The Task as a message: converting it would import the model."""
    removed: bool
    node: str
    """Hostname."""
    node_down: bool

    @property
    def ended(self) -> bool:
        """Whether the wanted run has ended, or will never start."""
        status = self.task.status
        return self.removed or (is_terminal(status.state) and status.run >= self.task.run)

    @property
    def begun(self) -> bool:
        """Whether the wanted run has started, or has already ended."""
        status = self.task.status
        running = status.state == TaskState.RUNNING and status.run >= self.task.run
        return running or self.ended


class ContainerWatch:
    """Streams every state of one container. A context manager."""

    def __init__(self, client: Client, container: str, quiet: bool = False) -> None:
        """`quiet`: do not print why it waits."""
        self._quiet = quiet
        request = containers_pb2.ContainerRequest(container=container)
        self._request = request
        self._rows: Iterator[Any] = resumed(
            client, lambda: client.stream("Containers.WatchContainer", request)
        )
        self._said: set[str] = set()
        self.last = self._next()

    def __enter__(self) -> ContainerWatch:
        return self

    def __exit__(self, *_: object) -> None:
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()

    def until(self, done: Callable[[ContainerState], bool]) -> ContainerState:
        """Wait until `done`; each reason for waiting is printed once on stderr."""
        while not done(self.last):
            if self.last.removed:
                raise CliError(f"container '{_name(self.last.task)}' was removed")
            self._say(self.last)
            self.last = self._next()
        return self.last

    def _next(self) -> ContainerState:
        row = next(self._rows, None)
        if row is None:
            raise CliError("the manager ended the call; try again")
        # By its id it is found after its removal, too.
        self._request.container = row.task.id
        return ContainerState(
            row.task,
            row.removed,
            row.node.description.hostname,
            row.node.state == types_pb2.NODE_DOWN,
        )

    def _say(self, seen: ContainerState) -> None:
        task = seen.task
        text = ""
        state = task.status.state
        if seen.node_down and state != TaskState.PENDING:
            text = f"its node {seen.node} is down"
        elif state == TaskState.PREPARING or (state == TaskState.PENDING and not task.not_before):
            text = task.status.message
        if text and text not in self._said and not self._quiet:
            self._said.add(text)
            waits = "" if text.startswith("waits") else "waits: "
            click.echo(f"{_name(task)} {waits}{text}", err=True)


def _name(task: Any) -> str:
    return task.container_name or f"{task.service_name}.{task.slot}"


def failure(seen: ContainerState) -> NotRun | None:
    """Why a run ended without having started; None if it started."""
    task, status = seen.task, seen.task.status
    if not seen.ended or status.started_at or not is_terminal(status.state):
        return None
    if status.state == TaskState.SHUTDOWN:
        return NotRun(f"container '{_name(task)}' was stopped before it started")
    where = f" (on node {seen.node})" if seen.node else ""
    kind = _KINDS.get(status.exit_code, NotRun)
    return kind(f"container '{_name(task)}': {status.message}{where}")


def await_removal(client: Client, task: Any) -> None:
    """Wait until a container whose removal was ordered is gone."""
    try:
        with ContainerWatch(client, task.id) as watch:
            watch.until(lambda seen: seen.removed)
    except CliError as error:
        # It was removed before the watch began.
        if "no container" not in error.format_message():
            raise


def foreground(
    client: Client, container: str, *, stdin: bool, tty: bool, keys: bytes, sig_proxy: bool,
    quiet: bool = False, goes: bool = False,
) -> int:  # fmt: skip
    """Attach to a created container, start it, and return its exit status; a running one is only
    attached to. `quiet`: do not print why it waits. `goes`: it is removed after its exit, which is
    waited for. Raises CliError."""
    from orchestrator.cli.container.interactive_session import Session
    from orchestrator.pb import interact_pb2

    with ContainerWatch(client, container, quiet) as watch:
        if problem := failure(watch.until(is_ready)):
            if goes:
                watch.until(lambda seen: seen.removed)
            raise problem

        started = False

        def start() -> None:
            nonlocal started
            request = containers_pb2.ContainerRequest(container=container)
            client.call("Containers.StartContainer", request)
            started = True

        session = Session(
            client,
            interact_pb2.AttachRequest(container=container, stdin=stdin),
            stdin=stdin,
            keys=keys,
            sig_proxy=sig_proxy and not tty,
            attached=start,
        )
        try:
            status = session.run()
        except Refused:
            if not session.was_lost:
                raise
            # It ended before it could be attached to again.
            status = watch.until(lambda seen: seen.ended).task.status.exit_code
        except ManagerLost as lost:
            if not started:
                raise
            name = watch.last.task.container_name
            way = f"'orc attach {name}' attaches to the container again"
            raise ManagerLost(f"{lost.message} ({way})") from None
        if not session.detached and goes:
            watch.until(lambda seen: seen.removed)
    return status


def is_ready(seen: ContainerState) -> bool:
    """Whether the wanted run is ready to start, or further."""
    status = seen.task.status
    return seen.removed or (status.state >= TaskState.READY and status.run >= seen.task.run)
