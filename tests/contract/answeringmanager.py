# SPDX-License-Identifier: Apache-2.0
"""The manager that answers a joining one is killed at a step of the join: real commands, daemons
and etcd, on loopback addresses of a network namespace. Usage: answeringmanager.py FOLDER STEP HOW

HOW is `repeated` or `undone`, which is what is done with the join afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from managerjoins import ORC, Hosts, etcd_of, eventually

STEPS = {
    "before the certificate": "manager.security.joining:JoinService.Sign:before",
    "after the certificate": "manager.security.joining:JoinService.Sign:after",
    "before the record": "manager.cluster.enrolment:Enrolment._recorded:before",
    "after the record": "manager.cluster.enrolment:Enrolment._recorded:after",
    "while etcd opens to peers": "manager.store.etcd_member:EtcdMember.open_to_peers:before",
    "after etcd has opened to peers": "manager.store.etcd_member:EtcdMember.open_to_peers:after",
    "after the learner was added": "manager.cluster.enrolment:Enrolment._added:after",
    "before the reply": "manager.cluster.enrolment:Enrolment.enroll:after",
    "before the promotion": "manager.store.etcd_membership:EtcdMembership.promote:before",
    "after the promotion": "manager.store.etcd_membership:EtcdMembership.promote:after",
}
"""Step → module, coroutine function, and the side of it at which the manager is killed."""
UNDONE = (
    "after the record",
    "while etcd opens to peers",
    "after the learner was added",
    "before the reply",
    "after the promotion",
)
"""Steps after which the cluster knows the joining manager."""
PATIENCE = 300.0
"""Seconds that anything may take."""

KILLED = """
import importlib, os, signal, sys
from orchestrator.cli.main import main
module, path, side = sys.argv.pop(1).split(":")
kind, name = path.split(".")
owner = getattr(importlib.import_module(f"orchestrator.{module}"), kind)
function = getattr(owner, name)
async def killed(*arguments, **named):
    if side == "after":
        await function(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
main()
"""
"""`orc`, killed at a step."""


class KilledHosts(Hosts):
    """Managers, of which the first one is killed at a step."""

    def __init__(self, folder: Path, step: str) -> None:
        super().__init__(folder)
        self._step = STEPS[step]

    def start_to_be_killed(self) -> None:
        with (self.folder / "m1.log").open("ab") as log:
            self.daemons[1] = subprocess.Popen(
                [
                    *(sys.executable, "-c", KILLED, self._step),
                    *("manager", "--data-dir", str(self.data(1)), *self.flags),
                ],
                env=self.env,
                stderr=log,
            )
        eventually(self.serves, PATIENCE)

    def serves(self) -> bool:
        return self.orc("manager", "ls").returncode == 0

    def await_ready(self, *numbers: int) -> None:
        """Wait until exactly these managers are listed, and all are ready."""
        expected = {f"127.0.0.{number}": "ready" for number in numbers}

        def ask() -> bool:
            states = {address: row["state"] for address, row in self.managers().items()}
            assert states == expected, states
            return True

        eventually(ask, PATIENCE)

    def begin_join(self) -> subprocess.Popen[str]:
        token = self.done("cluster", "token", "manager", "-q").strip()
        return subprocess.Popen(
            [
                *(ORC, "cluster", "join", "--token", token, "--address", "127.0.0.2"),
                *("--data-dir", str(self.data(2)), "127.0.0.1:7421"),
            ],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def await_death(self) -> None:
        assert self.daemons.pop(1).wait(PATIENCE) == -signal.SIGKILL


def a_join_is_repeated(hosts: KilledHosts, promotes: bool) -> None:
    """Its process and etcd live on; it goes on with the restarted manager, or is repeated."""
    hosts.start_to_be_killed()
    join = hosts.begin_join()
    if promotes:
        assert join.wait(PATIENCE) == 0
        hosts.start(2)
    hosts.await_death()
    hosts.start(1)
    eventually(hosts.serves, PATIENCE)
    said, _ = join.communicate(timeout=PATIENCE)
    if join.returncode != 0:
        assert "Traceback" not in said, said
        assert len(said.splitlines()) == 1, said
        again = hosts.join(2)
        assert again.returncode == 0, again.stderr
    if not promotes:
        hosts.start(2)
    hosts.await_ready(1, 2)
    for name in ("ca.key", "cluster.key"):
        own, copy = hosts.data(1) / name, hosts.data(2) / name
        assert own.read_text() == copy.read_text()
        assert copy.stat().st_mode & 0o777 == 0o600


def a_join_is_undone(hosts: KilledHosts, promotes: bool) -> None:
    """All of it is killed, and the manager is removed as far as it is known."""
    hosts.start_to_be_killed()
    join = hosts.begin_join()
    if promotes:
        assert join.wait(PATIENCE) == 0
        hosts.start(2)
    hosts.await_death()
    join.kill()
    join.communicate()
    if promotes:
        hosts.daemons.pop(2).kill()
    for number in (1, 2):
        for pid in etcd_of(hosts.data(number)):
            os.kill(pid, signal.SIGKILL)
    hosts.start(1)
    if promotes:
        # It may be a member that votes by now, and then there is no quorum without it.
        hosts.start(2)
    eventually(hosts.serves, PATIENCE)
    if begun := hosts.managers().get("127.0.0.2"):
        hosts.done("manager", "rm", begun["id"])
    hosts.await_ready(1)
    if promotes:
        assert hosts.daemons.pop(2).wait(PATIENCE) == 1
    joined = hosts.join(2)
    assert joined.returncode == 0, joined.stderr
    hosts.start(2)
    hosts.await_ready(1, 2)


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder, step, how = sys.argv[1:]
    hosts = KilledHosts(Path(folder), step)
    hosts.done("cluster", "init", "--advertise", "127.0.0.1", "--data-dir", hosts.data(1))
    proceed = a_join_is_repeated if how == "repeated" else a_join_is_undone
    proceed(hosts, "promotion" in step)


if __name__ == "__main__":
    main()
