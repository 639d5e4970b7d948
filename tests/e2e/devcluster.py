# SPDX-License-Identifier: Apache-2.0
"""A dev cluster as a test sees it: what a user can do to it, and what a disaster can."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import warmorc
from click.testing import CliRunner

from orchestrator.cli.main import orc

T = TypeVar("T")

READS = {"ls", "ps", "inspect", "status"}
"""Commands that only ask: `read` runs them."""
SERVES = (
    *("--health-tcp", "80", "--health-interval", "1h"),
    *("--health-start-period", "1m", "--health-start-interval", "100ms"),
)
"""Flags of a web server: its service has converged when it answers, not when it has begun."""
ORC = warmorc.ORC

PATIENCE = 60.0
"""Seconds after which a test gives up: no promise of ours, so long enough for any machine."""

NOT_YET = (
    AssertionError,
    LookupError,
    ValueError,
    StopIteration,
    OSError,
    subprocess.CalledProcessError,
)
"""What asking ends with while something is not there: in a list, in a file, at an address."""


def eventually(ask: Callable[[], T], within: float = PATIENCE, every: float = 0.05) -> T:
    """Ask until the answer is true, and return it.

    What `ask` raises of NOT_YET counts as no answer, so that the last one says what is still wrong.
    `within` is for what takes its time by itself; how long a thing takes is never what is tested.
    """
    deadline = time.monotonic() + within
    while True:
        wrong: Exception | None = None
        answer: T | None = None
        try:
            answer = ask()
            if answer:
                return answer
        except NOT_YET as error:
            wrong = error
        if time.monotonic() > deadline:
            raise wrong or AssertionError(f"still {answer!r} after {within} s")
        time.sleep(every)


_reading = threading.Lock()


def read(env: Mapping[str, str], *arguments: str) -> str:
    """What `orc` prints, run in this process: tests ask so often that starting a process for each
    question would be most of their time."""
    hidden = {key: None for key in os.environ if key.startswith("ORC_")}
    with _reading:  # standard output is the process's
        done = CliRunner().invoke(orc, arguments, env={**hidden, **env}, catch_exceptions=False)
    assert done.exit_code == 0, f"orc {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a user can do to a cluster, and what a disaster can."""

    name: str
    env: Mapping[str, str] = field(repr=False)

    def orc(
        self, *arguments: str, ok: bool = True, within: float = 2 * PATIENCE
    ) -> subprocess.CompletedProcess[str]:
        """Run `orc`. It must succeed, unless `ok` is False, and end `within` seconds."""
        done = warmorc.run(arguments, self.env, within)
        if ok:
            assert done.returncode == 0, f"orc {' '.join(arguments)}: {done.stderr or done.stdout}"
        return done

    def refused(self, *arguments: str) -> str:
        """Run `orc`, which must refuse in one line on stderr; return that line."""
        done = self.orc(*arguments, ok=False)
        assert done.returncode != 0, f"orc {' '.join(arguments)} was not refused: {done.stdout}"
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert "Traceback" not in done.stderr
        return lines[0]

    def json(self, *arguments: str) -> Any:
        """Run `orc … --format json` and return the document."""
        words = (*arguments, "--format", "json")
        asks = READS.intersection(arguments[:2])
        return json.loads(read(self.env, *words) if asks else self.orc(*words).stdout)

    def dev(self, verb: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `orc dev VERB` on this cluster."""
        return self.orc("dev", verb, "--name", self.name, *arguments, ok=ok)

    def exec(self, node: str, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a host."""
        return self.dev("exec", node, *command, ok=ok)

    def status(self) -> dict[str, dict[str, Any]]:
        """`orc dev status`, by host."""
        rows = self.json("dev", "status", "--name", self.name)
        return {row["host"]: row for row in rows}

    def kill9(self, host: str, what: str | int) -> None:
        """SIGKILL on a host to a pid of its own numbering, its `daemon`, or by exact name."""
        if what == "daemon":
            what = self.status()[host]["daemon_pid"]
        if isinstance(what, int):
            self.exec(host, "kill", "-9", str(what))
        else:
            self.exec(host, "pkill", "-9", "-x", what)

    def stop(self, host: str) -> None:
        self.dev("stop", host)

    def start(self, host: str) -> None:
        """A manager serves when this is done; nodes are ready in their own time."""
        self.dev("start", host)
        if host.startswith("manager"):
            eventually(self.nodes)

    def power_off(self, host: str) -> None:
        self.dev("kill", host)

    def partition(self, *hosts: str) -> None:
        self.dev("partition", *hosts)

    def heal(self) -> None:
        self.dev("heal")

    def nodes(self) -> dict[str, dict[str, Any]]:
        """`orc node ls`, by hostname."""
        return {node["hostname"]: node for node in self.json("node", "ls")}

    def task(self, service: str) -> dict[str, Any]:
        """The first task of `service ps`. A service that was not waited for has it a moment later;
        AssertionError while there is none."""
        tasks = self.tasks(service)
        assert tasks, f"service {service} has no task yet"
        return tasks[0]

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """All tasks of a service, past ones too."""
        rows: list[dict[str, Any]] = self.json("service", "ps", service)
        return rows

    def running(self, service: str) -> list[dict[str, Any]]:
        """The tasks of a service that run and shall."""
        return [
            task
            for task in self.tasks(service)
            if task["state"] == task["desired_state"] == "running"
        ]

    def await_running(
        self, service: str, count: int, within: float = PATIENCE
    ) -> list[dict[str, Any]]:
        """Wait until exactly so many tasks of a service run, and return them."""

        def ask() -> list[dict[str, Any]]:
            tasks = self.running(service)
            assert len(tasks) == count, self.tasks(service)
            return tasks

        if count == 0:
            eventually(lambda: not self.running(service), within)
            return []
        return eventually(ask, within)

    def await_ready(self, *hosts: str, within: float = PATIENCE) -> None:
        """Wait until nodes (all, if none is named) are ready."""

        def ask() -> bool:
            nodes = self.nodes()
            wanted = hosts or nodes
            states = {host: nodes[host]["state"] for host in wanted if host in nodes}
            assert set(states) == set(wanted), states
            assert set(states.values()) == {"ready"}, states
            return True

        eventually(ask, within)

    def await_reason(self, service: str, words: str) -> None:
        """Wait until a task of a service says this of why it does not run."""

        def ask() -> bool:
            errors = [task["error"] for task in self.tasks(service)]
            assert any(words in error for error in errors), errors
            return True

        eventually(ask)

    def script(self, name: str, image: str, text: str, *flags: str) -> list[dict[str, Any]]:
        """Create a service whose containers run a shell script, and return its running tasks.

        The image has busybox. A script need not care to end: the grace period is short.
        """
        self.orc(
            "service", "create", "--name", name, "--entrypoint", "/bin/busybox",
            "--stop-grace-period", "100ms", *flags, image, "sh", "-c", text,
        )  # fmt: skip
        return self.running(name)

    def in_network(
        self, task: Mapping[str, Any], *command: str, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the host in a task's network namespace."""
        return self.exec(task["node"], "nsenter", "-t", str(task["pid"]), "-n", *command, ok=ok)

    def data(self, node: str) -> Path:
        """The data folder of a node's agent."""
        return Path("/var/lib/orc-dev", self.name, node, "data")

    def in_task(
        self, task: Mapping[str, Any], *command: str, ok: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of a task's image in its mount and network namespaces, as its root."""
        pid = str(task["pid"])
        ids = self.exec(task["node"], "cat", f"/proc/{pid}/uid_map").stdout.split()
        users = () if ids[1] == "0" else ("-U",)
        enter = ("nsenter", "-t", pid, *users, "-n", "-m", "--", *command)
        return self.exec(task["node"], *enter, ok=ok)
