# SPDX-License-Identifier: Apache-2.0
"""One dev host with real namespaces: its power, its init, its daemon, its network."""

from __future__ import annotations

import os
import secrets
import select
import signal
import subprocess
from contextlib import ExitStack
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from devtraces import until

from orchestrator.dev import underlay
from orchestrator.dev.devcluster import ROOT, DevCluster
from orchestrator.dev.devhost import DaemonStatus, Host
from orchestrator.dev.devplan import ClusterPlan, DevError, choose_subnet

pytestmark = pytest.mark.root


@pytest.fixture
def plan(cluster: DevCluster) -> ClusterPlan:
    """Of a cluster with a switch and no host that is on; `cluster` removes what is made."""
    (ROOT / cluster.name).mkdir(parents=True)
    (ROOT / cluster.name / "tag").write_text(secrets.token_hex(4))
    subnet = choose_subnet(cluster.name, [route.to for route in underlay.routes()])
    plan = ClusterPlan(cluster.name, subnet, 1, 2, "/root", None, cluster.tag)
    with underlay.locked():
        underlay.ensure_switch(plan)
    return plan


def host_of(plan: ClusterPlan, name: str) -> Host:
    return Host(plan.host(name), ROOT / plan.name / name)


@pytest.fixture
def host(plan: ClusterPlan) -> Host:
    """node1, switched on."""
    host = host_of(plan, "node1")
    host.boot(plan)
    return host


def sh(host: Host, script: str) -> str:
    argv = host.enter(["/bin/sh", "-c", script])
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def pids_in(host: Host) -> list[int]:
    """The machine's pids of all processes of a host."""
    namespace = os.stat(f"/proc/{host.pid()}/ns/pid").st_ino
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(entry / "ns/pid").st_ino == namespace:
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return found


def daemon(host: Host) -> DaemonStatus:
    return host.daemons()["agent"]


def test_a_host_has_its_own_name_processes_run_and_network(plan: ClusterPlan, host: Host) -> None:
    assert sh(host, "hostname") == "node1"
    assert sh(host, "readlink /proc/self | wc -l; ls -d /proc/[0-9]* | wc -l").split()[0] == "1"
    assert "hostinit" in sh(host, "tr '\\0' ' ' </proc/1/cmdline")
    assert sh(host, "ls /run").split() == ["lock", "proc"]
    assert f"{host.plan.address}/24" in sh(host, "ip -br -4 address show eth0")
    assert sh(host, "ip route show default") == f"default via {plan.gateway} dev eth0"


def test_mounts_in_a_host_are_private(host: Host) -> None:
    sh(host, "mount -t tmpfs tmpfs /mnt && touch /mnt/here && touch /run/here")
    # Other processes mount on this machine, too: the mount is looked for by its path.
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    assert "/mnt" not in {line.split()[4] for line in lines}
    assert not Path("/mnt/here").exists()
    assert not Path("/run/here").exists()
    assert sh(host, "ls /mnt") == "here"


def test_mounts_beside_cgroup_hierarchies_stay_in_the_host(host: Host) -> None:
    folder = Path("/sys/fs/cgroup")
    hierarchies = "grep -c ' /sys/fs/cgroup/[^ ]* .* - cgroup' /proc/self/mountinfo || true"
    machine = subprocess.run(["/bin/sh", "-c", hierarchies], capture_output=True, text=True).stdout
    assert sh(host, hierarchies) == machine.strip()
    sh(host, f"umount {folder}/unified && mkdir {folder}/unified/{host.plan.cgroup} || true")
    # In a namespace of its own, look at what the mount hides.
    look = f"umount {folder}/unified 2>/dev/null; ls {folder}/unified 2>/dev/null || true"
    seen = subprocess.run(["unshare", "-m", "sh", "-c", look], capture_output=True, text=True)
    assert host.plan.cgroup not in seen.stdout.split()


def test_booting_twice_is_a_no_op(plan: ClusterPlan, host: Host) -> None:
    pid = host.pid()
    assert host.boot(plan) == pid


def test_killed_daemon_is_restarted_and_orphans_are_reaped(host: Host) -> None:
    # The daemon leaves an orphan behind that ends soon after: init must reap it.
    host.start(["/bin/sh", "-c", "(sleep 0.05 &); exec sleep 3600"])
    first = daemon(host).pid
    host.signal(signal.SIGKILL)
    again = until(lambda: (d := daemon(host)).pid not in (None, first) and d)
    assert isinstance(again, DaemonStatus)
    assert (again.restarts, again.last_exit, again.state) == (1, -9, "running")
    # Zombies count, too.
    until(lambda: sh(host, "cat /proc/[0-9]*/comm 2>/dev/null | grep -cx sleep || true") == "1")


def test_crashing_daemon_is_restarted_with_backoff(host: Host) -> None:
    host.start(["/bin/false"])
    # Pauses of 0.1, 0.2 and 0.4 s: within a second there is no fourth restart.
    until(lambda: daemon(host).restarts >= 3)
    assert daemon(host).last_exit == 1
    host.start(["/nowhere/at/all"])
    until(lambda: daemon(host).last_exit == 127)
    assert "cannot start" in (host.log.parent / "init.log").read_text()


def test_stop_is_sigterm_and_final_until_start(host: Host) -> None:
    argv = ["/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.01; done"]
    host.start(argv)
    until(lambda: daemon(host).pid)
    host.stop()
    assert (daemon(host).state, daemon(host).last_exit) in (("stopped", 0), ("stopped", -15))
    host.stop()
    host.start(argv)
    assert daemon(host).state == "running"


def test_daemon_that_ignores_sigterm_is_killed_after_the_grace_period(host: Host) -> None:
    host.start(["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    until(lambda: host.log.exists() and "ready" in host.log.read_text())
    host.stop(grace=0.1)
    assert daemon(host).last_exit == -9


def test_invalid_request_to_init_is_answered(host: Host) -> None:
    with pytest.raises(DevError, match="KeyError"):
        host.signal(signal.SIGTERM)
    assert host.daemons() == {}


def test_power_loss_kills_processes_and_keeps_the_disk(plan: ClusterPlan, host: Host) -> None:
    host.start(["/bin/sleep", "3600"])
    sh(host, f"setsid sleep 3601 >/dev/null 2>&1 & echo kept > {host.data}/file")
    boot_id = sh(host, "cat /proc/sys/kernel/random/boot_id")
    with ExitStack() as stack:
        processes = [os.pidfd_open(pid) for pid in pids_in(host)]
        for descriptor in processes:
            stack.callback(os.close, descriptor)
        assert len(processes) == 3  # init, the daemon, and what left its session
        assert not select.select(processes, [], [], 0)[0]
        host.power_off()
        assert len(select.select(processes, [], [], 0)[0]) == 3
    assert host.pid() is None
    with pytest.raises(DevError, match="orc dev start node1"):
        host.enter(["true"])
    with pytest.raises(DevError, match="is off"):
        host.daemons()
    host.power_off()

    host.boot(plan)
    assert host.daemons() == {}
    assert (host.data / "file").read_text() == "kept\n"
    assert sh(host, "cat /proc/sys/kernel/random/boot_id") not in ("", boot_id)
    machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert machine not in (boot_id, sh(host, "cat /proc/sys/kernel/random/boot_id"))


def test_power_loss_removes_cgroups_with_frozen_processes(host: Host) -> None:
    cgroup = Path("/sys/fs/cgroup/freezer", host.plan.cgroup, "container")
    if not cgroup.parent.parent.exists():  # pure cgroup v2
        cgroup = Path("/sys/fs/cgroup", host.plan.cgroup, "container")
    sh(
        host,
        f"mkdir -p {cgroup}; exec >/dev/null 2>&1;"
        f"sh -c 'echo $$ >{cgroup}/cgroup.procs; exec sleep 3600' &",
    )
    until(lambda: (cgroup / "cgroup.procs").read_text())
    frozen = cgroup / "freezer.state"
    if frozen.exists():
        frozen.write_text("FROZEN")
    else:
        (cgroup / "cgroup.freeze").write_text("1")
    host.power_off()
    assert host.pid() is None
    assert not cgroup.parent.exists()


def answers(host: Host, address: IPv4Address) -> bool:
    """Whether a host gets an answer from an address: a refused connection is one."""
    script = f"""
import socket
try:
    socket.create_connection(("{address}", 9), timeout=0.3)
except ConnectionRefusedError:
    print("yes")
except OSError:
    print("no")
"""
    done = subprocess.run(
        host.enter(["/usr/bin/python3", "-I", "-S", "-c", script]),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() == "yes"


def test_partition_isolates_its_members_and_survives_a_reboot(
    plan: ClusterPlan, host: Host
) -> None:
    other, manager = host_of(plan, "node2"), host_of(plan, "manager1")
    other.boot(plan)
    manager.boot(plan)
    assert answers(host, other.plan.address)
    assert answers(host, manager.plan.address)
    assert answers(host, plan.gateway)

    host.partition([host.plan.address, other.plan.address])
    assert answers(host, other.plan.address)
    assert not answers(host, manager.plan.address)
    assert not answers(manager, host.plan.address)
    assert not answers(host, plan.gateway)

    host.partition([])
    assert not answers(host, other.plan.address)
    host.power_off()
    host.boot(plan)
    assert host.partitioned
    assert not answers(host, manager.plan.address)

    host.heal()
    host.heal()
    assert not host.partitioned
    assert answers(host, manager.plan.address)
