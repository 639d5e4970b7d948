# SPDX-License-Identifier: Apache-2.0
"""Containers as the kernel has them: limits, privileges, namespaces, files, their end."""

from __future__ import annotations

import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

ON_NODE1 = ("--constraint", "node.hostname==node1")


def said(cluster: Cluster, image: str, script: str, *flags: str) -> list[str]:
    """What a shell script prints that runs in a container, once, on stdout or stderr."""
    cluster.orc(
        "service", "create", "-d", "--name", "say", "--restart-condition", "none",
        "--entrypoint", "/bin/busybox", *flags, image, "sh", "-c", f"exec 2>&1\n{script}",
    )  # fmt: skip
    eventually(lambda: [task["state"] for task in cluster.tasks("say")] == ["complete"])
    return logs(cluster, "say")


def logs(cluster: Cluster, service: str, *flags: str) -> list[str]:
    return cluster.orc("service", "logs", "--raw", *flags, service).stdout.splitlines()


def proc(cluster: Cluster, task: dict[str, Any], name: str) -> str:
    """A file of /proc of a task's first process, as its host sees it."""
    return cluster.exec(task["node"], "cat", f"/proc/{task['pid']}/{name}").stdout


def cgroup(cluster: Cluster, task: dict[str, Any], controller: str) -> Path:
    """The cgroup of a task's first process in the tree of a controller, of either version."""
    trees: dict[str, tuple[str, str]] = {}
    for line in proc(cluster, task, "cgroup").splitlines():
        _, names, path = line.split(":", 2)
        trees |= {name: (name, path) for name in names.split(",")}
    # Version 2 has no name and one tree for all.
    name, path = trees.get(controller) or trees[""]
    return Path("/sys/fs/cgroup", name, path.lstrip("/"))


def first_of(folder: Path, *names: str) -> str:
    """What stands in the first of these files that there is: names of version 1, and of 2."""
    return next((folder / name).read_text().strip() for name in names if (folder / name).exists())


def alive(cluster: Cluster, node: str, *pids: int | str) -> bool:
    """Whether any of these processes of a host is there."""
    paths = [f"/proc/{pid}" for pid in pids]
    return cluster.exec(node, "ls", "-d", *paths, ok=False).stdout != ""


def test_process_has_the_settings_of_its_spec(cluster: Cluster, hello: str) -> None:
    lines = said(
        cluster,
        hello,
        "hostname; echo $COLOUR; id -u; id -g; pwd; echo $$; "
        "ls -d /proc/[0-9]* | wc -l; grep box /etc/hosts | wc -l; umask",
        *("--hostname", "box", "--env", "COLOUR=deep blue", "--user", "1000:2000"),
        *("--workdir", "/www"),
    )
    # The last process but one is `ls`, in a shell of the pipe: none of the host's.
    assert lines[:6] == ["box", "deep blue", "1000", "2000", "/www", "1"]
    assert int(lines[6]) <= 4
    assert lines[7:] == ["1", "0022"]


def test_limits_are_the_cgroups(cluster: Cluster, hello: str) -> None:
    (task,) = cluster.script(
        "idle", hello, "sleep 1000", "--cpu-shares", "300", "--limit-memory", "64m",
        "--limit-cpu", "0.5", "--pids-limit", "50",
    )  # fmt: skip
    cpu = cgroup(cluster, task, "cpu")
    if (cpu / "cpu.shares").exists():
        assert (cpu / "cpu.shares").read_text() == "300\n"
        assert first_of(cpu, "cpu.cfs_quota_us") == "50000"
        assert first_of(cpu, "cpu.cfs_period_us") == "100000"
    else:
        # crun's formula for the weight has changed: 300 of 1024 shares is about 12 or about 36.
        assert 10 <= int(first_of(cpu, "cpu.weight")) <= 40
        assert first_of(cpu, "cpu.max") == "50000 100000"
    memory = cgroup(cluster, task, "memory")
    assert first_of(memory, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert first_of(cgroup(cluster, task, "pids"), "pids.max") == "50"


def test_limits_change_in_place_and_stay(cluster: Cluster, hello: str) -> None:
    def shown() -> dict[str, Any]:
        found: dict[str, Any] = cluster.json("inspect", "grows")[0]
        return found

    def limit() -> int:
        folder = cgroup(cluster, shown(), "memory")
        return int(first_of(folder, "memory.limit_in_bytes", "memory.max"))

    def reserved() -> int:
        return int(cluster.nodes()["node1"]["memory_reserved"])

    hold = (
        "dd if=/dev/zero of=/dev/shm/held bs=1M count=24 2>/dev/null; echo ready; exec sleep 1000"
    )
    cluster.orc(
        "run", "-d", "--name", "grows", "--node", "node1", "--limit-memory", "64m",
        "--entrypoint", "/bin/busybox", hello, "sh", "-c", hold,
    )  # fmt: skip
    eventually(lambda: "ready" in cluster.orc("logs", "grows").stdout)
    pid, others = shown()["pid"], reserved() - (64 << 20)
    assert cluster.orc("update", "--memory", "96m", "--cpus", "0.5", "grows").stdout == "grows\n"
    assert (limit(), reserved()) == (96 << 20, others + (96 << 20))
    assert "it uses 2" in cluster.refused("update", "--memory", "16m", "--pids-limit", "7", "grows")
    full = cluster.refused("update", "--memory", "9t", "grows")
    assert "node node1 is too full: container 'grows' reserves 96MiB of memory and would" in full
    spec = shown()["spec"]
    assert (spec["limit"]["memory"], spec["container"]["pids_limit"]) == (96 << 20, 0)
    assert (shown()["pid"], limit()) == (pid, 96 << 20)
    # The next run has them as well.
    cluster.orc("restart", "-t", "0", "grows")
    assert shown()["pid"] != pid
    assert limit() == 96 << 20
    # So has what another agent finds.
    pid = shown()["pid"]
    cluster.orc("update", "--memory", "128m", "--restart", "always", "grows")
    cluster.kill9("node1", "daemon")
    cluster.await_ready("node1")
    assert (shown()["pid"], limit()) == (pid, 128 << 20)
    cluster.orc("rm", "-f", "grows")


def test_cpu_time_is_shared_by_shares(cluster: Cluster, hello: str) -> None:
    tasks = [
        cluster.script(f"s{shares}", hello, "while :; do :; done", "--cpu-shares", str(shares),
                       "--reserve-cpu", "0.1", *ON_NODE1)[0]
        for shares in (1024, 2048)
    ]  # fmt: skip
    # On one core, so that they are in each other's way.
    core = str(min(map(int, _cores(cluster))))
    for task in tasks:
        cluster.exec("node1", "taskset", "-cp", core, str(task["pid"]))
    folders = [cgroup(cluster, task, "cpuacct") for task in tasks]
    before = [_cpu_seconds(folder) for folder in folders]

    def spent() -> list[float]:
        now = [_cpu_seconds(folder) for folder in folders]
        return [late - early for late, early in zip(now, before, strict=True)]

    eventually(lambda: sum(spent()) > 1.2)
    less, more = spent()
    assert 1.6 < more / less < 2.5


def _cores(cluster: Cluster) -> list[str]:
    """The cores that processes of node1 may use."""
    (line,) = [
        line
        for line in cluster.exec("node1", "cat", "/proc/self/status").stdout.splitlines()
        if line.startswith("Cpus_allowed_list")
    ]
    return [part.partition("-")[0] for part in line.split()[1].split(",")]


def _cpu_seconds(folder: Path) -> float:
    if (usage := folder / "cpuacct.usage").exists():
        return int(usage.read_text()) / 1e9
    return int((folder / "cpu.stat").read_text().split()[1]) / 1e6


def test_task_over_its_memory_limit_is_killed_with_a_reason(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "eater", "--limit-memory", "32m",
        "--restart-condition", "none", "--entrypoint", "/bin/busybox", hello,
        "dd", "if=/dev/zero", "of=/dev/null", "bs=200M",
    )  # fmt: skip
    eventually(lambda: [task["state"] for task in cluster.tasks("eater")] == ["failed"])
    task = cluster.task("eater")
    assert task["oom_killed"] is True
    assert task["exit_code"] == 137
    assert task["error"] == "out of memory (limit 32MiB)"
    assert "out of memory (limit 32MiB)" in cluster.orc("service", "ps", "eater").stdout


def test_a_task_cannot_fork_beyond_its_limit(cluster: Cluster, hello: str) -> None:
    # A shell that cannot fork ends, so one does it for the first process.
    (task,) = cluster.script(
        "forks", hello, "(for i in $(seq 40); do sleep 1000 & done); echo tried; exec sleep 1000",
        "--pids-limit", "10",
    )  # fmt: skip
    eventually(lambda: "tried" in logs(cluster, "forks"))
    eventually(lambda: "can't fork" in cluster.orc("service", "logs", "forks").stderr)
    pids = cgroup(cluster, task, "pids")
    assert first_of(pids, "pids.max") == "10"
    assert 5 <= int(first_of(pids, "pids.current")) <= 10


def test_privileges_are_dockers_and_cannot_grow(cluster: Cluster, hello: str) -> None:
    (root,) = cluster.script("root", hello, "sleep 1000")
    (user,) = cluster.script("user", hello, "sleep 1000", "--user", "1000")
    for task, held in ((root, "00000000a80425fb"), (user, "0000000000000000")):
        lines = (line.partition(":") for line in proc(cluster, task, "status").splitlines())
        status = {key: value.strip() for key, _, value in lines}
        assert status["CapEff"] == status["CapPrm"] == held
        assert status["CapBnd"] == "00000000a80425fb"
        assert status["CapInh"] == status["CapAmb"] == "0000000000000000"
        assert status["Seccomp"] == "2"
        assert status["NoNewPrivs"] == "1"


def test_every_namespace_is_its_own(cluster: Cluster, hello: str) -> None:
    tasks = cluster.script("idle", hello, "sleep 1000", "--replicas", "2", *ON_NODE1)
    pids = ["1", *(str(task["pid"]) for task in tasks)]
    for kind in ("pid", "mnt", "uts", "ipc", "net", "cgroup"):
        links = [f"/proc/{pid}/ns/{kind}" for pid in pids]
        names = cluster.exec("node1", "readlink", *links).stdout.split()
        assert len(set(names)) == 3, (kind, names)
    for task in tasks:
        (numbers,) = [
            line.split()[1:]
            for line in proc(cluster, task, "status").splitlines()
            if line.startswith("NSpid")
        ]
        assert numbers == [str(task["pid"]), "1"]


def test_host_files_in_proc_are_not_readable(cluster: Cluster, hello: str) -> None:
    lines = said(
        cluster,
        hello,
        """
        for file in kcore keys timer_list interrupts; do
            [ ! -e /proc/$file ] || echo "$file: $(head -c 100 /proc/$file | wc -c)"
        done
        ls /sys/firmware | wc -l
        echo h >/proc/sysrq-trigger || echo "no sysrq"
        echo 1 >/proc/sys/net/ipv4/ip_forward || echo "no sysctl"
        echo 1 >/sys/class/net/eth0/mtu || echo "no sysfs"
        [ -d /sys/fs/cgroup/pids ] && tree=/sys/fs/cgroup/pids || tree=/sys/fs/cgroup
        mkdir $tree/x || echo "no cgroup"
        mount -t tmpfs none /www || echo "no mount"
        unshare -m true || echo "no unshare"
        mknod /sda b 8 0
        head -c 1 /sda || echo "no disk"
        """,
    )
    masked = [line for line in lines if line.endswith(": 0")]
    # Not every kernel has all of them.
    assert len(masked) >= 2, lines
    assert not [line for line in lines if line.endswith(": 100")]
    for refusal in ("sysrq", "sysctl", "sysfs", "cgroup", "mount", "unshare", "disk"):
        assert f"no {refusal}" in lines, lines
    assert any("/sda" in line and "not permitted" in line for line in lines), lines


def test_a_read_only_root_is_read_only(cluster: Cluster, hello: str) -> None:
    lines = said(
        cluster,
        hello,
        "touch /new || echo refused; touch /www/new || echo refused; touch /dev/shm/new && echo ok",
        "--read-only",
    )
    assert [line for line in lines if "touch" not in line] == ["refused", "refused", "ok"]
    assert sum("Read-only file system" in line for line in lines) == 2


def overlay(cluster: Cluster, task: dict[str, Any]) -> dict[str, str]:
    """The options of the overlay that is a container's root."""
    (line,) = [
        line
        for line in proc(cluster, task, "mountinfo").splitlines()
        if line.split()[4] == "/" and " - overlay " in line
    ]
    options = (option.partition("=") for option in line.split()[-1].split(","))
    return {key: value for key, _, value in options}


def test_layers_are_shared_and_writes_are_removed_with_the_container(
    cluster: Cluster, hello: str
) -> None:
    shell = ("/bin/busybox", "sh", "-c")
    first, second = cluster.script("two", hello, "sleep 1000", "--replicas", "2", *ON_NODE1)
    for task in (first, second):
        lower = overlay(cluster, task)["lowerdir"].split(":")
        assert len(lower) == 4  # one for each COPY and RUN of the Dockerfile
    # One inode is one file on the disk and one copy in memory, whoever it seems to belong to.
    programs = [cluster.in_task(t, "/bin/busybox", "ls", "-i", "/bin") for t in (first, second)]
    assert programs[0].stdout == programs[1].stdout
    uppers = [cluster.data("node1") / "containers" / t["id"] / "upper" for t in (first, second)]
    layers = list((cluster.data("node1") / "images" / "layers").iterdir())

    cluster.in_task(first, *shell, "echo mine >/www/mine; rm /bin/entrypoint")
    assert (uppers[0] / "www/mine").read_text() == "mine\n"
    listing = cluster.in_task(second, *shell, "ls /www /bin").stdout.split()
    assert "mine" not in listing
    assert "entrypoint" in listing
    assert not any(found for layer in layers for found in layer.rglob("www/mine"))

    cluster.orc("service", "rm", "-d", "two")
    eventually(lambda: not any(upper.parent.exists() for upper in uppers))
    assert all(layer.is_dir() for layer in layers)
    # The next one starts from the image, not from what was written.
    assert "entrypoint" in said(cluster, hello, "ls /bin", *ON_NODE1)


def test_every_process_dies_with_the_first(cluster: Cluster, hello: str) -> None:
    (task,) = cluster.script(
        "family", hello,
        "sleep 1001 & setsid sleep 1002 & (setsid sh -c 'sleep 1003 & sleep 1004' &) ; sleep 1005",
        "--restart-condition", "none",
    )  # fmt: skip
    procs = cgroup(cluster, task, "pids") / "cgroup.procs"

    def whole() -> list[str]:
        members = cluster.exec(task["node"], "cat", str(procs), ok=False).stdout.split()
        assert len(members) >= 5, members
        return members

    family = eventually(whole)
    assert str(task["pid"]) in family
    cluster.kill9(task["node"], task["pid"])
    eventually(lambda: not alive(cluster, task["node"], *family))
    eventually(lambda: [t["state"] for t in cluster.tasks("family")] == ["failed"])
    past = cluster.task("family")
    assert past["exit_code"] == 137


def test_a_stop_is_sigterm_and_after_the_grace_sigkill(cluster: Cluster, hello: str) -> None:
    cluster.script(
        "stubborn", hello, 'trap "" TERM; while :; do sleep 0.1; done',
        "--stop-grace-period", "1s",
    )  # fmt: skip
    (task,) = cluster.running("stubborn")
    asked = time.monotonic()
    cluster.orc("service", "rm", "-d", "stubborn")
    eventually(lambda: not alive(cluster, task["node"], task["pid"]))
    assert time.monotonic() - asked > 0.9


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_stop_lets_a_task_end_by_itself(cluster: Cluster, hello: str, name: str) -> None:
    (task,) = cluster.script(
        "tidy", hello,
        f'trap "echo tidied; exit 7" {name}; echo ready; while :; do sleep 0.1; done',
        "--stop-grace-period", "30s", "--stop-signal", f"SIG{name}",
    )  # fmt: skip
    eventually(lambda: "ready" in logs(cluster, "tidy"))
    cluster.orc("service", "update", "tidy", "--env-add", "A=1")
    (past,) = [t for t in cluster.tasks("tidy") if t["id"] == task["id"]]
    # What was told to stop is not a failure, whatever its status.
    assert (past["state"], past["exit_code"], past["error"]) == ("shutdown", 7, "")
    assert logs(cluster, "tidy").count("tidied") == 1


def test_logs_of_the_last_lines(cluster: Cluster, hello: str) -> None:
    assert said(cluster, hello, "seq 5000") == [str(number) for number in range(1, 5001)]
    assert logs(cluster, "say", "--tail", "3") == ["4998", "4999", "5000"]
    assert logs(cluster, "say", "--tail", "0") == []


def test_logs_are_followed_until_interrupted(cluster: Cluster, hello: str) -> None:
    (task,) = cluster.script("clock", hello, "while :; do cat /tick 2>/dev/null; sleep 0.1; done")
    with subprocess.Popen(
        [ORC, "service", "logs", "--follow", "clock"],
        env=cluster.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as follower:  # fmt: skip
        try:
            assert follower.stdout is not None
            for number in range(3):
                # It is written while the follower waits for it.
                write = f"echo beat {number} >/tick"
                cluster.in_task(task, "/bin/busybox", "sh", "-c", write)
                line = ""
                while f"beat {number}" not in line:
                    line = follower.stdout.readline()
                assert line == f"clock.1@{task['node']} | beat {number}\n"
            follower.send_signal(signal.SIGINT)
            follower.stdout.read()
            assert follower.wait(PATIENCE) == 130
        finally:
            follower.kill()


@pytest.fixture(scope="session")
def unrunnable(
    session_cluster: Cluster, hello: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """An image of files that cannot be run."""
    folder = tmp_path_factory.mktemp("unrunnable")
    (folder / "plain").write_text("not executable\n")
    # An ELF header of the architecture number 0x16: IBM's s390.
    (folder / "foreign").write_bytes(b"\x7fELF\x02\x02\x01" + bytes(9) + b"\0\2\0\x16" + bytes(44))
    (folder / "foreign").chmod(0o755)
    (folder / "script").write_text("#!/bin/nowhere\n")
    (folder / "script").chmod(0o755)
    (folder / "Dockerfile").write_text(f"FROM {hello}\nCOPY plain foreign script /bad/\n")
    session_cluster.orc("build", "-t", "unrunnable:1", str(folder))
    return "unrunnable:1"


def test_program_that_cannot_be_run_has_a_reason(cluster: Cluster, unrunnable: str) -> None:
    reasons = {
        "/bad/nothing": "the image has no program `/bad/nothing`",
        "/bad/plain": "`/bad/plain` in the image is not executable",
        "/bad": "`/bad` in the image is not a program",
        "/bad/foreign": "this node is x86_64",
        "/bad/script": "`/bad/script` needs an interpreter or loader",
    }
    for program in reasons:
        cluster.orc(
            "service", "create", "-d", "--name", program.replace("/", "x"), "--entrypoint", program,
            "--restart-condition", "none", unrunnable,
        )  # fmt: skip

    def ended(program: str) -> list[dict[str, Any]]:
        tasks = cluster.tasks(program.replace("/", "x"))
        return [task for task in tasks if task["state"] in ("failed", "rejected")]

    for program, words in reasons.items():
        (task,) = eventually(partial(ended, program))
        assert words in task["error"]
        assert len(task["error"].splitlines()) == 1
    # And so does the command that waits, for as long as it is told to.
    done = cluster.orc(
        "service", "create", "--name", "waits", "--entrypoint", "/nothing", "--timeout", "5s",
        unrunnable, ok=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "the image has no program `/nothing`" in done.stderr


def test_command_that_cannot_run_backs_off(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "bad", "--entrypoint", "/nothing",
        "--restart-delay", "100ms", hello,
    )  # fmt: skip

    def third_attempt() -> bool:
        return any("restarting in 2 s (attempt 4)" in t["error"] for t in cluster.tasks("bad"))

    eventually(third_attempt)
    eventually(lambda: cluster.task("bad")["state"] == "pending")
