# SPDX-License-Identifier: Apache-2.0
"""Commands of clients of three managers, of which the one in use is killed: real commands, daemons
and etcd, on loopback addresses of a network namespace. Usage: managerclients.py FOLDER"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from managerjoins import ORC, Hosts, eventually

EVERY_MANAGER = {"m1": "ready", "m2": "ready", "m3": "ready"}


class Clients(Hosts):
    """Managers, and an admin whose context can be directed at one of them first."""

    @property
    def context(self) -> Path:
        (file,) = (self.folder / "config/orc/contexts").iterdir()
        return file

    def prefer(self, *endpoints: str) -> None:
        """Have the context try these first, and forget which ones were silent."""
        fields = json.loads(self.context.read_text())
        others = [each for each in fields["endpoints"] if each not in endpoints]
        fields["endpoints"] = [*endpoints, *others]
        self.context.write_text(json.dumps(fields))
        for seen in (self.folder / "config/orc/seen").glob("*.json"):
            seen.unlink()

    @property
    def endpoints(self) -> list[str]:
        return list(json.loads(self.context.read_text())["endpoints"])

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command in the background, whose output is in files of its own."""
        with (
            (self.folder / "stdout").open("w") as out,
            (self.folder / "stderr").open("w") as err,
            subprocess.Popen([ORC, *arguments], env=self.env, stdout=out, stderr=err) as process,
        ):
            try:
                yield process  # type: ignore[misc]
            finally:
                process.kill()

    @property
    def printed(self) -> str:
        return (self.folder / "stdout").read_text()

    def kill(self, number: int, how: int = signal.SIGKILL) -> None:
        """Kill or stop a manager, without its etcd."""
        os.kill(self.daemons[number].pid, how)

    def restart(self, number: int) -> None:
        self.daemons.pop(number).wait(60)
        self.start(number)
        self.await_states(**EVERY_MANAGER)


def endpoint(number: int) -> str:
    return f"127.0.0.{number}:7420"


def a_context_learns_all_managers(hosts: Clients) -> None:
    hosts.done("node", "ls")
    assert set(hosts.endpoints) == {endpoint(number) for number in (1, 2, 3)}, hosts.endpoints


def writes_succeed_while_managers_are_killed(hosts: Clients) -> None:
    """One at a time, in the middle of commands that write."""
    made = []
    for number in (1, 3):
        hosts.prefer(endpoint(number))
        script = "".join(
            f"{ORC} network create n{number}x{each} >/dev/null || exit 1; "
            f"echo {each}; {ORC} network inspect n{number}x{each} >/dev/null || exit 2\n"
            for each in range(5)
        )
        with subprocess.Popen(
            ["sh", "-c", script], env=hosts.env, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline().strip() == "0"
            hosts.kill(number)
            writer.stdout.read()
            assert writer.wait(90) == 0, f"a command failed when manager {number} was killed"
        made += [f"n{number}x{each}" for each in range(5)]
        hosts.restart(number)
    listed = {row["name"] for row in json.loads(hosts.done("network", "ls", "--format", "json"))}
    assert set(made) <= listed


def a_stopped_manager_is_skipped(hosts: Clients) -> None:
    hosts.prefer(endpoint(2))
    hosts.kill(2, signal.SIGSTOP)
    try:
        began = time.monotonic()
        hosts.done("node", "ls")
        first = time.monotonic() - began
        began = time.monotonic()
        hosts.done("node", "ls")
        second = time.monotonic() - began
        assert second < first, f"it is tried last: {first:.2f} s, then {second:.2f} s"
        print(f"a stopped manager costs {first:.2f} s once, then {second:.2f} s")
    finally:
        hosts.kill(2, signal.SIGCONT)
    hosts.await_states(**EVERY_MANAGER)


def events_go_on(hosts: Clients) -> None:
    """Each event once, although its manager is lost."""
    hosts.prefer(endpoint(1))
    names = []
    with hosts.running("events", "--filter", "type=network", "--format", "{{.Action}} {{.Name}}"):

        def create(name: str) -> None:
            names.append(name)
            hosts.done("network", "create", name)

        def seen() -> bool:
            assert f"create {names[-1]}\n" in hosts.printed, hosts.printed
            return True

        def begun() -> bool:
            create(f"begun{len(names)}")
            return "create" in hosts.printed

        eventually(begun)
        eventually(seen)
        hosts.prefer(endpoint(3))
        hosts.kill(1)
        for each in range(3):
            create(f"after{each}")
        eventually(seen)
        lines = hosts.printed.splitlines()
    first = names.index(lines[0].partition(" ")[2])
    assert lines == [f"create {name}" for name in names[first:]], lines
    hosts.restart(1)


def a_balancer_in_front(hosts: Clients) -> None:
    """A context that knows only a load balancer's address learns the managers, and works while
    they are killed."""
    settings = hosts.folder / "haproxy.cfg"
    servers = "".join(
        f"  server m{number} {endpoint(number)} check inter 200ms\n" for number in (1, 2, 3)
    )
    settings.write_text(
        "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n"
        "  option redispatch\n"
        f"listen orc\n  bind 127.0.0.9:7420\n{servers}"
    )
    with subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", settings]) as balancer:
        try:
            fields: dict[str, Any] = json.loads(hosts.context.read_text())
            fields["endpoints"] = ["127.0.0.9:7420"]
            hosts.context.write_text(json.dumps(fields))
            hosts.prefer("127.0.0.9:7420")
            eventually(lambda: hosts.orc("node", "ls").returncode == 0)
            assert hosts.endpoints[0] == "127.0.0.9:7420"
            for number in (3, 1):
                hosts.prefer("127.0.0.9:7420")
                hosts.kill(number)
                hosts.done("network", "create", f"balanced{number}")
                hosts.daemons.pop(number).wait(60)
                hosts.start(number)
                eventually(lambda: hosts.orc("node", "ls").returncode == 0)
        finally:
            balancer.terminate()


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Clients(Path(sys.argv[1]))
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    for number in (2, 3):
        joined = hosts.join(number)
        assert joined.returncode == 0, joined.stderr
        hosts.start(number)
        hosts.await_states(**{f"m{each}": "ready" for each in range(1, number + 1)})
    a_context_learns_all_managers(hosts)
    writes_succeed_while_managers_are_killed(hosts)
    a_stopped_manager_is_skipped(hosts)
    events_go_on(hosts)
    a_balancer_in_front(hosts)


if __name__ == "__main__":
    main()
