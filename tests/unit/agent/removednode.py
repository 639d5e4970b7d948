# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240 - nothing else runs meanwhile
"""An agent whose certificate a manager refuses, on a real kernel (see `nodeworld`): it stops its
tasks when the refusal names this very certificate as revoked, and at nothing less."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import grpc
from nodeworld import NETWORK, World, run, turn

from orchestrator.identity.certificates import Issued, TlsFiles
from orchestrator.model.states import TaskState


async def scenario(world: World) -> None:
    data, manager = world.root / "a", world.manager
    await world.start_agent()
    await world.session.full(networks=[NETWORK])
    await world.load_image()
    await world.diff(world.assigned("t1", "sleep", "1000"), world.assigned("t2", "sleep", "1000"))
    for task in ("t1", "t2"):
        await world.reaches(task, TaskState.RUNNING)
    pids = [world.status(task).pid for task in ("t1", "t2")]
    issued = Issued.of(TlsFiles.of(data, "node").pair.read().certificate)
    assert issued is not None
    volume = data / "volumes" / "kept"
    volume.mkdir(parents=True)

    for code, serial in (
        (grpc.StatusCode.PERMISSION_DENIED, ""),
        (grpc.StatusCode.UNAVAILABLE, ""),
        (grpc.StatusCode.UNAUTHENTICATED, ""),
        (grpc.StatusCode.UNAUTHENTICATED, "0123abcd"),
        (grpc.StatusCode.PERMISSION_DENIED, issued.serial),
    ):
        manager.refuse, manager.refusal, manager.revoked_serial = "no", code, serial
        dialled = manager.dialled
        world.session.over.set()
        # It dials again: it has read the refusal.
        await turn(lambda before=dialled: manager.dialled >= before + 2)
        await world.end_agent(signal.SIGKILL)  # else it would wait longer from time to time
        manager.refuse = ""
        await world.start_agent()
        for pid in pids:
            os.kill(pid, 0)

    manager.refuse, manager.refusal = "revoked", grpc.StatusCode.UNAUTHENTICATED
    manager.revoked_serial = issued.serial
    world.session.over.set()
    assert world.process is not None
    assert await world.process.wait() == 1
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not list((data / "containers").iterdir())
    assert not list((world.root / "run" / "netns").iterdir())
    links = {name for _, name in socket.if_nameindex()}
    assert not {name for name in links if name.startswith("orc")}, links
    assert volume.is_dir()
    assert not (data / "node.json").exists()


if __name__ == "__main__":
    world = World(Path(sys.argv[1]))
    run(world, partial(scenario, world))
