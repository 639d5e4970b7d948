# SPDX-License-Identifier: Apache-2.0
"""Logs, loads and builds over a tunnel of real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from agentfakes import NOW, Host, Reports, assigned, until
from managerstub import ManagerStub, TunnelEnd, manager_stub

from orchestrator.agent.builds.builder import BuildSpec, CacheUsage
from orchestrator.agent.images.image_errors import BuildError, ImageError
from orchestrator.agent.runtime.interface import Exit
from orchestrator.agent.statedb import StateDb
from orchestrator.agent.streams.image_requests import BUILD_REQUESTS, BuildRequests
from orchestrator.agent.streams.log_streams import LogStreams
from orchestrator.agent.streams.tunnels import Tunnels
from orchestrator.agent.tasks.worker import Worker
from orchestrator.model.objects import Image
from orchestrator.model.states import TaskState
from orchestrator.pb import control_pb2, dispatch_pb2, images_pb2

STAMP = "2025-11-24T12:34:56.100000000+00:00"


class FakeImages:
    """A store and a builder that take what they get."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bytes]] = []
        self.error: Exception | None = None

    async def load_all(self, archive: Path, name: str = "") -> tuple[Image, ...]:
        return (await self.load(archive, name), Image(id="sha256:2"))

    async def load(self, archive: Path, name: str = "") -> Image:
        if self.error is not None:
            raise self.error
        self.taken.append((name, archive.read_bytes()))  # noqa: ASYNC240
        return Image(id="sha256:1", names=(name,))

    async def build(self, context: Path, spec: BuildSpec, progress: Callable[[str], None]) -> Image:
        progress(f"STEP 1: FROM {spec.dockerfile or 'Dockerfile'}")
        progress(f"{dict(spec.build_args)} {spec.no_cache}")
        return await self.load(context, *spec.names)

    async def cache(self) -> CacheUsage:
        return CacheUsage(entries=2, size=1000)

    async def prune(self, everything: bool) -> int:
        return 300 if everything else 200


class Agent:
    def __init__(self, host: Host, manager: ManagerStub, worker: Worker, reports: Reports) -> None:
        self.host = host
        self.manager = manager
        self.worker = worker
        self.reports = reports
        self.images = FakeImages()
        self.now = NOW
        self.tunnels = Tunnels(
            runners=worker.runners,
            images=self.images,
            scratch=host.folder / "uploads",
            handlers={
                "logs": LogStreams(worker.runners, self.places, lambda: self.now).send,
                **dict.fromkeys(
                    BUILD_REQUESTS, BuildRequests(self.images, host.folder / "uploads").serve
                ),
            },
        )

    def places(self, task: str) -> tuple[Path, Path]:
        return self.host.runtime.log_path(task), self.host.backends().logs.path(task)

    @asynccontextmanager
    async def tunnel(self, order: dispatch_pb2.OpenTunnel) -> AsyncIterator[TunnelEnd]:
        """Order a tunnel; at the end of the block the agent has let it go."""
        async with (
            grpc.aio.insecure_channel(self.manager.address) as channel,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self.tunnels.open(channel, order))
            yield await self.manager.tunnel(order.id)

    async def runs(self, text: str) -> None:
        """Have task t1 run, with this log."""
        self.worker.apply([assigned()], [], [], full=True)
        await until(lambda: self.reports.state() is TaskState.RUNNING)
        self.host.runtime.log_path("t1").write_text(text)

    def say(self, text: str) -> None:
        with self.host.runtime.log_path("t1").open("a") as file:
            file.write(text)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    host, reports = Host(tmp_path), Reports()
    with StateDb(tmp_path / "state.db") as db:
        async with (
            manager_stub() as manager,
            Worker(host.backends(), db, reports.reporter) as worker,
        ):
            yield Agent(host, manager, worker, reports)


def logs(
    follow: bool = False, tail: int = -1, until: float = 0.0, task_id: str = "t1"
) -> dispatch_pb2.OpenTunnel:
    order = dispatch_pb2.LogsOrder(task_id=task_id, follow=follow, tail=tail, until=until)
    return dispatch_pb2.OpenTunnel(id="x", logs=order)


def lines(frames: list[dispatch_pb2.Frame]) -> list[bytes]:
    return [record.line for frame in frames for record in frame.log.records]


async def test_logs_of_a_running_task(agent: Agent) -> None:
    await agent.runs(f"{STAMP} stdout F one\n{STAMP} stderr F two\n")
    async with agent.tunnel(logs()) as tunnel:
        frames = await tunnel.frames()
    batch, last = frames
    first, second = batch.log.records
    assert (first.line, first.stderr) == (b"one", False)
    assert (second.line, second.stderr) == (b"two", True)
    assert first.at == pytest.approx(1763987696.1)
    assert last.result.error == ""


async def test_the_last_lines_and_lines_in_parts(agent: Agent) -> None:
    await agent.runs(f"{STAMP} stdout F one\n{STAMP} stdout P tw\n{STAMP} stdout F o\n")
    async with agent.tunnel(logs(tail=1)) as tunnel:
        assert lines(await tunnel.frames()) == [b"two"]


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, [b"0", b"1", b"2"]), ({"tail": 2, "follow": True}, [b"1", b"2"])]
)
async def test_lines_until_a_time_that_is_past(
    agent: Agent, options: dict[str, int], wanted: list[bytes]
) -> None:
    stamps = [f"2025-11-24T12:34:5{second}.000000000+00:00" for second in range(5)]
    await agent.runs("".join(f"{stamp} stdout F {n}\n" for n, stamp in enumerate(stamps)))
    agent.now = 2e9
    order = logs(until=1763987692.5, **options)  # type: ignore[arg-type]
    async with agent.tunnel(order) as tunnel:
        assert lines(await tunnel.frames()) == wanted


async def test_following_until_a_time_that_comes(agent: Agent) -> None:
    await agent.runs(f"{STAMP} stdout F one\n{STAMP} stdout F two\n")
    agent.now = 1763987696.2
    async with agent.tunnel(logs(follow=True, tail=1, until=agent.now + 0.1)) as tunnel:
        assert lines(await tunnel.frames()) == [b"two"]


async def test_many_lines_are_few_frames(agent: Agent) -> None:
    await agent.runs("".join(f"{STAMP} stdout F line {n}\n" for n in range(10_000)))
    async with agent.tunnel(logs()) as tunnel:
        frames = await tunnel.frames()
    assert lines(frames) == [b"line %d" % n for n in range(10_000)]
    assert len(frames) < 20


async def test_following_ends_with_the_task(agent: Agent) -> None:
    await agent.runs(f"{STAMP} stdout F one\n")
    async with agent.tunnel(logs(follow=True)) as tunnel:
        assert lines([await tunnel.frame()]) == [b"one"]
        agent.say(f"{STAMP} stdout F two\n")
        assert lines([await tunnel.frame()]) == [b"two"]
        await agent.host.runtime.end("t1", Exit(0, False, NOW))
        assert (await tunnel.frames())[-1].result.error == ""


async def test_following_ends_when_the_reader_leaves(agent: Agent) -> None:
    await agent.runs(f"{STAMP} stdout F one\n")
    async with agent.tunnel(logs(follow=True)) as tunnel:
        assert lines([await tunnel.frame()]) == [b"one"]
        tunnel.closed.set()


async def test_the_log_of_an_ended_task(agent: Agent) -> None:
    await agent.runs(f"{STAMP} stderr F why it died\n")
    await agent.host.runtime.end("t1", Exit(1, False, NOW))
    await until(lambda: agent.reports.state() is TaskState.FAILED)
    assert not agent.host.runtime.log_path("t1").exists()
    async with agent.tunnel(logs(follow=True)) as tunnel:
        assert lines(await tunnel.frames()) == [b"why it died"]


async def test_logs_of_a_task_of_another_node(agent: Agent) -> None:
    async with agent.tunnel(logs(task_id="t9")) as tunnel:
        (last,) = await tunnel.frames()
    assert last.result.error == "this node has no task t9"


async def test_an_image_is_loaded(agent: Agent) -> None:
    header = control_pb2.ImageHeader(name="hello:1")
    async with agent.tunnel(dispatch_pb2.OpenTunnel(id="x", load=header)) as tunnel:
        await tunnel.send(data=b"first ")
        await tunnel.send(data=b"second")
        await tunnel.send(eof=True)
        (last,) = await tunnel.frames()
    assert agent.images.taken == [("hello:1", b"first second")]
    assert list(last.result.image.names) == ["hello:1"]
    assert [image.id for image in last.result.more_images] == ["sha256:2"]
    assert list((agent.host.folder / "uploads").iterdir()) == []


async def test_an_image_that_cannot_be_loaded(agent: Agent) -> None:
    agent.images.error = ImageError("this is no image archive")
    async with agent.tunnel(
        dispatch_pb2.OpenTunnel(id="x", load=control_pb2.ImageHeader())
    ) as tunnel:
        await tunnel.send(data=b"x")
        await tunnel.send(eof=True)
        (last,) = await tunnel.frames()
    assert last.result.error == "this is no image archive"
    assert not last.result.HasField("image")


async def test_an_interrupted_upload_leaves_no_file(agent: Agent) -> None:
    async with agent.tunnel(
        dispatch_pb2.OpenTunnel(id="x", load=control_pb2.ImageHeader())
    ) as tunnel:
        await tunnel.send(data=b"half")
        tunnel.closed.set()
    assert agent.images.taken == []
    assert list((agent.host.folder / "uploads").iterdir()) == []


async def test_an_image_is_built(agent: Agent) -> None:
    header = control_pb2.ImageHeader(
        name="hello:1", dockerfile="web.Dockerfile", build_args={"A": "1"}, no_cache=True
    )
    async with agent.tunnel(dispatch_pb2.OpenTunnel(id="x", build=header)) as tunnel:
        await tunnel.send(data=b"context")
        await tunnel.send(eof=True)
        frames = await tunnel.frames()
    assert [frame.line for frame in frames[:-1]] == [
        "STEP 1: FROM web.Dockerfile",
        "{'A': '1'} True",
    ]
    assert frames[-1].result.image.id == "sha256:1"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BuildError("Dockerfile:2: RUN false: exit status 1"), "Dockerfile:2: RUN false: exit"),
        (OSError(28, "No space left on device"), "no space left on device on this node"),
        (ZeroDivisionError("oops"), "internal error of the agent: oops"),
    ],
)
async def test_a_build_that_fails(agent: Agent, error: Exception, words: str) -> None:
    agent.images.error = error
    async with agent.tunnel(
        dispatch_pb2.OpenTunnel(id="x", build=control_pb2.ImageHeader(name="a"))
    ) as tunnel:
        await tunnel.send(eof=True)
        frames = await tunnel.frames()
    assert frames[-1].result.error.startswith(words)


async def test_an_emptied_build_cache_is_logged(agent: Agent) -> None:
    order = images_pb2.BuildCacheOrder(prune=True, all=True)
    async with agent.tunnel(dispatch_pb2.OpenTunnel(id="x", build_cache=order)) as tunnel:
        (last,) = await tunnel.frames()
    assert last.result.build_cache == images_pb2.BuildCache(entries=2, size=1000, freed=300)


async def test_unknown_requests_are_refused(agent: Agent) -> None:
    async with agent.tunnel(dispatch_pb2.OpenTunnel(id="x")) as tunnel:
        (last,) = await tunnel.frames()
    assert "does not support this request" in last.result.error


async def test_uploads_of_a_dead_agent_are_removed(agent: Agent) -> None:
    left = agent.host.folder / "uploads" / "left"
    left.write_bytes(b"x")
    Agent(agent.host, agent.manager, agent.worker, agent.reports)
    assert not left.exists()
