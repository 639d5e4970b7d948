"""Standalone containers as a user has them: anywhere, by name, over stop and start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import ORC, Cluster, eventually

BUSYBOX = ("--entrypoint", "/bin/busybox")

MANY = """
import sys
from orchestrator.cli.client import Client
from orchestrator.cli.context import load_context
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
    for number in range(40):
        request = containers_pb2.CreateContainerRequest(
            name=f"many{number}", spec=spec, node="node1", start=True
        )
        client.call("Containers.CreateContainer", request)
"""


@pytest.fixture
def box(cluster: Cluster, hello: str) -> Iterator[Cluster]:
    """The cluster, which has the image; afterwards it has no standalone container."""
    yield cluster
    names = [row["id"] for row in cluster.json("ps", "-a") if not row["service"]]
    if names:
        cluster.orc("rm", "-f", *names)


def run(cluster: Cluster, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return cluster.orc("run", *arguments, ok=ok)


def sleeper(cluster: Cluster, hello: str, name: str, *flags: str) -> str:
    """A container that runs until it is told to stop; its id."""
    script = "trap 'exit 3' TERM; while :; do sleep 0.05; done"
    arguments = ("-d", "--name", name, *BUSYBOX, *flags, hello, "sh", "-c", script)
    return run(cluster, *arguments).stdout.strip()


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
def test_what_cannot_be_run_has_a_shells_status(
    box: Cluster, hello: str, entrypoint: str, status: int, words: str
) -> None:
    done = run(box, "--rm", "--entrypoint", entrypoint, hello, ok=False)
    assert done.returncode == status
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


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
    for _ in range(2):
        box.orc("stop", "-t", "0", "keeper")
        assert shown(box, "keeper")["state"] == "exited"
        box.orc("start", "keeper")
    assert [line.strip() for line in box.orc("logs", "keeper").stdout.splitlines()] == [
        "1",
        "2",
        "3",
    ]
    after = shown(box, "keeper")
    assert (after["node"], after["state"], after["run"]) == (home, "running", 3)
    folder = box.data(home) / "containers" / after["id"]
    assert folder.exists()
    assert "running" in box.refused("rm", "keeper")
    box.orc("rm", "-f", "keeper")
    eventually(lambda: not folder.exists(), within=10.0)


@pytest.mark.root
def test_stop_signal_exit_status_and_wait(box: Cluster, hello: str) -> None:
    sleeper(box, hello, "patient")
    waiting = subprocess.Popen(
        [ORC, "wait", "patient"], env=box.env, stdout=subprocess.PIPE, text=True
    )
    box.orc("stop", "patient")
    assert waiting.communicate(timeout=30)[0] == "3\n"
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
    assert "paused already" in box.refused("pause", "still")
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
        within=15.0,
    )


@pytest.mark.root
def test_restart_policies(box: Cluster, hello: str) -> None:
    run(
        box, "-d", "--name", "thrice", "--restart", "on-failure:2", *BUSYBOX,
        hello, "sh", "-c", "echo once; exit 4",
    )  # fmt: skip
    eventually(lambda: shown(box, "thrice")["state"] == "exited", within=20.0)
    assert shown(box, "thrice")["restarts"] == 2
    assert box.orc("logs", "thrice").stdout == "once\n" * 3
    sleeper(box, hello, "always", "--restart", "always")
    first = shown(box, "always")
    box.kill9(first["node"], first["pid"])

    def again() -> bool:
        now = shown(box, "always")
        return now["state"] == "running" and now["pid"] != first["pid"]

    eventually(again, within=20.0)
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
    box.orc("stop", "-t", "0", "stopped", "always")

    def are(**wanted: str) -> None:
        def ask() -> bool:
            rows = {row["name"]: row["state"] for row in box.json("ps", "-a")}
            assert rows == wanted
            return True

        eventually(ask, within=30.0)

    # An agent that was away starts what has ended meanwhile, and lets alone what was stopped.
    pid = shown(box, "ran")["pid"]
    box.kill9("node1", "daemon")
    box.kill9("node1", pid)
    eventually(lambda: shown(box, "ran")["pid"] not in (0, pid), within=30.0)
    are(once="running", ran="running", stopped="exited", always="exited")
    box.power_off("node1")
    box.start("node1")
    box.await_ready("node1")
    are(once="exited", ran="running", stopped="exited", always="running")
    lost = shown(box, "once")
    assert (lost["exit_code"], lost["error"]) == (255, "lost over a restart of the node")
    # What each wrote is there in its next run.
    for name, runs in (("once", 1), ("ran", 3), ("stopped", 1), ("always", 2)):
        said = "".join(f"{number + 1}\n" for number in range(runs))
        eventually(lambda name=name, said=said: box.orc("logs", name).stdout == said, within=10.0)


@pytest.mark.root
def test_a_silent_node_keeps_its_containers(box: Cluster, hello: str) -> None:
    sleeper(box, hello, "loyal", "--node", "node3")
    pid = shown(box, "loyal")["pid"]
    box.partition("node3")
    eventually(lambda: shown(box, "loyal")["node_state"] == "down", within=30.0)
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
        return int(eventually(lambda: box.status()["node1"]["daemon_pid"], within=15.0))

    script = "echo x >> /count; wc -l < /count; exec sleep 1000"
    orders = (["start", "mended"], ["restart", "-t", "0", "mended"], ["stop", "-t", "0", "mended"])
    box.orc("create", "--name", "mended", "--node", "node1", *BUSYBOX, hello, "sh", "-c", script)
    for turn, order in enumerate((*orders, *orders)):
        pid = daemon()
        working = subprocess.Popen(
            [ORC, *order], env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(0.1 + 0.03 * turn)
        box.kill9("node1", pid)
        said = working.communicate(timeout=60)[0]
        assert working.returncode == 0, said
        state = shown(box, "mended")["state"]
        assert state == ("exited" if order[0] == "stop" else "running")
    pid = daemon()
    removing = subprocess.Popen([ORC, "rm", "-f", "mended"], env=box.env)
    time.sleep(0.1)
    box.kill9("node1", pid)
    assert removing.wait(60) == 0
    # It may have been removed before the kill: this is done by the agent that comes after.
    run(box, "--rm", "--node", "node1", *BUSYBOX, hello, "true")
    eventually(lambda: not list((box.data("node1") / "containers").iterdir()), within=15.0)


@pytest.mark.root
def test_events_tell_a_containers_life(box: Cluster, hello: str) -> None:
    since = str(int(time.time()))
    sleeper(box, hello, "told")
    box.orc("pause", "told")
    box.orc("unpause", "told")
    box.orc("stop", "told")
    box.orc("rm", "told")
    done = box.orc(
        "events", "--since", since, "--until", "0s", "--format", "json",
        "--filter", "type=container", "--filter", "container=told",
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines()]
    actions = [event["action"] for event in events]
    assert actions == ["create", "start", "pause", "unpause", "die", "stop", "destroy"]
    assert events[4]["attributes"]["exitCode"] == "3"
    assert events[1]["node"].startswith("node")


@pytest.mark.root
def test_many_come_and_go_without_a_trace(box: Cluster, hello: str) -> None:
    """40 on one node, three times; mounts, cgroups, descriptors and memory come back."""

    def traces() -> tuple[int, int, int, int]:
        mounts = box.exec("node1", "cat", "/proc/self/mountinfo").stdout.count("\n")
        pid = str(box.status()["node1"]["daemon_pid"])
        files = len(box.exec("node1", "ls", f"/proc/{pid}/fd").stdout.split())
        rss = box.exec("node1", "grep", "VmRSS", f"/proc/{pid}/status").stdout.split()[1]
        cgroups = box.exec(
            "node1", "sh", "-c", "find /sys/fs/cgroup -type d -path '*node1*' | wc -l"
        )
        return mounts, int(cgroups.stdout), files, int(rss)

    def round_() -> None:
        # One process makes them all: a command for each would take its time to start.
        subprocess.run([sys.executable, "-c", MANY, hello], env=box.env, check=True, timeout=120)
        wanted = {f"many{n}" for n in range(40)}
        eventually(lambda: wanted <= {row["name"] for row in box.json("ps")}, within=60.0)
        box.orc("rm", "-f", *wanted, within=120.0)
        eventually(lambda: not list((box.data("node1") / "containers").iterdir()), within=30.0)

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

    eventually(settled, within=15.0)
