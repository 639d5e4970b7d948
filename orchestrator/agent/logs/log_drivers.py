# SPDX-License-Identifier: Apache-2.0
"""The logging drivers of one node."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from orchestrator.agent.logs import journald, syslog
from orchestrator.agent.logs.jsonfile import JsonFile
from orchestrator.agent.logs.log_reader import LogReader
from orchestrator.agent.logs.log_target import Container, Target, TargetError
from orchestrator.agent.logs.shipper import Shipper, ShippingState, Tally, read_state, write_state
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io.logfiles import LogLimits
from orchestrator.daemon.background import background
from orchestrator.linux.inotify import Watches
from orchestrator.linux.threads import KeyedThreads
from orchestrator.model.formats import log_options
from orchestrator.model.formats.log_options import JOURNALD, JSON_FILE, SYSLOG, Source
from orchestrator.model.specs import LogConfig
from orchestrator.model.tasks import Task
from orchestrator.model.units import parse_memory

log = logging.getLogger(__name__)

SENDING = (JSON_FILE, JOURNALD, SYSLOG)
"""Drivers that ship lines."""
_STATE = "state"


class LogDrivers:
    """Applies the node's default drivers, and ships the lines of containers; a context manager."""

    def __init__(
        self,
        root: Path,
        json_root: Path,
        default: LogConfig | None = None,
        *,
        node: str = "",
        limits: LogLimits | None = None,
        journal: Path = journald.SOCKET,
    ) -> None:
        """`root`: the folder of its records; `json_root`: of the json-file driver, a folder per
        task; `default`: the node's default driver; `node`: this node's hostname; `limits`: the
        default limits of logs; `journal`: journald's socket."""
        self._root = root
        self._json_root = json_root
        self._default = default or LogConfig()
        self._node = node
        self._limits = limits or LogLimits()
        self._journal = journal
        self._resolving = KeyedThreads("resolve")
        self._watches: Watches | None = None
        self.tallies: dict[str, Tally] = {driver: Tally() for driver in SENDING}

    def __enter__(self) -> Self:
        """Raises OSError."""
        self._watches = Watches().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._watches is not None:
            self._watches.__exit__()
            self._watches = None

    def config(self, task: Task) -> LogConfig:
        """The driver and options of a task's container, with the node's defaults; empty if neither
        names one. Raises RuntimeFailure."""
        asked = task.spec.container.logging
        if asked == self._default == LogConfig():
            return asked
        try:
            return log_options.effective(asked, self._default)
        except ValueError as error:
            raise RuntimeFailure(f"with this node's default logging driver: {error}") from error

    def prepare(self, task: Task, image_id: str) -> LogConfig:
        """Record the driver of a container that is about to be created; return its configuration.
        Raises RuntimeFailure for a driver that this node lacks."""
        config = self.config(task)
        if config.driver not in SENDING:
            return config
        try:
            if config.driver == JOURNALD:
                journald.check(self._journal)
            elif config.driver == SYSLOG:
                syslog.check(config.options.get("syslog-address", ""))
            path = self._path(task.id)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            known = read_state(path) or ShippingState(config)
            write_state(path, replace(known, config=config, image_id=image_id))
        except TargetError as error:
            raise RuntimeFailure(str(error)) from error
        except OSError as error:
            raise RuntimeFailure(
                f"logging driver {config.driver}: cannot record its position ({error.strerror})"
            ) from error
        return config

    def _path(self, task_id: str) -> Path:
        return self._root / task_id / _STATE

    def _may_send(self, task: Task) -> bool:
        try:
            return self.config(task).driver in SENDING or self._path(task.id).exists()
        except RuntimeFailure:
            return False

    @asynccontextmanager
    async def sending(
        self,
        task: Task,
        begun: Callable[[], Any],
        ended: Callable[[], bool],
        places: tuple[Path, ...],
    ) -> AsyncIterator[None]:
        """Ship the lines of a task's container, if its driver does so, during the block, and the
        remaining ones at its end. `begun` waits until the container was created; `ended`: whether
        it writes no more; `places`: the paths of its log, see `logfiles.read`."""
        if self._watches is None or not self._may_send(task):
            yield
            return
        found: list[Shipper] = []
        try:
            async with background(self._send(task, begun, ended, places, found)):
                yield
            await self._finish(task, ended, places, found)
        finally:
            for shipper in found:
                shipper.close()

    async def _send(
        self,
        task: Task,
        begun: Callable[[], Any],
        ended: Callable[[], bool],
        places: tuple[Path, ...],
        found: list[Shipper],
    ) -> None:
        await begun()
        with _guarded(task):
            if (shipper := self._shipper(task, ended, places)) is not None:
                found.append(shipper)
                await shipper.run()

    async def _finish(
        self,
        task: Task,
        ended: Callable[[], bool],
        places: tuple[Path, ...],
        found: list[Shipper],
    ) -> None:
        with _guarded(task):
            # A task whose end an earlier agent observed may be gone before `_send` begins.
            if not found and (shipper := self._shipper(task, ended, places)) is not None:
                found.append(shipper)
            for shipper in found:
                await shipper.finish()

    def _shipper(
        self, task: Task, ended: Callable[[], bool], places: tuple[Path, ...]
    ) -> Shipper | None:
        path = self._path(task.id)
        known = read_state(path)
        if known is None or known.config.driver not in SENDING or self._watches is None:
            return None
        config = known.config
        limits = LogLimits(*log_options.kept(config, self._limits.size, self._limits.files))
        buffer = config.options.get("max-buffer-size")
        return Shipper(
            task.id,
            LogReader(places, known.place),
            lambda: self._target(task, known, limits),
            known,
            path,
            buffer=parse_memory(buffer) if buffer else limits.size * limits.files,
            watches=self._watches,
            tally=self.tallies[config.driver],
            ended=ended,
        )

    def _target(self, task: Task, known: ShippingState, limits: LogLimits) -> Target:
        container = _container(task, known, self._node)
        options = known.config.options
        match known.config.driver:
            case log_options.JSON_FILE:
                return JsonFile(self.json_path(task.id), limits, container, known.target)
            case log_options.JOURNALD:
                return journald.Journald(container, self._journal)
            case _:
                return syslog.Syslog(container, options, self._resolving)

    def json_path(self, task_id: str) -> Path:
        """The newest file of the json-file driver for a task."""
        return self._json_root / task_id / f"{task_id}-json.log"

    def forget(self, task_id: str) -> None:
        """Remove the records and files of a task."""
        for root in (self._root, self._json_root):
            shutil.rmtree(root / task_id, ignore_errors=True)

    def retain(self, known: Collection[str]) -> None:
        """Remove the records and files of all other tasks."""
        for root in (self._root, self._json_root):
            if not root.exists():
                continue
            for folder in root.iterdir():
                if folder.name not in known:
                    self.forget(folder.name)


@contextmanager
def _guarded(task: Task) -> Iterator[None]:
    """Log errors instead of raising them: the container continues."""
    try:
        yield
    except Exception as error:
        log.error("log lines are no longer sent", extra={"task": task.id}, exc_info=error)


def _container(task: Task, known: ShippingState, node: str) -> Container:
    spec, options = task.spec.container, known.config.options
    source = Source(
        task.id,
        task.name,
        spec.image,
        known.image_id,
        node,
        " ".join((*spec.entrypoint, *spec.command)),
    )
    template = options.get("tag", "")
    env: Mapping[str, str] = dict(
        (key, value) for key, _, value in (entry.partition("=") for entry in spec.env)
    )
    return Container(
        source,
        log_options.tag(template, source),
        log_options.chosen(options, spec.labels, env),
        tagged=bool(template),
    )
