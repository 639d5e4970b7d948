# SPDX-License-Identifier: Apache-2.0
"""Logging drivers of real containers: what they write arrives in a real journald, and in files."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import CrunWorld, private

from orchestrator.agent.logs.journald import SOCKET
from orchestrator.agent.logs.log_drivers import LogDrivers
from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.linux.libc import mount
from orchestrator.model.specs import ContainerSpec, LogConfig, TaskSpec
from orchestrator.model.tasks import Task

pytestmark = pytest.mark.root

JOURNALD = "/usr/lib/systemd/systemd-journald"
JOURNAL = Path("/run/log/journal")
QUIET = """[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToWall=no
RateLimitBurst=0
"""


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    return CrunWorld(tmp_path)


@contextmanager
def journald() -> Iterator[None]:
    """The node's own, in this thread's mount namespace."""
    # Its folders are fixed, so `/run` is one of this test's alone.
    mount("tmpfs", Path("/run"), "tmpfs", 0, "")
    settings = Path("/run/systemd/journald.conf.d/test.conf")
    settings.parent.mkdir(parents=True)
    settings.write_text(QUIET)
    JOURNAL.mkdir(parents=True)
    # It ends with this thread, also if the test is killed.
    with subprocess.Popen(["setpriv", "--pdeathsig", "KILL", JOURNALD]) as process:
        try:
            yield
        finally:
            process.kill()


def entries(match: str) -> list[dict[str, str]]:
    done = subprocess.run(
        ["journalctl", "-D", str(JOURNAL), "-o", "json", "--no-pager", match],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(row) for row in done.stdout.splitlines()]


@asynccontextmanager
async def logged(
    world: CrunWorld, runtime: CrunRuntime, config: LogConfig, script: str
) -> AsyncIterator[LogDrivers]:
    """A container that writes, while its lines are sent. What is left is sent at the end."""
    spec = ContainerSpec(entrypoint=("sh", "-c", script), image="hello:1", logging=config)
    task = Task(id="a", service_id="s", service_name="web", slot=1, spec=TaskSpec(spec))
    ended, begun = asyncio.Event(), asyncio.Event()
    begun.set()
    with LogDrivers(world.path / "log-drivers", world.path / "json-logs") as drivers:
        effective = drivers.prepare(task, "sha256:test")
        container = world.container("a", "sh", "-c", script)
        places = (runtime.log_path("a"), world.path / "kept" / "log")
        async with drivers.sending(task, begun.wait, ended.is_set, places):
            await runtime.create(replace(container, logging=effective))
            await runtime.start("a")
            yield drivers
            await runtime.wait("a")
            ended.set()
        await runtime.remove("a")


@private
async def test_a_real_journald_has_every_line_of_a_container(world: CrunWorld) -> None:
    async with world:
        with journald():
            while not SOCKET.exists():  # noqa: ASYNC110 - journald's own time
                await asyncio.sleep(0.01)
            script = "seq 5000; echo bad >&2"
            async with world.runtime() as runtime:
                config = LogConfig("journald", {"tag": "{{.ImageName}}"})
                async with logged(world, runtime, config, script):
                    # As for any driver: 'orc logs' reads the files of the node.
                    await world.ready(runtime, "a", b"bad")
            while len(found := entries("CONTAINER_NAME=web.1")) < 5001:  # noqa: ASYNC110 - journald's own time
                await asyncio.sleep(0.01)
    out = [entry["MESSAGE"] for entry in found if entry["PRIORITY"] == "6"]
    assert out == [str(number) for number in range(1, 5001)]
    (bad,) = (entry for entry in found if entry["PRIORITY"] == "3")
    assert (bad["MESSAGE"], bad["CONTAINER_TAG"], bad["IMAGE_NAME"]) == (
        "bad",
        "hello:1",
        "hello:1",
    )
    assert bad["SYSLOG_IDENTIFIER"] == "hello:1"


@private
async def test_a_real_syslog_daemon_of_the_node_has_the_lines_of_a_container(
    world: CrunWorld,
) -> None:
    async with world:
        with journald():
            # journald is a syslog daemon too, behind the socket to which /dev/log is a link.
            socket = SOCKET.with_name("dev-log")
            while not socket.exists():  # noqa: ASYNC110 - journald's own time
                await asyncio.sleep(0.01)
            options = {
                "syslog-address": f"unix://{socket}",
                "syslog-facility": "local3",
                "tag": "{{.Name}}",
            }
            async with (
                world.runtime() as runtime,
                logged(world, runtime, LogConfig("syslog", options), "echo out; echo bad >&2"),
            ):
                pass
            while len(found := entries("SYSLOG_IDENTIFIER=web.1")) < 2:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    said = {(each["MESSAGE"], each["PRIORITY"], each["SYSLOG_FACILITY"]) for each in found}
    assert said == {("out", "6", "19"), ("bad", "3", "19")}


@private
async def test_json_files_have_every_line_of_a_fast_writer_over_rotations(
    world: CrunWorld,
) -> None:
    count = 20_000
    script = "i=0; while [ $i -lt 20000 ]; do seq $((i + 1)) $((i += 500)); sleep 0.01; done"
    config = LogConfig("json-file", {"max-size": "100k", "max-file": "50"})
    async with (
        world,
        world.runtime(rotation_interval=0.005) as runtime,
        logged(world, runtime, config, script) as drivers,
    ):
        folder = drivers.json_path("a").parent
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) > 5
    rows = [json.loads(row) for path in files for row in path.read_text().splitlines()]
    assert [row["log"] for row in rows] == [f"{number}\n" for number in range(1, count + 1)]
