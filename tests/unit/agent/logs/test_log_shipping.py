# SPDX-License-Identifier: Apache-2.0
"""Logging drivers send each line of a container once, whatever happens to agent and target."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from logwriter import LogWriter

from orchestrator.agent.logs.log_drivers import LogDrivers
from orchestrator.agent.runtime.engine.bundle import ContainerHandle
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io.logfiles import LogLimits, LogRotation, rotated
from orchestrator.agent.telemetry.agent_metrics import AgentCollector, Holdings, MetricSources
from orchestrator.model.specs import ContainerSpec, LogConfig, TaskSpec
from orchestrator.model.tasks import Task


class Node:
    """A node with one container whose lines are sent."""

    def __init__(self, folder: Path, config: LogConfig, limits: LogLimits) -> None:
        self.folder = folder
        self.limits = limits
        self.default = LogConfig()
        self.writer = LogWriter(folder / "container" / "log")
        self.rotation = LogRotation(limits)
        self.ended = asyncio.Event()
        container = ContainerSpec(
            image="web:1",
            labels={"team": "a", "other": "x"},
            env=("ZONE=b", "SECRET=s"),
            logging=config,
        )
        self.task = Task(
            id="t" * 25, service_id="s", service_name="web", slot=1, spec=TaskSpec(container)
        )

    @property
    def drivers(self) -> LogDrivers:
        return LogDrivers(
            self.folder / "state",
            self.folder / "json",
            self.default,
            node="node-1",
            limits=self.limits,
            journal=self.folder / "journal",
        )

    @asynccontextmanager
    async def agent(self, *, prepare: bool = True) -> AsyncIterator[LogDrivers]:
        """An agent for as long as the body runs; the container outlives it."""
        drivers = self.drivers
        with drivers:
            if prepare:
                drivers.prepare(self.task, "sha256:abc")
            begun = asyncio.Event()
            begun.set()

            async def serve() -> None:
                places = (self.writer.path, self.folder / "kept" / "log")
                async with drivers.sending(self.task, begun.wait, self.ended.is_set, places):
                    await self.over.wait()

            self.over = asyncio.Event()
            serving = asyncio.create_task(serve())
            try:
                yield drivers
            finally:
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving

    async def removed(self) -> None:
        """The container has ended and its task is forgotten."""
        self.ended.set()
        self.over.set()

    def rotate(self) -> None:
        self.rotation.rotate(self.writer.path, self.writer.reopen)

    def json(self) -> list[dict[str, Any]]:
        path = self.drivers.json_path(self.task.id)
        rows = []
        for number in range(9, -1, -1):
            if (file := rotated(path, number)).exists():
                text = file.read_text()
                # The last line may be half written.
                whole = text[: text.rfind("\n") + 1]
                rows += [json.loads(row) for row in whole.splitlines()]
        return rows


def no_access(task_id: str) -> ContainerHandle:
    raise AssertionError(task_id)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Node]:
    def make(driver: str, *, size: int = 1 << 20, files: int = 3, **options: str) -> Node:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        return Node(tmp_path, LogConfig(driver, named), LogLimits(size, files))

    return make


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Callable[..., socket.socket]]:
    """A socket that only the test reads."""
    opened: list[socket.socket] = []

    def listen(family: int, kind: int, where: Any) -> socket.socket:
        made = socket.socket(family, kind)
        opened.append(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
        made.setblocking(False)
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    yield listen
    for each in opened:
        each.close()


async def test_json_files_have_dockers_lines(node: Callable[..., Node]) -> None:
    here = node("json-file", tag="{{.Name}}/{{.ID}}", labels="team,none", env="ZONE")
    async with here.agent():
        here.writer.write('say "hi" <ü>')
        here.writer.write("be", tag="P", stream="stderr")
        here.writer.write("gin", stream="stderr")
        await until(lambda: len(here.json()) == 2)
    attrs = {"team": "a", "ZONE": "b", "tag": "web.1/" + "t" * 12}
    time = "2026-11-24T12:00:07.123456789Z"
    assert here.json() == [
        {"log": 'say "hi" <ü>\n', "stream": "stdout", "attrs": attrs, "time": time},
        {"log": "begin\n", "stream": "stderr", "attrs": attrs, "time": time},
    ]


async def test_each_line_is_once_in_json_files_over_restarts_and_rotation(
    node: Callable[..., Node],
) -> None:
    here = node("json-file", size=5000, files=9, max_size="1m")
    for _ in range(6):
        async with here.agent():
            before = len(here.json())
            for _ in range(5):
                here.writer.lines(20)
                here.rotate()
            await until(lambda before=before: len(here.json()) > before)  # type: ignore[misc]
            # The agent is killed: nothing is recorded of what it wrote last.
            state = here.folder / "state" / here.task.id / "state"
            last = state.read_bytes()
        state.write_bytes(last)
    async with here.agent():
        await until(lambda: len(here.json()) == here.writer.count)
    assert [row["log"] for row in here.json()] == [f"line {n}\n" for n in range(here.writer.count)]


async def test_json_files_are_rotated(node: Callable[..., Node]) -> None:
    here = node("json-file", max_size="2k", max_file="2")
    async with here.agent() as drivers:
        here.writer.lines(200)
        await until(lambda: bool(here.json()) and here.json()[-1]["log"] == "line 199\n")
        folder = drivers.json_path(here.task.id).parent
        assert sorted(each.name for each in folder.iterdir()) == [
            f"{here.task.id}-json.log",
            f"{here.task.id}-json.log.1",
        ]
        assert all(each.stat().st_size <= 2048 for each in folder.iterdir())


async def test_a_line_without_an_end_is_sent_when_the_container_has_ended(
    node: Callable[..., Node],
) -> None:
    here = node("json-file")
    async with here.agent():
        here.writer.write("password: ", tag="P")
        here.ended.set()
        await until(lambda: len(here.json()) == 1)
    assert here.json()[0]["log"] == "password: \n"


async def test_last_lines_are_sent_before_a_removed_container_is_forgotten(
    node: Callable[..., Node],
) -> None:
    here = node("json-file")
    async with here.agent():
        here.writer.lines(8_000)
        await here.removed()
        await until(lambda: len(here.json()) == 8_000)


async def test_syslog_messages_are_of_rfc_5424(
    node: Callable[..., Node], receiver: Callable[..., socket.socket], tmp_path: Path
) -> None:
    there = receiver(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
    address = f"udp://127.0.0.1:{there.getsockname()[1]}"
    here = node("syslog", syslog_address=address, syslog_facility="local3", tag="web {{.Name}}")
    async with here.agent():
        here.writer.write("out")
        here.writer.write("bad", stream="stderr")
        loop = asyncio.get_running_loop()
        found = [(await loop.sock_recv(there, 4096)).decode() for _ in range(2)]
    # local3 is 19: 19 * 8 + 6 (informational) and + 3 (error).
    for message, priority, text in zip(found, (158, 155), ("out", "bad"), strict=True):
        head, stamp, *rest = message.split(" ", 7)
        assert (head, stamp) == (f"<{priority}>1", "2026-11-24T12:00:07Z")
        assert rest[:2] == ["node-1", "web_web.1"]
        assert rest[2].isdecimal()
        assert rest[3:] == ["web_web.1", "-", text]


async def test_syslog_messages_to_a_local_socket_are_of_rfc_3164(
    node: Callable[..., Node], receiver: Callable[..., socket.socket], tmp_path: Path
) -> None:
    there = receiver(socket.AF_UNIX, socket.SOCK_DGRAM, str(tmp_path / "dev-log"))
    here = node(
        "syslog",
        syslog_address=f"unix://{tmp_path}/dev-log",
        tag="web",
    )
    async with here.agent():
        here.writer.write("10%\r20%\r")
        message = (await asyncio.get_running_loop().sock_recv(there, 4096)).decode()
    head, _, text = message.partition("[")
    assert head == "<30>Nov 24 12:00:07 web"
    assert text.partition("]: ")[2] == "10% 20%"


async def test_a_tcp_target_that_comes_late_gets_every_line_once(
    node: Callable[..., Node], receiver: Callable[..., socket.socket]
) -> None:
    there = receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
    port = there.getsockname()[1]
    there.close()
    here = node("syslog", syslog_address=f"tcp://127.0.0.1:{port}")
    async with here.agent() as drivers:
        here.writer.lines(500)
        await asyncio.sleep(0)
        there = receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))
        loop = asyncio.get_running_loop()
        connected, _ = await loop.sock_accept(there)
        data = b""
        while data.count(b"\n") < 500:
            data += await loop.sock_recv(connected, 1 << 16)
        connected.close()
        # Its target was restarted: the next lines come by another connection.
        here.writer.lines(1)
        connected, _ = await loop.sock_accept(there)
        data += await loop.sock_recv(connected, 1 << 16)
        connected.close()
        assert drivers.tallies["syslog"].dropped == 0
    texts = [row.rpartition(b" - ")[2].decode() for row in data.splitlines()]
    assert texts == [f"line {number}" for number in range(501)]


async def test_lines_that_exceed_the_buffer_are_dropped_and_counted(
    node: Callable[..., Node],
    receiver: Callable[..., socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    there = receiver(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0))
    here = node(
        "syslog",
        size=200_000,
        files=2,
        syslog_address=f"tcp://127.0.0.1:{there.getsockname()[1]}",
        max_buffer_size="100k",
    )
    pad = "x" * 4000
    async with here.agent() as drivers:
        tally = drivers.tallies["syslog"]
        loop = asyncio.get_running_loop()
        here.writer.write("first")
        connected, _ = await loop.sock_accept(there)
        written = 0

        def write_more() -> bool:
            # It is never read, so the kernel's buffers are full at some time.
            nonlocal written
            for _ in range(20):
                here.writer.write(f"{written} {pad}")
                written += 1
            here.rotate()
            return tally.dropped > 100

        await until(write_more)
        data = b""
        while f" - {written - 1} ".encode() not in data:
            data = data[-10_000:] + await loop.sock_recv(connected, 1 << 20)
        # The last one is here, though not all of its end.
        await until(lambda: tally.sent + tally.dropped == written + 1)
        connected.close()
    reports = [each for each in caplog.records if each.message.startswith("log lines dropped")]
    assert sum(each.__dict__["lines"] for each in reports) <= tally.dropped
    assert reports[0].__dict__["driver"] == "syslog"


def test_metrics_count_sent_and_dropped_lines_by_driver(node: Callable[..., Node]) -> None:
    tallies = node("syslog").drivers.tallies
    tallies["syslog"].sent, tallies["syslog"].dropped = 7, 3
    sources = MetricSources(
        runners={},
        access=no_access,
        holdings=lambda: Holdings(0, 0, 0, 0, 0, 0),
        connected=lambda: True,
        runtime="crun",
        dropped=dict,
        tallies=tallies,
    )
    found = {
        (sample.name, sample.labels["driver"]): sample.value
        for family in AgentCollector(sources, {}).collect()
        for sample in family.samples
        if "driver" in sample.labels
    }
    assert found["orc_agent_log_lines_sent_total", "syslog"] == 7
    assert found["orc_agent_log_lines_dropped_total", "syslog"] == 3
    assert found["orc_agent_log_lines_dropped_total", "journald"] == 0


async def test_journald_entries_have_dockers_fields(
    node: Callable[..., Node], receiver: Callable[..., socket.socket], tmp_path: Path
) -> None:
    there = receiver(socket.AF_UNIX, socket.SOCK_DGRAM, str(tmp_path / "journal"))
    here = node("journald", tag="{{.ImageName}}", labels="team")
    async with here.agent():
        here.writer.write("x" * (1 << 14), tag="P", stream="stderr")
        entry = await asyncio.get_running_loop().sock_recv(there, 1 << 16)
    assert dict(row.split("=", 1) for row in entry.decode().splitlines()) == {
        "MESSAGE": "x" * (1 << 14),
        "PRIORITY": "3",
        "SYSLOG_TIMESTAMP": "2026-11-24T12:00:07.123456789Z",
        "CONTAINER_PARTIAL_MESSAGE": "true",
        "CONTAINER_ID": "t" * 12,
        "CONTAINER_ID_FULL": "t" * 25,
        "CONTAINER_NAME": "web.1",
        "CONTAINER_TAG": "web:1",
        "IMAGE_NAME": "web:1",
        "SYSLOG_IDENTIFIER": "web:1",
        "TEAM": "a",
    }


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("journald", {}, "logging driver journald: this node has no socket"),
        ("syslog", {"syslog_address": "unix:///nowhere/log"}, "no socket /nowhere/log"),
    ],
)
async def test_a_node_without_the_drivers_socket_refuses_the_container(
    node: Callable[..., Node], driver: str, options: dict[str, str], words: str
) -> None:
    here = node(driver, **options)
    with pytest.raises(RuntimeFailure, match=words) as refused:
        here.drivers.prepare(here.task, "")
    assert "run " in str(refused.value)


async def test_the_nodes_default_applies_to_containers_without_a_driver(
    node: Callable[..., Node],
) -> None:
    here = node("")
    here.default = LogConfig("json-file", {"max-size": "1m", "max-file": "7"})
    assert here.drivers.config(here.task) == here.default
    own = replace(here.task.spec.container, logging=LogConfig("json-file", {"max-file": "2"}))
    task = replace(here.task, spec=replace(here.task.spec, container=own))
    assert here.drivers.config(task).options == {"max-size": "1m", "max-file": "2"}
    own = replace(own, logging=LogConfig("local", {"max-file": "2"}))
    task = replace(task, spec=replace(task.spec, container=own))
    assert here.drivers.config(task) == LogConfig("local", {"max-file": "2"})
    async with here.agent():
        here.writer.lines(1)
        await until(lambda: len(here.json()) == 1)


async def test_a_container_of_an_earlier_agent_keeps_the_driver_that_it_was_made_with(
    node: Callable[..., Node],
) -> None:
    here = node("")
    here.default = LogConfig("json-file")
    async with here.agent():
        here.writer.lines(1)
        await until(lambda: len(here.json()) == 1)
    here.default = LogConfig()
    async with here.agent(prepare=False):
        here.writer.lines(1)
        await until(lambda: len(here.json()) == 2)


async def test_records_and_files_of_forgotten_tasks_are_removed(node: Callable[..., Node]) -> None:
    here = node("json-file")
    async with here.agent() as drivers:
        here.writer.lines(1)
        await until(lambda: len(here.json()) == 1)
    drivers.retain([here.task.id])
    assert drivers.json_path(here.task.id).exists()
    drivers.retain([])
    assert not drivers.json_path(here.task.id).exists()
    assert not list((here.folder / "state").iterdir())
