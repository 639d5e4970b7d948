# SPDX-License-Identifier: Apache-2.0
"""The life of a cluster's managers: real commands, daemons and etcd, on loopback addresses of
a network namespace of its own. Usage: managerjoins.py FOLDER"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ORC = str(Path(sys.executable).with_name("orc"))
INTERRUPTED = """
import os, pathlib, signal, sys
from orchestrator.cli.main import main
left, replace = int(sys.argv.pop(1)), pathlib.Path.replace
def counted(self, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
pathlib.Path.replace = counted
main()
"""
"""`orc`, killed right before its n-th file is in place."""


def eventually(ask: Callable[[], T], within: float = 90.0) -> T:
    """The first true answer. An AssertionError is an answer that may change."""
    end = time.monotonic() + within
    while True:
        wrong: AssertionError | None = None
        try:
            if answer := ask():
                return answer
        except AssertionError as error:
            wrong = error
        if time.monotonic() > end:
            raise wrong or AssertionError("it never came true")
        time.sleep(0.2)


class Hosts:
    """Managers at 127.0.0.N, each with its data folder, and an admin."""

    def __init__(self, folder: Path, flags: tuple[str, ...] = ()) -> None:
        """`flags` are of all managers."""
        self.folder = folder
        self.flags = flags
        self.env = {**os.environ, "XDG_CONFIG_HOME": str(folder / "config")}
        self.daemons: dict[int, subprocess.Popen[bytes]] = {}

    def data(self, number: int) -> Path:
        return self.folder / f"m{number}"

    def orc(self, *arguments: object, program: tuple[str, ...] = (ORC,)) -> Any:
        return subprocess.run(
            [*program, *map(str, arguments)],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )

    def done(self, *arguments: object) -> str:
        ended = self.orc(*arguments)
        assert ended.returncode == 0, f"orc {arguments}: {ended.stderr}"
        return str(ended.stdout)

    def refused(self, *arguments: object) -> str:
        ended = self.orc(*arguments)
        assert ended.returncode == 1, f"orc {arguments} was not refused: {ended.stdout}"
        return str(ended.stderr)

    def start(self, number: int) -> None:
        with (self.folder / f"m{number}.log").open("ab") as log:
            self.daemons[number] = subprocess.Popen(
                [ORC, "manager", "--data-dir", self.data(number), *self.flags],
                env=self.env,
                stderr=log,
            )

    def power_off(self, number: int) -> None:
        """Kill a manager with its etcd, as a power loss does."""
        self.daemons.pop(number).kill()
        for pid in etcd_of(self.data(number)):
            os.kill(pid, signal.SIGKILL)

    def join(
        self, number: int, program: tuple[str, ...] = (ORC,), at: str = "127.0.0.1:7421"
    ) -> Any:
        token = self.done("cluster", "token", "manager", "-q").strip()
        flags = ("--token", token, "--address", f"127.0.0.{number}")
        return self.orc(
            *("cluster", "join", *flags, "--data-dir", self.data(number), at),
            program=program,
        )

    def managers(self) -> dict[str, dict[str, Any]]:
        rows = json.loads(self.done("manager", "ls", "--format", "json"))
        return {row["address"].partition(":")[0]: row for row in rows}

    def await_states(self, **wanted: str) -> None:
        """Wait until exactly these managers are listed, by `mN=STATE`."""
        expected = {f"127.0.0.{name[1:]}": state for name, state in wanted.items()}

        def ask() -> bool:
            states = {address: row["state"] for address, row in self.managers().items()}
            assert states == expected, states
            return True

        eventually(ask)


def etcd_of(data: Path) -> list[int]:
    argument = f"--data-dir={data / 'etcd' / 'data'}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if argument in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def peer_answers(address: str, folder: Path, name: str) -> bool:
    """Whether the etcd there accepts a host as a peer, by its certificate in a folder."""
    tls = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    tls.check_hostname = False
    tls.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    connection = http.client.HTTPSConnection(address, 7425, context=tls, timeout=10)
    try:
        connection.request("GET", "/members")
        return connection.getresponse().status == 200
    except (ssl.SSLError, ConnectionError):
        return False
    finally:
        connection.close()


def a_join_killed_at_each_file(hosts: Hosts) -> None:
    for number in range(1, 40):
        ended = hosts.join(2, (sys.executable, "-c", INTERRUPTED, str(number)))
        assert "127.0.0.1" in hosts.managers(), "the cluster serves"
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert number > 5, "it was killed at several files"
    assert hosts.managers()["127.0.0.2"]["state"] == "joining"


def a_learner_killed_before_its_promotion(hosts: Hosts) -> None:
    hosts.start(2)
    eventually(lambda: etcd_of(hosts.data(2)))
    hosts.power_off(2)
    hosts.start(2)
    hosts.await_states(m1="ready", m2="ready")


def a_join_undone(hosts: Hosts) -> None:
    """Removed while it joins, repeated, and joined."""
    assert hosts.join(3).returncode == 0
    begun = hosts.managers()["127.0.0.3"]
    assert begun["state"] == "joining"
    hosts.done("manager", "rm", begun["id"])
    hosts.await_states(m1="ready", m2="ready")
    again = hosts.join(3)
    assert again.returncode == 0, again.stderr
    hosts.start(3)
    hosts.await_states(m1="ready", m2="ready", m3="ready")
    assert hosts.managers()["127.0.0.3"]["id"] != begun["id"]


def only_managers_are_peers(hosts: Hosts) -> None:
    node = hosts.folder / "node"
    token = hosts.done("cluster", "token", "worker", "-q").strip()
    hosts.done("cluster", "join", "--token", token, "--data-dir", node, "127.0.0.2:7421")
    for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
        assert peer_answers(address, hosts.data(1), "manager")
        assert not peer_answers(address, node, "node")
    for number in (2, 3):
        for name in ("ca.key", "cluster.key", "manager.key"):
            mode = (hosts.data(number) / name).stat().st_mode & 0o777
            assert mode == 0o600, f"{name} has the mode {mode:o}"


def a_quorum_is_kept(hosts: Hosts) -> None:
    hosts.power_off(3)
    hosts.await_states(m1="ready", m2="ready", m3="down")
    said = hosts.refused("manager", "rm", "127.0.0.2")
    assert "2 managers, which need 2 healthy ones for a quorum, and 1 is healthy" in said, said
    hosts.done("manager", "rm", "127.0.0.3")
    hosts.await_states(m1="ready", m2="ready")
    hosts.start(3)
    assert hosts.daemons.pop(3).wait(60) == 1, "a manager that was removed ends"
    log = (hosts.folder / "m3.log").read_text()
    assert "this manager was removed from the cluster" in log, log
    assert not (hosts.data(3) / "ca.key").exists()


def another_address(hosts: Hosts) -> None:
    hosts.daemons[2].terminate()
    hosts.daemons.pop(2).wait(60)
    hosts.done("cluster", "advertise", "--data-dir", hosts.data(2), "127.0.0.4")
    hosts.start(2)


def a_manager_leaves(hosts: Hosts) -> None:
    hosts.done("cluster", "leave", "--data-dir", hosts.data(2))
    hosts.await_states(m1="ready")
    said = hosts.refused("manager", "rm", "127.0.0.1")
    assert "the only manager" in said, said
    assert hosts.daemons.pop(2).wait(60) in (0, 1)
    assert not (hosts.data(2) / "ca.key").exists()
    assert not etcd_of(hosts.data(2))


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    hosts = Hosts(Path(sys.argv[1]))
    init = ("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    hosts.done(*init)
    hosts.start(1)
    eventually(lambda: hosts.orc("manager", "ls").returncode == 0)
    hosts.await_states(m1="ready")
    a_join_killed_at_each_file(hosts)
    a_learner_killed_before_its_promotion(hosts)
    a_join_undone(hosts)
    only_managers_are_peers(hosts)
    a_quorum_is_kept(hosts)
    another_address(hosts)
    hosts.await_states(m1="ready", m4="ready")
    a_manager_leaves(hosts)


if __name__ == "__main__":
    main()
