# SPDX-License-Identifier: Apache-2.0
"""A process that is as an agent's should not be, and runs a container: prints what the container,
a program that is executed in it and its monitor have inherited, as JSON.

Arguments: the folder of a node.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from crunkit import running
from runtimehost import CrunWorld, private

from orchestrator.agent.runtime.engine.conmon import find_monitor
from orchestrator.agent.runtime.io import execs
from orchestrator.linux.priority import has_default_io

NAME = "ODD_SECRET"
NOFILE = 3333


def become_odd() -> None:
    """Change all that a child inherits."""
    os.environ[NAME] = "the agent's"
    os.umask(0o077)
    os.nice(int(sys.argv[2]))
    subprocess.run(["ionice", "-c", sys.argv[3], "-p", str(os.getpid())], check=True)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    Path("/proc/self/oom_score_adj").write_text("400")
    resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE, NOFILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_STACK, (16 << 20, resource.RLIM_INFINITY))
    for ignored in (signal.SIGPIPE, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.set_inheritable(os.open("/", os.O_RDONLY), True)


def facts(pid: int) -> dict[str, Any]:
    """What a process has of that."""
    place = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    stat = (place / "stat").read_text().rpartition(")")[2].split()
    limits = {}
    for line in (place / "limits").read_text().splitlines()[1:]:
        limits[line[:26].strip()] = line[26:].split()[:2]
    cgroups = (line.split(":", 2)[2] for line in (place / "cgroup").read_text().splitlines())
    return {
        "umask": status["Umask"].strip(),
        "blocked": int(status["SigBlk"], 16),
        "ignored": int(status["SigIgn"], 16),
        "nice": int(stat[16]),
        "policy": int(stat[38]),
        "default io": has_default_io(pid),
        "oom": int((place / "oom_score_adj").read_text()),
        "descriptors": sorted(map(int, os.listdir(place / "fd"))),
        "environment": (place / "environ").read_bytes().decode(),
        "nofile": limits["Max open files"],
        "core": limits["Max core file size"],
        "stack": limits["Max stack size"],
        "own cgroup": all(path.endswith("/a") for path in cgroups if "orc-test" in path),
    }


@private
async def main() -> None:
    world = CrunWorld(Path(sys.argv[1]))
    async with world, world.runtime() as runtime:
        first = await running(runtime, world, world.container("a", "sh", "-c", SCRIPT))
        access = runtime.access("a")
        program = await execs.start(access, execs.ExecSpec(("cat",), stdin=True))
        # Its answer shows that it has replaced the runtime's process.
        await program.write(b"ready\n")
        assert await program.read() == (False, b"ready\n")
        second = program.identity
        assert second is not None
        monitor = find_monitor(world.bundles / "a", "a")
        assert monitor is not None
        found = {
            "first": facts(first),
            "executed": facts(second.pid),
            "monitor": facts(monitor.pid),
        }
        await program.end()
        program.close()
    print(json.dumps(found))


SCRIPT = "echo ready >/said; exec tail -f </said"
"""It is `tail` that says that it is ready: busybox's shell, which it replaces, ignores SIGQUIT."""

if __name__ == "__main__":
    become_odd()
    main()
