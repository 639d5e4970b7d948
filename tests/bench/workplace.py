# SPDX-License-Identifier: Apache-2.0
"""Where a run takes place: among processes and mounts of its own, in a folder on a disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench import cluster, docker, processes
from tests.bench.processes import say
from tests.enclosure import enclosed

WORK = Path("/var/tmp")
PREFIX = "orc-bench-"
NAMESPACES = Path("/run/netns")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that ask to end."""


def run_enclosed(arguments: Sequence[str]) -> int:
    """The run, of which nothing goes on when this process is killed. Returns its exit status."""
    _remove_leftovers()
    again = enclosed([sys.executable, "-m", "tests.bench", *arguments])
    environment = {**os.environ, processes.RUN: str(os.getpid())}
    with subprocess.Popen(again, env=environment) as run:

        def pass_on(number: int, frame: object) -> None:
            # To process 1 in there: unshare itself does not heed it.
            for pid in processes.children(run.pid):
                os.kill(pid, number)

        for number in SIGNALS:
            signal.signal(number, pass_on)
        return run.wait()


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder of this run on a disk, since overlay file systems lie in it."""
    folder = WORK / f"{PREFIX}{processes.run_number()}"
    folder.mkdir(mode=0o711)
    # Where `ip netns` keeps names: files, which would stay.
    NAMESPACES.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(NAMESPACES)], check=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Remove the files, bridges and cgroups of runs that were killed; all else is gone."""
    for left in WORK.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists():
            say(f"removing what run {pid} left")
            cluster.remove_leftovers(int(pid))
            docker.remove_cgroups(left.name)
            shutil.rmtree(left)
