# SPDX-License-Identifier: Apache-2.0
"""Standalone containers as a user has them: anywhere, by name, over stop and start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

BUSYBOX = ("--entrypoint", "/bin/busybox")

MANY = """
import sys
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.app.contexts import load_context
from orchestrator.pb import containers_pb2, types_pb2
container = types_pb2.ContainerSpec(
    image=sys.argv[1], entrypoint=["/bin/busybox"], command=["sleep", "1000"]
)
spec = types_pb2.TaskSpec(
    container=container,
    reservation=types_pb2.Resources(shares=2, memory=6 << 20),
    restart=types_pb2.RestartPolicy(condition=types_pb2.RESTART_NONE),
)
with Client(load_context(None)) as client:
    for number in range(20):
        request = containers_pb2.CreateContainerRequest(
            name=f"many{number}", spec=spec, node="node1", start=True
        )
        client.call("Containers.CreateContainer", request)
"""


@pytest.fixture
def box(cluster: Cluster, hello: str) -> Cluster:
    """The cluster, which has the image."""
    return cluster


def run(cluster: Cluster, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return cluster.orc("run", *arguments, ok=ok)


def sleeper(cluster: Cluster, hello: str, name: str, *flags: str) -> str:
    """A container that runs until it is told to stop, and by now listens to that; its id."""
    script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    arguments = ("-d", "--name", name, *BUSYBOX, *flags, hello, "sh", "-c", script)
    identity = run(cluster, *arguments).stdout.strip()
    says(cluster, name, "ready")
    return identity


def says(cluster: Cluster, name: str, *lines: str) -> None:
    """Wait until these are the lines of a container's log."""

    def said() -> bool:
        found = [line.strip() for line in cluster.orc("logs", name).stdout.splitlines()]
        assert found == [*lines], found
        return True

    eventually(said)


def shown(cluster: Cluster, name: str) -> dict[str, Any]:
    """`orc inspect` of one container."""
    documents = json.loads(cluster.orc("inspect", name).stdout)
    document: dict[str, Any] = documents[0]
    return document


@pytest.mark.root
def test_run_in_the_foreground_is_the_program_itself(box: Cluster, hello: str) -> None:
    script = "cat; echo out; echo err >&2; exit 7"
    command = [ORC, "run", "--rm", "-i", *BUSYBOX, hello, "sh", "-c", script]
    done = subprocess.run(
        command, env=box.env, input=b"in\0\n", capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\0\nout\n", b"err\n")
    assert box.json("ps", "-a") == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("entrypoint", "status", "words"),
    [
        ("/nosuch", 127, "has no program `/nosuch`"),
        ("/etc", 126, "is not a program"),
        ("/www/cgi-bin", 126, "is not a program"),
    ],
)
def test_command_that_cannot_run_has_the_exit_status_of_a_shell(
    box: Cluster, hello: str, entrypoint: str, status: int, words: str
) -> None:
    done = run(box, "--rm", "--entrypoint", entrypoint, hello, ok=False)
    assert done.returncode == status
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert box.json("ps", "-a") == []


@pytest.mark.root
def test_orcs_own_failures_are_125(box: Cluster) -> None:
    done = run(box, "no-such-image:1", ok=False)
    assert done.returncode == 125
    assert "no-such-image:1" in done.stderr


@pytest.mark.root
def test_its_files_and_logs_stay_over_stop_and_start_and_go_with_it(
    box: Cluster, hello: str
) -> None:
    script = "echo x >> /count; wc -l < /count; exec sleep 1000"
    run(box, "-d", "--name", "keeper", *BUSYBOX, hello, "sh", "-c", script)
    home = shown(box, "keeper")["node"]
    says(box, "keeper", "1")
    for lines in (("1", "2"), ("1", "2", "3")):
        box.orc("stop", "-t", "0", "keeper")
        assert shown(box, "keeper")["state"] == "exited"
        box.orc("start", "keeper")
        says(box, "keeper", *lines)
    after = shown(box, "keeper")
    assert (after["node"], after["state"], after["run"]) == (home, "running", 3)
    folder = box.data(home) / "containers" / after["id"]
    assert folder.exists()
    assert "running" in box.refused("rm", "keeper")
    box.orc("rm", "-f", "keeper")
    eventually(lambda: not folder.exists())


@pytest.mark.root
def test_stop_signal_exit_status_and_wait(box: Cluster, hello: str) -> None:
    sleeper(box, hello, "patient")
    waiting = subprocess.Popen(
        [ORC, "wait", "patient"], env=box.env, stdout=subprocess.PIPE, text=True
    )
    box.orc("stop", "patient")
    assert waiting.communicate(timeout=PATIENCE)[0] == "3\n"
    box.orc("restart", "patient")
    assert shown(box, "patient")["state"] == "running"
    box.orc("kill", "patient")
    assert shown(box, "patient")["exit_code"] == 137


@pytest.mark.root
def test_pause_is_seen_in_the_kernel(box: Cluster, hello: str) -> None:
    sleeper(box, hello, "still")
    before = shown(box, "still")
    box.orc("pause", "still")
    paused = shown(box, "still")
    assert (paused["state"], paused["pid"]) == ("paused", before["pid"])

    def ticks() -> str:
        stat = box.exec(before["node"], "cat", f"/proc/{before['pid']}/stat").stdout
        return stat.rpartition(")")[2].split()[11]

    first = ticks()
    time.sleep(0.3)
    assert ticks() == first
    assert "is paused already" in box.refused("pause", "still")
    box.orc("unpause", "still")
    assert shown(box, "still")["state"] == "running"
    box.orc("pause", "still")
    # A paused one can be stopped, and ends as it likes.
    box.orc("stop", "still")
    assert shown(box, "still")["exit_code"] == 3


@pytest.mark.root
def test_names_ids_and_prefixes(box: Cluster, hello: str) -> None:
    identity = sleeper(box, hello, "first")
    assert "already" in box.refused("run", "-d", "--name", "first", hello)
    box.orc("rename", "first", "second")
    assert shown(box, identity[:6])["name"] == "second"
    assert "second" in box.refused("inspect", "secnd")
    # The old name is free again.
    sleeper(box, hello, "first")
    names = {row["name"] for row in box.json("ps")}
    assert {"first", "second"} <= names
    assert box.orc("ps", "-q", "--filter", "name=second").stdout.split() == [identity]


@pytest.mark.root
def test_created_and_started_on_a_node_of_choice_with_a_port(box: Cluster, hello: str) -> None:
    box.orc("create", "--name", "web", "--node", "node2", "-p", "8131:80", hello)
    created = shown(box, "web")
    assert (created["state"], created["node"]) == ("created", "node2")
    box.orc("start", "web")
    where = box.orc("port", "web", "80").stdout.strip()
    eventually(
        lambda: box.exec("node1", "curl", "-sf", f"http://{where}/", ok=False).returncode == 0,
    )


@pytest.mark.root
def test_restart_policies(box: Cluster, hello: str) -> None:
    run(
        box, "-d", "--name", "thrice", "--restart", "on-failure:2", *BUSYBOX,
        hello, "sh", "-c", "echo once; exit 4",
    )  # fmt: skip

    def given_up() -> bool:
        found = shown(box, "thrice")
        return (found["state"], found["restarts"]) == ("exited", 2)

    eventually(given_up)
    assert box.orc("logs", "thrice").stdout == "once\n" * 3
    sleeper(box, hello, "always", "--restart", "always")
    first = shown(box, "always")
    box.kill9(first["node"], first["pid"])

    def again() -> bool:
        now = shown(box, "always")
        return now["state"] == "running" and now["pid"] != first["pid"]

    eventually(again)
    box.orc("stop", "always")
    assert shown(box, "always")["state"] == "exited"


@pytest.mark.root
def test_restart_policies_over_a_restart_of_the_agent_and_a_reboot(
    box: Cluster, hello: str
) -> None:
    script = "echo run >> /runs; cat /runs | wc -l; exec sleep 1000"
    for name, policy in (
        ("once", "no"),
        ("ran", "unless-stopped"),
        ("stopped", "unless-stopped"),
        ("always", "always"),
    ):
        flags = ("-d", "--name", name, "--restart", policy, "--node", "node1", *BUSYBOX)
        run(box, *flags, hello, "sh", "-c", script)
    for name in ("once", "ran", "stopped", "always"):
        says(box, name, "1")
    box.orc("stop", "-t", "0", "stopped", "always")

    def are(**wanted: str) -> None:
        def ask() -> bool:
            rows = {row["name"]: row["state"] for row in box.json("ps", "-a")}
            assert rows == wanted
            return True

        eventually(ask)

    # An agent that was away starts what has ended meanwhile, and lets alone what was stopped.
    pid = shown(box, "ran")["pid"]
    box.kill9("node1", "daemon")
    box.kill9("node1", pid)
    eventually(lambda: shown(box, "ran")["pid"] not in (0, pid))
    are(once="running", ran="running", stopped="exited", always="exited")
    says(box, "ran", "1", "2")
    box.power_off("node1")
    box.start("node1")
    box.await_ready("node1")
    are(once="exited", ran="running", stopped="exited", always="running")
    lost = shown(box, "once")
    assert (lost["exit_code"], lost["error"]) == (255, "lost during a restart of the node")
    # What each wrote is there in its next run.
    for name, runs in (("once", 1), ("ran", 3), ("stopped", 1), ("always", 2)):
        says(box, name, *(str(number + 1) for number in range(runs)))


@pytest.mark.root
def test_a_silent_node_keeps_its_containers(box: Cluster, hello: str) -> None:
    sleeper(box, hello, "loyal", "--node", "node3")
    pid = shown(box, "loyal")["pid"]
    box.partition("node3")
    eventually(lambda: shown(box, "loyal")["node_state"] == "down")
    assert "node node3 is down" in box.orc("ps").stdout
    assert "down" in box.refused("rm", "loyal")
    box.heal()
    box.await_ready("node3")
    assert (shown(box, "loyal")["state"], shown(box, "loyal")["pid"]) == ("running", pid)


@pytest.mark.root
def test_an_agent_killed_at_any_moment_brings_each_order_to_its_end(
    box: Cluster, hello: str
) -> None:
    """The kill falls at another moment of the order each time."""

    def daemon() -> int:
        return int(eventually(lambda: box.status()["node1"]["daemon_pid"]))

    script = "echo x >> /count; wc -l < /count; exec sleep 1000"
    orders = (["start", "mended"], ["restart", "-t", "0", "mended"], ["stop", "-t", "0", "mended"])
    box.orc("create", "--name", "mended", "--node", "node1", *BUSYBOX, hello, "sh", "-c", script)
    for turn, order in enumerate(orders):
        pid = daemon()
        working = subprocess.Popen(
            [ORC, *order], env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(0.1 + 0.06 * turn)
        box.kill9("node1", pid)
        said = working.communicate(timeout=PATIENCE)[0]
        assert working.returncode == 0, said
        state = shown(box, "mended")["state"]
        assert state == ("exited" if order[0] == "stop" else "running")
    pid = daemon()
    removing = subprocess.Popen([ORC, "rm", "-f", "mended"], env=box.env)
    time.sleep(0.1)
    box.kill9("node1", pid)
    assert removing.wait(PATIENCE) == 0
    # It may have been removed before the kill: this is done by the agent that comes after.
    run(box, "--rm", "--node", "node1", *BUSYBOX, hello, "true")
    eventually(lambda: not list((box.data("node1") / "containers").iterdir()))


@pytest.mark.root
def test_events_show_the_lifecycle_of_a_container(box: Cluster, hello: str) -> None:
    since = str(int(time.time()))
    sleeper(box, hello, "told")
    box.orc("pause", "told")
    box.orc("unpause", "told")
    box.orc("stop", "told")
    box.orc("rm", "told")

    def told() -> list[dict[str, Any]]:
        done = box.orc(
            "events", "--since", since, "--until", "0s", "--format", "json",
            "--filter", "type=container", "--filter", "container=told",
        )  # fmt: skip
        events = [json.loads(line) for line in done.stdout.splitlines()]
        actions = [event["action"] for event in events]
        assert actions == ["create", "start", "pause", "unpause", "die", "stop", "destroy"]
        return events

    events = eventually(told)
    assert events[4]["attributes"]["exitCode"] == "3"
    assert events[1]["node"].startswith("node")


@pytest.mark.root
def test_many_attachments_leave_nothing_behind(box: Cluster, hello: str) -> None:
    """20 on one node, three times; mounts, cgroups, descriptors and memory come back."""

    def traces() -> tuple[int, int, int, int]:
        mounts = box.exec("node1", "cat", "/proc/self/mountinfo").stdout.count("\n")
        pid = str(box.status()["node1"]["daemon_pid"])
        files = len(box.exec("node1", "ls", f"/proc/{pid}/fd").stdout.split())
        rss = box.exec("node1", "grep", "VmRSS", f"/proc/{pid}/status").stdout.split()[1]
        mine = f"find /sys/fs/cgroup -type d -path '*/orc-{box.name}-node1*' | wc -l"
        cgroups = box.exec("node1", "sh", "-c", mine).stdout
        return mounts, int(cgroups), files, int(rss)

    def round_() -> None:
        # One process makes them all: a command for each would take its time to start.
        subprocess.run([sys.executable, "-c", MANY, hello], env=box.env, check=True, timeout=120)
        wanted = {f"many{n}" for n in range(20)}
        eventually(lambda: wanted <= {row["name"] for row in box.json("ps")})
        box.orc("rm", "-f", *wanted)
        eventually(lambda: not list((box.data("node1") / "containers").iterdir()))

    round_()
    first = traces()
    for _ in range(2):
        round_()

    def settled() -> bool:
        mounts, cgroups, files, rss = traces()
        assert mounts <= first[0]
        assert cgroups <= first[1]
        assert files <= first[2] + 3
        assert rss <= first[3] * 1.2
        return True

    eventually(settled)
