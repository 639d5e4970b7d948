# SPDX-License-Identifier: Apache-2.0
"""Files of secrets in a real container: as they are mounted, and how others take their place."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from runtimehost import CrunWorld, private

from orchestrator.agent.runtime.engine.crun import CrunRuntime
from orchestrator.agent.runtime.interface import Container, Mount, RuntimeFailure
from orchestrator.agent.tasks.secret_files import SecretFiles, mount_memory
from orchestrator.pb import documents_pb2

pytestmark = pytest.mark.root

READER = "while :; do cat /etc/app.conf || echo none; done"


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    return CrunWorld(tmp_path)


def file(payload: str) -> documents_pb2.AssignedFile:
    return documents_pb2.AssignedFile(
        payload=payload, name="config c", target="/etc/app.conf", uid=5, gid=6, mode=0o444
    )


def files_in(folder: Path) -> SecretFiles:
    mount_memory(folder)
    mount_memory(folder)
    files = SecretFiles(folder)
    for number in (1, 2):
        data = f"version {number}\n".encode()
        files.take(documents_pb2.Payload(key=f"c.{number}", data=data))
    return files


async def begun(
    runtime: CrunRuntime, files: SecretFiles, container: Container
) -> tuple[Mount, ...]:
    await runtime.reserve("a", container.spec)
    mounts = files.place("a", [file("c.1")], runtime.users("a"))
    await runtime.create(replace(container, mounts=mounts))
    await runtime.start("a")
    return mounts


def mounts_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/mountinfo").read_text().splitlines()


async def logged(runtime: CrunRuntime, word: str) -> str:
    async with asyncio.timeout(60):
        while word not in (text := runtime.log_path("a").read_text()):  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.01)
    return text


@pytest.mark.parametrize("userns", ["", "private"])
@private
async def test_replaced_files_are_never_missing(world: CrunWorld, userns: str) -> None:
    files = files_in(world.path / "run/documents")
    async with world, world.runtime() as runtime:
        container = world.container("a", "sh", "-c", READER, userns=userns, read_only=True)
        await begun(runtime, files, container)
        await logged(runtime, "version 1")
        newer = [file("c.2")]
        (new,) = files.renew("a", newer, runtime.users("a"))
        await runtime.replace_files("a", [(new.source, new.file.target)])
        files.settle("a", newer)
        text = await logged(runtime, "version 2")
        lines = [line.split(" ", 3)[3] for line in text.splitlines()]
        assert set(lines) == {"version 1", "version 2"}
        assert lines == sorted(lines)
        process = runtime.access("a").running()
        (line,) = [line for line in mounts_of(process.pid) if " /etc/app.conf " in line]
        assert " ro,nosuid,nodev,noexec," in line
        with pytest.raises(RuntimeFailure, match=r"cannot be replaced \(/no/such: "):
            await runtime.replace_files("a", [(new.source, "/no/such")])
        await runtime.remove("a")
        with pytest.raises(RuntimeFailure, match="not running"):
            await runtime.replace_files("a", [(new.source, new.file.target)])


@private
async def test_secret_files_are_neither_in_the_bundle_nor_on_disk(world: CrunWorld) -> None:
    files = files_in(world.path / "run/documents")
    async with world, world.runtime() as runtime:
        await begun(runtime, files, world.container("a", "sleep", "100"))
        for folder in (world.bundles, world.path / "state"):
            for path in folder.rglob("*"):
                if path.is_file() and "rootfs" not in path.parts:
                    assert b"version 1" not in path.read_bytes(), path
        await runtime.remove("a")
