# SPDX-License-Identifier: Apache-2.0
"""A whole agent process whose disk a container fills, against a scripted manager (see `nodeworld`).

A failed assertion is its exit status.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from crashwalk import cmdline, processes
from fulldisk import small_disk
from nodeworld import NETWORK, World, run, turn

from orchestrator.agent.runtime.isolation.mountns import enter_private_mounts
from orchestrator.model.states import TaskState


async def scenario(world: World) -> None:
    await world.start_agent()
    await world.session.full(networks=[NETWORK])
    await world.load_image()
    hog = "sleep 1000 & while :; do cat /dev/zero >> /big; sleep 0.01; done"
    kept, fills = (world.assigned("kept", "sleep", "1000"), world.assigned("hog", "sh", "-c", hog))
    await world.diff(kept)
    await world.reaches("kept", TaskState.RUNNING)
    await world.diff(fills)
    await world.reaches("hog", TaskState.RUNNING)
    disk = os.statvfs
    await turn(lambda: disk(world.root / "a").f_bavail == 0)

    # New tasks wait, and node and task report why; the session continues.
    late = world.assigned("late", "sleep", "1000")
    await world.diff(late)
    await turn(lambda: "full" in world.status_message("late"))
    await turn(lambda: any("full" in words for words in world.session.troubles))
    beats = world.session.heartbeats
    await turn(lambda: world.session.heartbeats > beats)

    # The same for a restarted agent; both containers continue.
    pids = [world.status(task).pid for task in ("kept", "hog")]
    await world.end_agent(signal.SIGKILL)
    # SQLite makes the shared memory of its file anew, and the container may be faster.
    await turn(lambda: not network_helpers(world.root))
    os.truncate(world.root / "a" / "network" / "ipam.db-shm", 0)
    await turn(lambda: disk(world.root / "a").f_bavail == 0)
    await world.start_agent()
    await world.session.full(kept, fills, late, networks=[NETWORK])
    world.version = 1
    for task in ("kept", "hog"):
        await world.reaches(task, TaskState.RUNNING)
    assert [world.status(task).pid for task in ("kept", "hog")] == pids
    assert world.session.states().get("late", 0) <= TaskState.ASSIGNED

    # The one that fills it is stopped, as ordered; then there is room for what waits.
    await world.diff(world.assigned("hog", state=TaskState.SHUTDOWN))
    await world.reaches("hog", TaskState.SHUTDOWN)
    await world.reaches("late", TaskState.RUNNING)
    await turn(lambda: not world.session.troubles or world.session.troubles[-1] == "")
    assert world.status("kept").pid == pids[0]
    os.kill(pids[0], 0)


def network_helpers(root: Path) -> list[str]:
    """The network helpers of this node that run, by process id."""
    own = f"orchestrator.cni.helper {root}"
    return [pid for pid in processes() if own in cmdline(pid)]


class FullWorld(World):
    """Whose agent has a small disk of its own."""

    def status_message(self, task_id: str) -> str:
        """The message of a task's newest status, if there is one."""
        known = any(task_id in report.statuses for report in self.session.statuses)
        return str(self.status(task_id).message) if known else ""


if __name__ == "__main__":
    enter_private_mounts(None)
    world = FullWorld(Path(sys.argv[1]))
    small_disk(world.root / "a", 24 << 20)
    run(world, partial(scenario, world))
