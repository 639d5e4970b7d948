# SPDX-License-Identifier: Apache-2.0
"""The flags of a container, read back from the process that runs, in /proc and the cgroup."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = pytest.mark.root

IDLE = "while :; do sleep 1; done"
BUSY = "while :; do :; done"


def status(cluster: Cluster, task: Mapping[str, Any]) -> dict[str, str]:
    """Of the task's first process, as its host sees it."""
    text = cluster.exec(task["node"], "cat", f"/proc/{task['pid']}/status").stdout
    return {key: value.strip() for key, _, value in (x.partition(":") for x in text.splitlines())}


def cgroup(cluster: Cluster, task: Mapping[str, Any], file: str) -> str:
    """A file of the task's cgroup: `CONTROLLER/FILE` of version 1."""
    controller, _, name = file.partition("/")
    lines = cluster.exec(task["node"], "cat", f"/proc/{task['pid']}/cgroup").stdout.splitlines()
    path = next(
        path
        for _, names, path in (line.split(":", 2) for line in lines)
        if controller in names.split(",") or not names
    )
    place = Path("/sys/fs/cgroup", controller) if controller else Path("/sys/fs/cgroup")
    text = cluster.exec(task["node"], "cat", f"{place}{path}/{name}").stdout
    return text.strip()


def logs(cluster: Cluster, service: str, lines: int) -> list[str]:
    """The log of a service, once it has so many lines."""

    def ask() -> list[str]:
        found = cluster.orc("service", "logs", "--raw", service).stdout.splitlines()
        assert len(found) >= lines, found
        return found

    return eventually(ask)


def first_id(cluster: Cluster, task: Mapping[str, Any]) -> int:
    """The host's id of the task's root."""
    text = cluster.exec(task["node"], "cat", f"/proc/{task['pid']}/uid_map").stdout
    return int(text.split()[1])


def test_names_and_limits(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    variables = tmp_path / "env"
    variables.write_text("# no variable\nFROM_FILE=yes\n")
    text = (
        "hostname; cat /proc/sys/kernel/domainname; pwd; echo $FROM_FILE; cat /etc/resolv.conf; "
        "grep db.example /etc/hosts; cat /proc/sys/net/core/somaxconn; "
        "cat /proc/sys/kernel/msgmax; ulimit -n; ulimit -Hn; cat /proc/1/oom_score_adj; "
        f"id -G; grep ' /dev/shm ' /proc/mounts; grep ' /scratch ' /proc/mounts; echo end; {IDLE}"
    )
    (task,) = cluster.script(
        "flags", hello, text,
        "--hostname", "box", "--domainname", "example.org", "--workdir", "/srv",
        "--env-file", str(variables), "--dns", "192.0.2.1", "--dns-search", "example.org",
        "--dns-option", "ndots:2", "--host", "db.example:192.0.2.7",
        "--sysctl", "net.core.somaxconn=77", "--sysctl", "kernel.msgmax=9000",
        "--ulimit", "nofile=200:300", "--oom-score-adj", "500", "--group-add", "44",
        "--shm-size", "8m", "--tmpfs", "/scratch:size=4m,mode=700",
        "--cpus", "0.5", "--limit-memory", "64m", "--memory-swap", "96m", "--pids-limit", "55",
        "--cpuset-cpus", "1", "--cpu-shares", "300",
    )  # fmt: skip
    found = logs(cluster, "flags", 17)
    assert found[:4] == ["box", "example.org", "/srv", "yes"]
    # The network's own name server asks 192.0.2.1 what no network knows.
    assert found[4].startswith("nameserver 10.128.")
    assert found[5:7] == ["search example.org", "options ndots:2"]
    assert found[7].split() == ["192.0.2.7", "db.example"]
    assert found[8:13] == ["77", "9000", "200", "300", "500"]
    assert found[13].split() == ["0", "44"]
    assert "size=8192k" in found[14]
    assert "size=4096k" in found[15]
    assert "mode=700" in found[15]
    assert status(cluster, task)["Cpus_allowed_list"] == "1"
    assert cgroup(cluster, task, "cpu/cpu.cfs_quota_us") == "50000"
    assert cgroup(cluster, task, "cpu/cpu.shares") == "300"
    assert cgroup(cluster, task, "memory/memory.limit_in_bytes") == str(64 << 20)
    assert cgroup(cluster, task, "memory/memory.memsw.limit_in_bytes") == str(96 << 20)
    assert cgroup(cluster, task, "pids/pids.max") == "55"


def test_privileges(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    profile = tmp_path / "seccomp.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW",'
        ' "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    # With NET_ADMIN it may change the network, which is its own users'.
    text = (
        "ls -l /dev/fuse; cat /proc/1/comm; touch /x 2>&1; mkdir /scratch/y 2>&1; "
        f"ip link add dummy0 type dummy 2>&1 || ip link set lo down && echo network; {IDLE}"
    )
    (task,) = cluster.script(
        "caps", hello, text,
        "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--read-only", "--init",
        "--tmpfs", "/scratch", "--device", "/dev/full:/dev/fuse:r",
        "--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges=false",
    )  # fmt: skip
    eventually(lambda: logs(cluster, "caps", 5)[-1] == "network")
    found = logs(cluster, "caps", 5)
    assert re.match(r"crw-rw-rw- +1 0 +0 +1, +7 .* /dev/fuse", found[0])
    assert found[1] == "init"
    assert "Read-only file system" in found[2]
    assert "Operation not permitted" in found[3]
    assert found[-1] == "network"
    about = status(cluster, task)
    assert int(about["CapEff"], 16) == int(about["CapBnd"], 16) == 1 << 12
    assert about["NoNewPrivs"] == "0"
    assert about["Seccomp"] == "2"


def test_privileged_container_runs_as_root_of_the_host(cluster: Cluster, hello: str) -> None:
    text = f"ls /dev/kmsg; touch /proc/sys/kernel/panic && echo open; {IDLE}"
    (task,) = cluster.script("priv", hello, text, "--privileged")
    assert logs(cluster, "priv", 2) == ["/dev/kmsg", "open"]
    about = status(cluster, task)
    assert about["Uid"].split() == ["0"] * 4
    assert about["Seccomp"] == "0"
    assert int(about["CapEff"], 16) >> 21 & 1


def given_back(ids: Path, but: set[str]) -> bool:
    """Whether no container holds user ids on a node but these."""
    return {entry.readlink().name for entry in ids.iterdir()} <= but


def test_root_in_a_container_is_unprivileged_on_the_host(cluster: Cluster, hello: str) -> None:
    text = f"id -u; touch /mine; ls -ln /mine; ls -ln /bin/busybox; ls -ld /sys; {IDLE}"
    tasks = cluster.script("users", hello, text, "--replicas", "6")
    # Each of the six has said its four lines.
    found = "\n".join(logs(cluster, "users", 24))
    held: dict[str, set[int]] = {}
    for task in tasks:
        first = first_id(cluster, task)
        assert first >= 100_000
        assert status(cluster, task)["Uid"].split() == [str(first)] * 4
        held.setdefault(task["node"], set()).add(first)
        upper = cluster.data(task["node"]) / "containers" / task["id"] / "upper"
        assert (upper / "mine").stat().st_uid == 0
    assert sum(map(len, held.values())) == 6
    (host,) = cluster.script("hosts-users", hello, f"id -u; {IDLE}", "--userns", "host")
    assert status(cluster, host)["Uid"].split() == ["0"] * 4
    # The files are its own, and what it was given is given back with it.
    assert len(re.findall(r"-rw-r--r-- +1 0 +0 .*/mine", found)) == 6
    assert len(re.findall(r"1 0 +0 .*/bin/busybox", found)) == 6
    cluster.orc("service", "rm", "-d", "users")
    for node in held:
        here = {host["id"]} if host["node"] == node else set()
        eventually(partial(given_back, cluster.data(node) / "ids", here))


def cpu_time(cluster: Cluster, task: Mapping[str, Any]) -> int:
    """Nanoseconds of CPU that the task's cgroup counts."""
    return int(cgroup(cluster, task, "cpuacct/cpuacct.usage"))


def test_a_files_capabilities_hold_in_a_user_namespace(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    content = Path("/usr/bin/busybox").read_bytes()
    net_raw = 13
    # Version 2 of the attribute, effective (linux/capability.h).
    caps = struct.pack("<5I", 0x02000001, 1 << net_raw, 0, 0, 0)
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        program = tarfile.TarInfo("bin/busybox")
        program.size, program.mode = len(content), 0o755
        text = caps.decode("utf-8", "surrogateescape")
        program.pax_headers = {"SCHILY.xattr.security.capability": text}
        archive.addfile(program, io.BytesIO(content))
    cluster.orc("import", str(path), "capable:1")

    def held(*flags: str) -> int:
        command = ("capable:1", "grep", "CapEff", "/proc/self/status")
        flags = ("--rm", "--user", "1000", "--entrypoint", "/bin/busybox", *flags)
        return int(cluster.orc("run", *flags, *command).stdout.split()[1], 16)

    try:
        assert held("--security-opt", "no-new-privileges=false") == 1 << net_raw
        assert held() == 0, "privileges do not grow unless that is asked for"
    finally:
        cluster.orc("rmi", "capable:1")


def test_time_is_shared_by_weight(cluster: Cluster, hello: str) -> None:
    pinned = ("--cpuset-cpus", "1", "--constraint", "node.hostname==node1", "--reserve-cpu", "0.1")
    (light,) = cluster.script("light", hello, BUSY, "--cpu-shares", "1024", *pinned)
    (heavy,) = cluster.script("heavy", hello, BUSY, "--cpu-shares", "2048", *pinned)
    began = time.monotonic()
    before = cpu_time(cluster, light), cpu_time(cluster, heavy)

    def used() -> tuple[int, int]:
        now = cpu_time(cluster, light), cpu_time(cluster, heavy)
        return now[0] - before[0], now[1] - before[1]

    eventually(lambda: sum(used()) > 2_000_000_000, every=0.3)
    one, two = used()
    shared = one / (time.monotonic() - began)
    assert 1.7 < two / one < 2.3
    # One alone gets what nobody else wants: a third becomes the whole, whatever else runs here.
    cluster.orc("service", "rm", "-d", "heavy")

    def alone() -> bool:
        began, before = time.monotonic(), cpu_time(cluster, light)
        eventually(lambda: cpu_time(cluster, light) > before + 300_000_000)
        return (cpu_time(cluster, light) - before) / (time.monotonic() - began) > 1.6 * shared

    eventually(alone)


def test_the_nodes_own_files(cluster: Cluster, hello: str) -> None:
    script = (
        "test -x /usr/bin/apt-get && echo files; touch /etc/x 2>&1; ls /var/lib/orc-dev | wc -l; "
        "ls /run | wc -l; echo x > /tmp/x && echo tmp; ls /proc | grep -c '^[0-9]'; sleep 100"
    )
    cluster.orc(
        "service", "create", "--name", "host", "--rootfs", "host", "--stop-grace-period", "100ms",
        "sh", "-c", script,
    )  # fmt: skip
    found = logs(cluster, "host", 6)
    assert found[0] == "files"
    assert "Read-only file system" in found[1]
    assert found[2:5] == ["0", "0", "tmp"]
    assert int(found[5]) < 6
