# SPDX-License-Identifier: Apache-2.0
"""`make chaos ARGS="--minutes 30 --seed 7"`: record a run, and judge it."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orchestrator  # noqa: F401  first: it sets what gRPC's core reads when it is imported
from tests.bench import processes
from tests.chaos import harness
from tests.chaos.faultplan import Topology, draw
from tests.chaos.hosts import ORC, RunError, Testbed
from tests.chaos.judge import judge
from tests.chaos.leftovers import crashes
from tests.chaos.recorder import Recorder
from tests.enclosure import enclosed

PREFIX = "chaos-"
FOLDER = Path("/var/lib/orc-dev")
RUN = "ORC_CHAOS_RUN"
"""Environment variable: the number of the run, which its cluster's name bears."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long faults are injected")
    parser.add_argument("--seed", type=int, default=1, help="of faults and users")
    parser.add_argument("--managers", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--every", type=float, default=3.2, help="seconds between two faults")
    parser.add_argument("--only", help="numbers of the faults to inject, such as 3,17")
    parser.add_argument("--without", help="numbers of faults to leave out")
    parser.add_argument("--folder", type=Path, default=Path("build/chaos"), help="for the history")
    return parser.parse_args(words)


def _numbers(text: str | None) -> set[int]:
    return {int(word) for word in (text or "").split(",") if word}


def _run(given: argparse.Namespace) -> int:
    """Record and judge; the exit status."""
    number = os.environ.get(RUN, str(os.getpid()))
    folder = given.folder.absolute() / f"seed-{given.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    os.environ.pop("ORC_CONTEXT", None)
    # Where `ip netns` keeps names: files, which would stay.
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    testbed = Testbed(f"{PREFIX}{number}", given.managers, given.nodes, folder)
    topology = Topology(testbed.manager_hosts, testbed.node_hosts)
    plan = draw(given.seed, given.minutes, topology, given.every)
    only, without = _numbers(given.only), _numbers(given.without)
    plan = tuple(
        each for each in plan if (not only or each.number in only) and each.number not in without
    )
    history = folder / "history.jsonl"
    recorder = Recorder(history)
    try:
        testbed.up(say)
        # The run's clock begins now.
        recorder.restart()
        asyncio.run(
            harness.run(harness.Scenario(given.seed, given.minutes, plan), testbed, recorder, say)
        )
    except RunError as error:
        say(f"the run failed: {error}")
        return 2
    finally:
        for host in testbed.hosts:
            _keep_log(testbed, host, folder, recorder)
        recorder.close()
        testbed.down()
    say(f"history: {history}")
    return 1 if judge(history) else 0


def _keep_log(testbed: Testbed, host: str, folder: Path, recorder: Recorder) -> None:
    for log in (testbed.disk(host) / "log").glob("*.log"):
        with suppress(OSError):
            (folder / f"{host}-{log.name}").write_bytes(log.read_bytes())
            for crash in crashes(host, log):
                recorder.add(crash)


def _enclosed(words: Sequence[str]) -> int:
    """The run in namespaces of its own: nothing of it goes on when this process is killed."""
    _remove_leftovers()
    again = enclosed([sys.executable, "-m", "tests.chaos", *words])
    environment = {**os.environ, RUN: str(os.getpid())}
    with subprocess.Popen(again, env=environment) as run:

        def pass_on(number: int, frame: object) -> None:
            for pid in processes.children(run.pid):
                os.kill(pid, number)

        for number in SIGNALS:
            signal.signal(number, pass_on)
        return run.wait()


def _remove_leftovers() -> None:
    """Remove the folders and cgroups of runs that were killed; all else is gone."""
    for left in FOLDER.glob(f"{PREFIX}*"):
        number = left.name.removeprefix(PREFIX)
        if number.isdigit() and not Path("/proc", number).exists():
            say(f"removing what run {number} left")
            subprocess.run([ORC, "dev", "down", "--name", left.name], check=False)


if __name__ == "__main__":
    if RUN in os.environ:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
        sys.exit(_run(_arguments(sys.argv[1:])))
    _arguments(sys.argv[1:])
    sys.exit(_enclosed(sys.argv[1:]))
