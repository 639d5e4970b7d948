# SPDX-License-Identifier: Apache-2.0
"""Three managers: streams to a node pass through each of them, and outlive the loss of any."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import IO

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually
from packagedhost import HELLO
from test_dashboard import Browser, chromium

pytestmark = [pytest.mark.root, pytest.mark.e2e]

MANAGERS = ("manager1", "manager2", "manager3")
BUSYBOX = "/bin/busybox"
_NUMBERS = count(1)


@pytest.fixture(scope="module")
def three(spare_cluster: Callable[[str], Cluster]) -> Iterator[Cluster]:
    """A cluster with an image, and a container `box` that writes a line every moment."""
    cluster = spare_cluster("streams")
    cluster.dev("up", "--managers", "3", "--nodes", "2")
    subprocess.run([HELLO / "prepare"], check=True)
    cluster.orc("build", "-t", "hello:1", str(HELLO))
    cluster.orc(
        *("run", "-d", "--name", "box", "--entrypoint", BUSYBOX, "hello:1"),
        *("sh", "-c", "while :; do echo out; sleep 0.1; done"),
    )
    yield cluster
    cluster.dev("down")


def through(cluster: Cluster, manager: str, folder: Path) -> Cluster:
    """The cluster as a client sees it that knows one manager only."""
    config = folder / str(next(_NUMBERS))
    shutil.copytree(cluster.env["XDG_CONFIG_HOME"], config)
    shutil.rmtree(config / "orc" / "seen", ignore_errors=True)
    file = config / "orc" / "contexts" / f"{cluster.name}.json"
    address = cluster.status()[manager]["address"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"endpoints": [f"{address}:7420"]}))
    env = dict(cluster.env) | {"XDG_CONFIG_HOME": str(config), "ORC_CONTEXT": cluster.name}
    return replace(cluster, env=env)


def logs(cluster: Cluster, folder: Path) -> None:
    assert "out" in cluster.orc("logs", "--tail", "3", "box").stdout


def exec_(cluster: Cluster, folder: Path) -> None:
    done = subprocess.run(
        [ORC, "exec", "-i", "box", BUSYBOX, "sh", "-c", "cat; exit 3"],
        env=cluster.env,
        input=b"input",
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (3, b"input"), done.stderr


def attach(cluster: Cluster, folder: Path) -> None:
    with subprocess.Popen(
        [ORC, "attach", "--no-stdin", "box"], env=cluster.env, stdout=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"out\n"
        client.kill()


def copies(cluster: Cluster, folder: Path) -> None:
    data = random.Random(1).randbytes(1 << 20)
    (folder / "there").write_bytes(data)
    cluster.orc("cp", str(folder / "there"), "box:/copied")
    cluster.orc("cp", "box:/copied", str(folder / "back"))
    assert (folder / "back").read_bytes() == data


def build(cluster: Cluster, folder: Path) -> None:
    context = folder / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text("FROM hello:1\nCOPY Dockerfile /built\n")
    tag = f"built:{next(_NUMBERS)}"
    cluster.orc("build", "-t", tag, str(context))
    assert tag in [f"{row['repository']}:{row['tag']}" for row in cluster.json("image", "ls")]


def images(cluster: Cluster, folder: Path) -> None:
    archive = folder / "hello.tar"
    cluster.orc("save", "-o", str(archive), "hello:1")
    cluster.orc("load", "-i", str(archive))
    assert cluster.json("history", "hello:1")


def stats(cluster: Cluster, folder: Path) -> None:
    rows = cluster.json("stats", "--no-stream")
    assert [row["name"] for row in rows] == ["box"]


def top(cluster: Cluster, folder: Path) -> None:
    assert "sleep 0.1" in cluster.orc("top", "box").stdout


def port_tests(cluster: Cluster, folder: Path) -> None:
    assert "No problems between 2 nodes." in cluster.orc("network", "doctor").stdout


def disk_usage(cluster: Cluster, folder: Path) -> None:
    assert "Images" in cluster.orc("system", "df").stdout


@pytest.mark.parametrize(
    "use", [logs, exec_, attach, copies, build, images, stats, top, port_tests, disk_usage]
)
def test_every_manager_serves(
    three: Cluster, tmp_path: Path, use: Callable[[Cluster, Path], None]
) -> None:
    # A node is in session with one of them.
    three.await_ready("node1", "node2")
    for manager in MANAGERS:
        use(through(three, manager, tmp_path), tmp_path)


def _read(stream: IO[bytes], into: bytearray, size: int, got_some: threading.Event) -> None:
    while len(into) < size and (data := stream.read1(1 << 16)):  # type: ignore[attr-defined]
        into += data
        got_some.set()
    got_some.set()


def _write(stream: IO[bytes], data: bytes) -> None:
    with suppress(BrokenPipeError):
        stream.write(data)
        stream.flush()


@pytest.mark.parametrize("how", ["-KILL", "-STOP"])
@pytest.mark.parametrize("command", ["exec", "attach"])
@pytest.mark.parametrize("manager", MANAGERS)
def test_input_and_output_outlive_any_manager(
    three: Cluster, tmp_path: Path, manager: str, command: str, how: str
) -> None:
    data = b"".join(b"%d\n" % number for number in range(200_000))
    half = len(data) // 2
    # Of the three, one is called, and one has the session of the node; this may be the same one.
    three.await_ready("node1", "node2")
    client = through(three, MANAGERS[0], tmp_path)
    # It knows all managers then, and calls this one first.
    eventually(lambda: client.orc("node", "ls", ok=False).returncode == 0)
    words = ["exec", "-i", "box", BUSYBOX, "cat"]
    if command == "attach":
        echo = f"echo-{next(_NUMBERS)}"
        client.orc("run", "-d", "-i", "--name", echo, "--entrypoint", BUSYBOX, "hello:1", "cat")
        words = ["attach", echo]
    with subprocess.Popen(
        [ORC, *words], env=client.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        received, got_some = bytearray(), threading.Event()
        reader = threading.Thread(
            target=_read, args=(session.stdout, received, len(data), got_some)
        )
        reader.start()
        pid = three.status()[manager]["daemon_pid"]
        try:
            _write(session.stdin, data[:half])
            got_some.wait()
            three.exec(manager, "kill", how, str(pid))
            _write(session.stdin, data[half:])
            reader.join(PATIENCE)
            assert bytes(received) == data, (len(received), len(data))
            session.stdin.close()
            assert session.wait(PATIENCE) == 0
        finally:
            three.exec(manager, "kill", "-CONT", str(pid), ok=False)
            session.kill()
            reader.join()


def _power_off(cluster: Cluster, manager: str) -> None:
    cluster.power_off(manager)


def _stop_process(cluster: Cluster, manager: str) -> None:
    """Its kernel keeps the connections."""
    cluster.exec(manager, "kill", "-STOP", str(cluster.status()[manager]["daemon_pid"]))


def _continue_process(cluster: Cluster, manager: str) -> None:
    cluster.exec(manager, "kill", "-CONT", str(cluster.status()[manager]["daemon_pid"]))


@pytest.mark.parametrize(
    ("lose", "restore"), [(_power_off, Cluster.start), (_stop_process, _continue_process)]
)
def test_the_page_continues_at_another_manager(
    three: Cluster,
    tmp_path: Path,
    lose: Callable[[Cluster, str], None],
    restore: Callable[[Cluster, str], None],
) -> None:
    manager = MANAGERS[2]
    three.await_ready("node1", "node2")
    client = through(three, manager, tmp_path)
    eventually(lambda: client.orc("node", "ls", ok=False).returncode == 0)
    with chromium(tmp_path / "browser") as driver:
        browser = Browser(driver, client)
        driver.get(client.orc("dashboard", "--quiet").stdout.strip())
        address = driver.current_url.partition("#")[0]
        assert three.status()[manager]["address"] in address
        browser.sees("2 of 2 nodes ready", "#summary")
        driver.get(f"{address}#/nodes")
        eventually(lambda: browser.script("return Boolean(orc.cluster.canMove)"))
        lose(three, manager)
        try:
            eventually(lambda: not driver.current_url.startswith(address))
            browser.sees("2 of 2 nodes ready", "#summary")
            assert driver.current_url.endswith("/#/nodes")
            assert "ticket" not in driver.current_url
        finally:
            restore(three, manager)
