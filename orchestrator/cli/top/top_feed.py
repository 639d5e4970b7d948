# SPDX-License-Identifier: Apache-2.0
"""The data of `orc top`: the latest results of two threads that poll a manager, and processes."""

from __future__ import annotations

import threading
import time
from typing import Any

from orchestrator.cli.app.command_groups import error_line
from orchestrator.cli.app.contexts import Context
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.cluster.node_rows import node_row
from orchestrator.cli.container.container_rows import container_row
from orchestrator.cli.output.listings import (
    Row,
)
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.service.service_rows import service_row
from orchestrator.cli.top.stats_command import samples
from orchestrator.cli.top.top_views import Figures, node_rows, service_rows, task_rows
from orchestrator.pb import containers_pb2, control_pb2


def processes(
    client: Client, container: str, ps_options: tuple[str, ...] = ()
) -> tuple[list[str], list[Row]]:
    """The columns of a container's processes, and a row for each."""
    from orchestrator.pb import interact_pb2

    reply = client.call(
        "Interact.Top", interact_pb2.TopRequest(container=container, ps_options=ps_options)
    )
    titles = list(reply.titles)
    return titles, [dict(zip(titles, each.fields, strict=False)) for each in reply.processes]


PERIOD = 1.0
"""Seconds between two polls."""


class Feed:
    """The latest figures. Its threads are daemon threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._changed = threading.Condition()
        self._used: list[Row] = []
        self._there: Any = ((), (), ())
        self._problem = ""
        self.version = 0
        """Incremented with each result."""

    def start(self) -> None:
        """Poll once, to fail early (CliError), then keep polling."""
        with Client(self._context) as client:
            self._take(_ask(client))
        for work in (self._look, self._measure):
            threading.Thread(target=self._forever, args=(work,), daemon=True).start()

    def figures(self) -> Figures:
        """The latest figures of everything."""
        with self._changed:
            (nodes, services, containers), used = self._there, self._used
            problem = self._problem
        tasks = task_rows(containers, used)
        return Figures(
            nodes=node_rows(nodes, used),
            services=service_rows(services, tasks),
            tasks=tasks,
            problem=problem,
        )

    def processes(self, container: str) -> tuple[list[str], list[Row]]:
        """The processes of a container. Raises CliError."""
        with Client(self._context) as client:
            return processes(client, container)

    def _forever(self, work: Any) -> None:
        while True:
            try:
                with Client(self._context) as client:
                    work(client)
            except CliError as error:
                with self._changed:
                    self._problem = error_line(error)
                    self.version += 1
            time.sleep(PERIOD)

    def _look(self, client: Client) -> None:
        while True:
            began = time.monotonic()
            self._take(_ask(client))
            # A large cluster is polled less often: at most a fifth of the time is spent in polls.
            time.sleep(max(PERIOD, 4 * (time.monotonic() - began)))

    def _measure(self, client: Client) -> None:
        for rows in samples(client, (), lambda notice: None):
            with self._changed:
                self._used = rows
                self.version += 1

    def _take(self, there: Any) -> None:
        with self._changed:
            self._there, self._problem = there, ""
            self.version += 1


def _ask(client: Client) -> Any:
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    request = containers_pb2.ListContainersRequest()
    containers = client.call("Containers.ListContainers", request).containers
    now = time.time()
    return (
        [node_row(each) for each in nodes],
        [service_row(each) for each in services],
        [container_row(each, now) for each in containers],
    )
