# SPDX-License-Identifier: Apache-2.0
"""A whole dev cluster: bringing it up and taking it down.

Bringing up is a row of `ensure_*` steps, so that `up` after an interrupted `up`, or with more
nodes, does what is missing. Everything that is Orc's own happens by the `orc` command.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.daemon import bareprogram
from orchestrator.dev import hostcgroups, hostrole, underlay
from orchestrator.dev.devhost import Host, orc_command
from orchestrator.dev.devplan import (
    ClusterPlan,
    DevError,
    HostPlan,
    check_name,
    check_size,
    choose_subnet,
    is_host_cgroup,
)
from orchestrator.linux.atomicfile import write_file

ROOT = Path("/var/lib/orc-dev")
API_PORT, JOIN_PORT = 7420, 7421

Say = Callable[[str], None]
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A line of `orc dev status`."""

    host: str
    role: str
    address: str
    state: str
    pid: int | None
    daemon: str
    daemon_state: str
    daemon_pid: int | None
    restarts: int
    partitioned: bool
    log: str


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock for changes of a cluster (or, at the root, for the choice of a subnet)."""
    while True:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The last holder may have removed the folder: then this lock protects nothing.
            if not directory.exists() or not os.path.samestat(
                os.fstat(descriptor), directory.stat()
            ):
                continue
            yield
            return
        finally:
            os.close(descriptor)


class DevCluster:
    """A dev cluster by name, whether it is up or not.

    `orc` is the command line that stands for the `orc` command, `root` the folder of all clusters.
    """

    def __init__(
        self, name: str, root: Path = ROOT, orc: Sequence[str] = tuple(orc_command())
    ) -> None:
        self.name = check_name(name)
        self._command = orc
        self._root = root
        self._directory = root / name
        self._record = self._directory / "cluster.json"
        self._tag = self._directory / "tag"

    @property
    def tag(self) -> str:
        """Distinguishes it from clusters of its name in other root file systems. Empty when nothing
        was brought up."""
        try:
            return self._tag.read_text()
        except FileNotFoundError:
            return ""

    def _ensure_tag(self) -> None:
        """Choose the tag before anything is made with it, so that it can all be found again."""
        if not self.tag:
            draft = self._tag.with_suffix(".new")
            draft.write_text(secrets.token_hex(4))
            draft.replace(self._tag)

    @property
    def plan(self) -> ClusterPlan:
        """What was brought up. Raises DevError when nothing was."""
        plan = self._recorded()
        if plan is None:
            raise DevError(f"dev cluster {self.name!r} is not up: 'orc dev up' starts it")
        return plan

    def _recorded(self) -> ClusterPlan | None:
        try:
            return ClusterPlan.from_json(self._record.read_text(), self.tag)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DevError(
                f"{self._record} cannot be read ({error}): 'orc dev down' clears it away"
            ) from error

    def host(self, name: str) -> Host:
        """A host of the cluster. Raises DevError for a name that is not there."""
        return self._at(self.plan.host(name))

    def _at(self, plan: HostPlan) -> Host:
        return Host(plan, self._directory / plan.name)

    # ---- up

    def up(self, managers: int, nodes: int, say: Say, within: float = 120.0) -> ClusterPlan:
        """Bring up what is not up yet, and return when every node is ready.

        More hosts than before are added; fewer change nothing. Raises DevError with what failed.
        """
        check_size(managers, nodes)
        deadline = time.monotonic() + within
        with _locked(self._directory):
            self._ensure_tag()
            with underlay.locked():
                plan = self._ensure_plan(managers, nodes)
                underlay.ensure_switch(plan)
            hosts = [self._at(host) for host in plan.hosts]
            _parallel(lambda host: host.boot(plan), hosts)
            say(f"{len(hosts)} hosts on {plan.subnet} (this machine is {plan.gateway})")
            leading, workers = hosts[: plan.managers], hosts[plan.managers :]
            manager, others = leading[0], leading[1:]
            self._ensure_manager(plan, manager)
            token = self._token(plan, manager, deadline)
            say(f"manager at {manager.plan.address}:{API_PORT}, context {plan.name!r}")
            if others:
                self._ensure_other_managers(plan, manager, others)
            _parallel(lambda node: self._ensure_agent(plan, node, manager, token), workers)
            if others:
                self._await_managers(plan, leading, deadline)
                say(f"{len(leading)} managers ready")
            self._ensure_gateway(plan, manager)
            self._allow_all(plan, self._await_nodes(plan, workers, deadline))
            self._await_gateway(manager, deadline)
            say(f"Docker's API at unix://{self.docker_socket}")
            say("1 node ready" if len(workers) == 1 else f"{len(workers)} nodes ready")
        return plan

    def _ensure_plan(self, managers: int, nodes: int) -> ClusterPlan:
        plan = self._recorded()
        if plan is None:
            with _locked(self._root):
                used = [route.to for route in underlay.routes()]
                subnet = choose_subnet(self.name, [*used, *self._other_subnets()])
                plan = ClusterPlan(
                    name=self.name,
                    tag=self.tag,
                    subnet=subnet,
                    managers=managers,
                    nodes=nodes,
                    home=os.environ.get("HOME", "/root"),
                    config_home=os.environ.get("XDG_CONFIG_HOME"),
                )
                self._write(plan)
        elif nodes > plan.nodes or managers > plan.managers:
            plan = replace(
                plan, nodes=max(nodes, plan.nodes), managers=max(managers, plan.managers)
            )
            self._write(plan)
        return plan

    def _write(self, plan: ClusterPlan) -> None:
        write_file(self._record, plan.to_json(), mode=0o644)

    def _other_subnets(self) -> list[IPv4Network]:
        others = [DevCluster(name, self._root) for name in list_clusters(self._root)]
        plans = [other._recorded() for other in others]
        return [plan.subnet for plan in plans if plan is not None]

    def _ensure_manager(self, plan: ClusterPlan, manager: Host) -> None:
        address = str(manager.plan.address)
        flags = ["--data-dir", str(manager.data), "--advertise", address, "--context", plan.name]
        # A new context becomes the current one by itself.
        if not self._once(plan, manager, ["cluster", "init", *flags]):
            self._orc(plan, "context", "use", plan.name)
        self._start_daemon(manager)

    def _ensure_other_managers(
        self, plan: ClusterPlan, first: Host, others: Sequence[Host]
    ) -> None:
        """Join the managers after the first. etcd takes one learner at a time; the others wait."""
        token = self._orc(plan, "cluster", "token", "manager", "-q").strip()
        to = f"{first.plan.address}:{JOIN_PORT}"

        def join(host: Host) -> None:
            flags = ["--token", token, "--data-dir", str(host.data)]
            flags += ["--address", str(host.plan.address)]
            self._once(plan, host, ["cluster", "join", *flags, to], resumes=True)
            self._start_daemon(host)

        _parallel(join, others)

    def _await_managers(self, plan: ClusterPlan, managers: Sequence[Host], deadline: float) -> None:
        """Wait until every manager serves. The command also adds them to the context."""
        names = {manager.plan.name for manager in managers if not manager.partitioned}

        def ask() -> bool:
            rows = json.loads(self._orc(plan, "manager", "ls", "--format", "json"))
            waiting = names - {row["hostname"] for row in rows if row["state"] == "ready"}
            if waiting:
                raise DevError(f"waiting for {', '.join(sorted(waiting))}")
            return True

        _await(ask, deadline, managers, "not every manager is ready")

    def _ensure_agent(self, plan: ClusterPlan, node: Host, manager: Host, token: str) -> None:
        flags = ["--token", token, "--data-dir", str(node.data)]
        flags += ["--address", str(node.plan.address)]
        to = f"{manager.plan.address}:{JOIN_PORT}"
        self._once(plan, node, ["cluster", "join", *flags, to])
        self._start_daemon(node)

    def _once(
        self, plan: ClusterPlan, host: Host, arguments: Sequence[str], *, resumes: bool = False
    ) -> bool:
        """Run an `orc` command in a host that must succeed exactly once in its disk's life.

        False if it did so before. `resumes`: it continues an interrupted attempt by itself.
        """
        marker = host.directory / "enrolled"
        if marker.exists():
            return False
        if not resumes:
            # What an interrupted attempt left is half of something.
            shutil.rmtree(host.data)
            host.data.mkdir(mode=0o700)
        argv = host.enter([*self._command, *arguments])
        _run(argv, _user_environment(plan), f"orc {' '.join(arguments[:2])}")
        marker.touch()
        return True

    def _start_daemon(self, host: Host, flags: Sequence[str] = ()) -> None:
        command = [*self._command, host.plan.daemon, "--data-dir", str(host.data)]
        if host.plan.role == "node":
            command += ["--run-dir", "/run/orc", "--cgroup-parent", f"/{host.plan.cgroup}"]
            role = bareprogram.command("orchestrator.dev.hostrole")
            promotion = [*role, str(host.directory), *self._command, "--"]
            command += ["--manager-command", shlex.join(promotion)]
        host.start([*command, *flags])
        if (host.directory / hostrole.DATA / "manager.json").exists():
            # It was promoted.
            manager = ["manager", "--data-dir", str(host.directory / hostrole.DATA)]
            host.start([*self._command, *manager], daemon="manager")

    @property
    def docker_socket(self) -> Path:
        """Of the gateway for Docker's clients, which runs beside the first manager."""
        return self._directory / "docker.sock"

    def _ensure_gateway(self, plan: ClusterPlan, manager: Host) -> None:
        command = ["docker-api", "--context", plan.name, "--socket", str(self.docker_socket)]
        manager.start([*self._command, *command], _user_environment(plan), daemon="docker-api")

    def _await_gateway(self, manager: Host, deadline: float) -> None:
        def ask() -> bool | None:
            return self.docker_socket.exists() or None

        _await(ask, deadline, [manager], "Docker's API is not served")

    def _token(self, plan: ClusterPlan, manager: Host, deadline: float) -> str:
        def ask() -> str | None:
            # A connection is cheap to try; the command is a whole interpreter.
            with socket.create_connection((str(manager.plan.address), API_PORT), timeout=1.0):
                pass
            return self._orc(plan, "cluster", "token", "worker", "-q").strip() or None

        return _await(ask, deadline, [manager], "the manager does not answer")

    def _await_nodes(
        self, plan: ClusterPlan, workers: Sequence[Host], deadline: float
    ) -> list[dict[str, Any]]:
        """Wait until every node is ready; return the nodes, as `orc node ls` has them."""
        names = {worker.plan.name for worker in workers if not worker.partitioned}

        def ask() -> list[dict[str, Any]]:
            nodes: list[dict[str, Any]] = json.loads(
                self._orc(plan, "node", "ls", "--format", "json")
            )
            ready = {n["hostname"] for n in nodes if str(n["state"]).lower() == "ready"}
            if names <= ready:
                return nodes
            raise DevError(f"waiting for {', '.join(sorted(names - ready))}")

        return _await(ask, deadline, workers, "not every node is ready")

    def _allow_all(self, plan: ClusterPlan, nodes: Sequence[dict[str, Any]]) -> None:
        """Permit privileged settings on new nodes: it is a developer's own machine."""
        new = [node["id"] for node in nodes if not node["allowed"]]
        _parallel(lambda id: self._orc(plan, "node", "update", "--allow", "all", id), new)

    def _orc(self, plan: ClusterPlan, *arguments: str) -> str:
        env = _user_environment(plan) | {"ORC_CONTEXT": plan.name}
        return _run([*self._command, *arguments], env, f"orc {' '.join(arguments[:2])}")

    # ---- hosts

    @contextmanager
    def _changing(self) -> Iterator[None]:
        _ = self.plan  # a cluster that is not up has no folder, and shall get none
        with _locked(self._directory):
            yield

    def start(self, name: str, flags: Sequence[str] = ()) -> None:
        """Boot a host that is off, and start its daemon with further `flags`. No change if both
        run."""
        with self._changing():
            host = self.host(name)
            with underlay.locked():
                underlay.ensure_switch(self.plan)
            host.boot(self.plan)
            self._start_daemon(host, flags)
            if name == self.plan.hosts[0].name:
                self._ensure_gateway(self.plan, host)

    def stop(self, name: str) -> None:
        """Stop a host's daemon and keep it stopped; the host and its containers run on."""
        with self._changing():
            self.host(name).stop()

    def kill(self, name: str) -> None:
        """A power loss of one host."""
        with self._changing():
            self.host(name).power_off()

    def partition(self, names: Sequence[str]) -> None:
        """Cut hosts off from all others and from the machine; they still reach each other."""
        with self._changing():
            hosts = [self.host(name) for name in names]
            for host in hosts:
                host.partition([other.plan.address for other in hosts])

    def heal(self) -> None:
        """End every partition."""
        with self._changing():
            _parallel(Host.heal, [self._at(host) for host in self.plan.hosts])

    def status(self) -> list[HostStatus]:
        """Every host, as it is at this moment."""
        return _parallel(_host_status, [self._at(host) for host in self.plan.hosts])

    # ---- down

    def down(self) -> bool:
        """Remove every trace, whatever state it is in. False if there was none."""
        if not self._directory.exists() and not underlay.exists(self.name, self.tag):
            return False
        with _locked(self._directory):
            try:
                plan = self._recorded()
            except DevError:
                plan = None
            _parallel(Host.remove, [self._found(d) for d in _folders(self._directory)])
            hostcgroups.thaw(self._is_own_cgroup)
            hostcgroups.remove_cgroups(self._is_own_cgroup)
            with underlay.locked():
                underlay.remove_switch(self.name, self.tag)
            if plan is not None:
                self._forget_context(plan)
            shutil.rmtree(self._directory)
        self._remove_root()
        return True

    def _found(self, directory: Path) -> Host:
        # Its role and address do not matter to its removal, and its record may be lost.
        plan = HostPlan(self.name, directory.name, "node", IPv4Address(0), self.tag)
        return Host(plan, directory)

    def _is_own_cgroup(self, directory: str) -> bool:
        return is_host_cgroup(self.name, self.tag, directory)

    def _forget_context(self, plan: ClusterPlan) -> None:
        """Remove the admin context that `cluster init` made, and go back to the one that was in use
        before; it is fine if the user did."""
        argv = [*self._command, "context", "rm", "--back", plan.name]
        env = {**os.environ, **_user_environment(plan)}
        subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)

    def _remove_root(self) -> None:
        try:
            self._root.rmdir()
        except OSError:
            return  # Another cluster is in it, or it is not there.


def list_clusters(root: Path = ROOT) -> list[str]:
    """Names of all dev clusters on this machine, up or half-way."""
    return [folder.name for folder in _folders(root)]


def _folders(directory: Path) -> list[Path]:
    if not directory.exists():
        return []
    return sorted(entry for entry in directory.iterdir() if entry.is_dir())


def _host_status(host: Host) -> HostStatus:
    pid = host.pid()
    daemon = host.daemons().get(host.plan.daemon) if pid is not None else None
    return HostStatus(
        host=host.plan.name,
        role=host.plan.role,
        address=str(host.plan.address),
        state="off" if pid is None else "on",
        pid=pid,
        daemon=host.plan.daemon,
        daemon_state=daemon.state if daemon else "stopped",
        daemon_pid=daemon.pid if daemon else None,
        restarts=daemon.restarts if daemon else 0,
        partitioned=host.partitioned,
        log=str(host.log),
    )


def _parallel(act: Callable[[U], T], each: Sequence[U]) -> list[T]:
    """Call for each at once; the first error is raised after all have ended."""
    if not each:
        return []
    with ThreadPoolExecutor(max_workers=min(16, len(each))) as pool:
        return list(pool.map(act, each))


def _await(ask: Callable[[], T | None], deadline: float, hosts: Sequence[Host], what: str) -> T:
    """Ask until the answer is not None. Raises DevError that points at the hosts' logs."""
    while True:
        reason = ""
        try:
            answer = ask()
            if answer is not None:
                return answer
        except (OSError, DevError, ValueError, KeyError) as error:
            reason = f" ({error})"
        if time.monotonic() > deadline:
            logs = ", ".join(str(host.log) for host in hosts[:3])
            raise DevError(f"{what}{reason}: see {logs}")
        time.sleep(0.05)


def _user_environment(plan: ClusterPlan) -> dict[str, str]:
    env = {"HOME": plan.home}
    if plan.config_home is not None:
        env["XDG_CONFIG_HOME"] = plan.config_home
    return env


def _run(argv: Sequence[str], env: Mapping[str, str], what: str) -> str:
    done = subprocess.run(
        argv,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise DevError(f"{what}: {reason}")
    return done.stdout
