# SPDX-License-Identifier: Apache-2.0
"""Containers on a kernel with AppArmor; run inside a virtual machine."""

# ruff: noqa: ASYNC240 (a test may block its own loop)

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "contract"))

from crunkit import running
from runtimehost import CrunWorld, private, remove_leftovers

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.io import execs, logfiles
from orchestrator.agent.runtime.spec import apparmor
from orchestrator.linux.libc import mount
from orchestrator.linux.mounts import unmount

SECURITYFS = Path("/sys/kernel/security")
ENFORCED = f"{apparmor.DEFAULT} (enforce)"


@pytest.fixture(scope="module", autouse=True)
def securityfs() -> Iterator[None]:
    mount("securityfs", SECURITYFS, "securityfs", 0, "")
    yield
    unmount(SECURITYFS)


@pytest.fixture
def world(tmp_path: Path) -> CrunWorld:
    remove_leftovers()
    return CrunWorld(tmp_path)


async def said(world: CrunWorld, script: str, **changes: Any) -> list[str]:
    """What a container of this script says."""
    async with world, world.runtime() as runtime:
        await runtime.create(world.container("a", "sh", "-c", script, **changes))
        await runtime.start("a")
        await runtime.wait("a")
        path = runtime.log_path("a")
        return [record.line.decode() async for some in logfiles.read(path) for record in some]


@private
async def test_container_and_its_executed_commands_have_the_profile(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        pid = await running(runtime, world, world.graceful("a"))
        assert Path(f"/proc/{pid}/attr/current").read_text().strip() == ENFORCED
        command = ("cat", "/proc/self/attr/current")
        for privileged, label in ((False, ENFORCED), (True, "unconfined")):
            spec = execs.ExecSpec(command, privileged=privileged)
            program = await execs.start(runtime.access("a"), spec)
            found = await program.read()
            assert found is not None
            assert found[1].decode().strip() == label
            await program.wait()
            program.close()
        # Signals of the node reach it.
        await runtime.kill("a", 15)
        assert (await runtime.wait("a")).code == 143


MOUNTS = "mount -t tmpfs none /tmp && echo mounted || echo refused; cat /proc/self/attr/current"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["refused", ENFORCED]),
        ({"apparmor": "unconfined"}, ["mounted", "unconfined"]),
        ({"privileged": True}, ["mounted", "unconfined"]),
    ],
    ids=str,
)
@private
async def test_capabilities_alone_do_not_let_a_container_mount(
    world: CrunWorld, changes: dict[str, Any], lines: list[str]
) -> None:
    found = await said(world, MOUNTS, userns="host", cap_add=("CAP_SYS_ADMIN",), **changes)
    assert found[-2:] == lines


@private
async def test_ordinary_work_is_not_hindered(world: CrunWorld) -> None:
    script = (
        "set -e; echo x >/tmp/file; cat /tmp/file; touch /tmp/other; ls / >/dev/null; "
        "sleep 100 & kill $!; mknod /tmp/fifo p; id -u; echo done"
    )
    assert await said(world, script) == ["x", "0", "done"]


@private
async def test_a_profile_that_is_not_loaded_is_refused(world: CrunWorld) -> None:
    async with world, world.runtime() as runtime:
        container = world.graceful("a")
        spec = replace(container.spec.container, apparmor="orc-no-such-profile")
        container = replace(container, spec=replace(container.spec, container=spec))

        async def run() -> None:
            await runtime.create(container)
            await runtime.start("a")

        with pytest.raises(RuntimeFailure):
            await run()


def test_kernel_has_apparmor() -> None:
    assert apparmor.is_enabled()
    assert os.path.exists("/sbin/apparmor_parser")


@private
async def test_families_that_seccomp_cannot_see_in_a_32_bit_call_are_refused(
    world: CrunWorld,
) -> None:
    """`socketcall` ends in the same hook of the kernel as `socket`, for which AppArmor asks."""
    async with world, world.runtime():  # which loads the profile
        for family, wanted in (("INET", ""), ("ALG", "Permission"), ("VSOCK", "Permission")):
            program = f"import socket; socket.socket(socket.AF_{family}, socket.SOCK_STREAM)"
            kind = "SEQPACKET" if family == "ALG" else "STREAM"
            program = program.replace("STREAM", kind)
            done = subprocess.run(  # noqa: ASYNC221 - nothing else runs meanwhile
                ["aa-exec", "-p", apparmor.DEFAULT, sys.executable, "-c", program],
                capture_output=True,
                text=True,
            )
            assert (wanted in done.stderr) if wanted else done.returncode == 0, done.stderr
