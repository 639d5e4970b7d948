# SPDX-License-Identifier: Apache-2.0
"""Docker's clients while the leader of three managers, or the gateway itself, is lost."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually
from dockerclient import CLI, Docker, gateway

pytestmark = [pytest.mark.root, pytest.mark.e2e]


@pytest.fixture(scope="module")
def three(spare_cluster: Callable[[str], Cluster], box: str, boxed: Path) -> Iterator[Cluster]:
    """A cluster of three managers that has the image `box`."""
    cluster = spare_cluster("docker3")
    cluster.dev("up", "--managers", "3", "--nodes", "1")
    cluster.orc("load", "-i", str(boxed))
    yield cluster
    cluster.dev("down")


@pytest.fixture(scope="module")
def boxed(session_docker: Docker, box: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image `box` as an archive."""
    archive = tmp_path_factory.mktemp("boxed") / "box.tar"
    session_docker("save", "-o", str(archive), box)
    return archive


@pytest.fixture
def docker3(three: Cluster, tmp_path: Path) -> Iterator[Docker]:
    with gateway(three, tmp_path) as found:
        yield found
        if left := found.lines("ps", "-aq"):
            found("rm", "-f", *left)


def leader(cluster: Cluster) -> str:
    return next(row["hostname"] for row in cluster.json("manager", "ls") if row["leader"])


@pytest.mark.parametrize("how", ["-KILL", "-STOP"])
def test_clients_go_on_when_the_leader_is_lost(
    three: Cluster, docker3: Docker, box: str, how: str
) -> None:
    three.await_ready("node1")
    count = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"
    docker3("run", "-d", "--name", "main", "--stop-timeout", "0", box, "sh", "-c", count)
    sent = "".join(f"{number}\n" for number in range(50_000))
    half = len(sent) // 2
    lost = eventually(lambda: leader(three))
    pid = str(three.status()[lost]["daemon_pid"])
    with (
        docker3.following("logs", "-f", "main") as follower,
        docker3.following("events", "--format", "{{.Action}} {{.Actor.ID}}") as observer,
        subprocess.Popen(
            [CLI, "exec", "-i", "main", "cat"],
            env=dict(docker3.env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as session,
    ):
        assert follower.stdout is not None
        assert session.stdin is not None
        assert session.stdout is not None
        received: list[str] = []
        reader = threading.Thread(target=lambda: received.extend(session.stdout or ()))
        reader.start()
        try:
            session.stdin.write(sent[:half])
            session.stdin.flush()
            assert [follower.stdout.readline() for _ in range(20)] == [f"{n}\n" for n in range(20)]
            three.exec(lost, "kill", how, pid)
            assert docker3("run", "--rm", box, "echo", "meanwhile") == "meanwhile"
            session.stdin.write(sent[half:])
            session.stdin.close()
            assert session.wait(PATIENCE) == 0
            reader.join(PATIENCE)
            assert "".join(received) == sent
            after = range(20, 300)
            assert [follower.stdout.readline() for _ in after] == [f"{n}\n" for n in after]
            last = docker3("run", "-d", box, "true")
            docker3("wait", last)
            events: list[str] = []
            assert observer.stdout is not None
            while not events or events[-1] != f"die {last}":
                events.append(observer.stdout.readline().strip())
            started = [event for event in events if event.startswith("start ")]
            assert len(started) == len(set(started)) == 2, events
        finally:
            three.exec(lost, "kill", "-CONT", pid, ok=False)
            session.kill()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
def test_killed_gateway_leaves_nothing_half_made(
    docker: Docker, cluster: Cluster, box: str, tmp_path: Path, delay: float
) -> None:
    socket = tmp_path / "docker.sock"
    client = {**docker.env, "DOCKER_HOST": f"unix://{socket}"}
    with subprocess.Popen(
        [ORC, "docker-api", "--socket", str(socket)],
        env=dict(cluster.env),
        stderr=subprocess.DEVNULL,
    ) as process:
        eventually(socket.exists)
        # So that it is connected, and the delay falls into the run.
        replace(docker, env=client)("ps")
        words = ("run", "-d", "--name", "main", "-v", "data:/data", box, "sleep", "1000")
        with subprocess.Popen(
            [CLI, *words], env=client, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            time.sleep(delay)
            process.kill()
            run.wait(PATIENCE)
    # It does not exist, or is one that was only created, or runs.
    if docker.lines("ps", "-a", "--format", "{{.Names}}") == ["main"]:
        docker("start", "main")
        assert docker("exec", "main", "ls", "-d", "/data") == "/data"
    docker("run", "--rm", "--name", "next", "-v", "data:/data", box, "true")

    def removed() -> bool:
        # A manager may still apply what the gateway had sent.
        left = docker.lines("ps", "-aq")
        if left:
            docker("rm", "-f", *left)
        return not left

    eventually(removed)
    docker("volume", "rm", "data")
