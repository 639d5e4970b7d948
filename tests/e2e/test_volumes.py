# SPDX-License-Identifier: Apache-2.0
"""Volumes as their user sees them: where they are, what stays in them, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, PATIENCE, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

PREPARE = (
    "mkdir -p /seed/deep && echo first > /seed/file && echo two > /seed/deep/file && "
    "chown -R 1000:1001 /seed && chmod 750 /seed && ln -s file /seed/link"
)
DOCKERFILE = f'FROM hello:1\nRUN ["/bin/busybox", "sh", "-c", "{PREPARE}"]\n'


@pytest.fixture
def volumes(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; the volumes that a test leaves are removed."""
    yield cluster
    services = [service["name"] for service in cluster.json("service", "ls")]
    if services:
        cluster.orc("service", "rm", "-d", *services)

    def gone() -> bool:
        cluster.orc("volume", "prune", "--all", "--force")
        left = cluster.json("volume", "ls")
        assert left == [], left
        return True

    eventually(gone)


@pytest.fixture(scope="session")
def seeded(session_cluster: Cluster, hello: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with a folder `/seed` of a user's own."""
    folder = tmp_path_factory.mktemp("seeded")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    session_cluster.orc("build", "-t", "seeded:1", str(folder))
    return "seeded:1"


def volume(cluster: Cluster, name: str) -> dict[str, Any]:
    (row,) = cluster.json("volume", "inspect", name)
    found: dict[str, Any] = row
    return found


def attempt(cluster: Cluster, task: dict[str, Any], command: str) -> str:
    """Run a shell command as the task's own user 0 would, which must fail; what it says."""
    done = cluster.exec(task["node"], *_entering(task, command), ok=False)
    assert done.returncode != 0
    return done.stderr


def inside(cluster: Cluster, task: dict[str, Any], command: str) -> str:
    """Run a shell command as the task's own user 0 would; its output."""
    return cluster.exec(task["node"], *_entering(task, command)).stdout.strip()


def _entering(task: dict[str, Any], command: str) -> tuple[str, ...]:
    return ("nsenter", "-a", "-t", str(task["pid"]), "--", "/bin/busybox", "sh", "-c", command)


def test_data_survives_its_service_and_holds_its_place(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    (task,) = cluster.script("one", hello, "echo kept > /data/file; sleep 1h", "-v", "data:/data")
    home = task["node"]
    eventually(lambda: inside(cluster, task, "cat /data/file") == "kept")
    row = volume(cluster, "data")
    assert (row["node"], row["used_by"], row["driver"]) == (home, ["one.1"], "local")
    assert "in use by service one; type 'orc service rm one' first" in cluster.refused(
        "volume", "rm", "data"
    )
    cluster.orc("service", "rm", "-d", "one")
    # Wherever the scheduler would spread them to, they go where the data is.
    tasks = cluster.script(
        "two", hello, "sleep 1h", "--mount", "source=data,target=/mnt", "--replicas", "4"
    )
    assert {each["node"] for each in tasks} == {home}
    assert inside(cluster, tasks[0], "cat /mnt/file") == "kept"
    cluster.orc("service", "rm", "-d", "two")
    eventually(lambda: cluster.orc("volume", "rm", "data", ok=False).returncode == 0)
    assert "no volume 'data'" in cluster.refused("volume", "rm", "data")


def test_a_task_waits_for_the_node_of_its_volume(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    cluster.orc("volume", "create", "--node", "node2", "pinned")
    cluster.orc(
        "service", "create", "-d", "--name", "web", "-v", "pinned:/data",
        "--constraint", "node.hostname==node1", hello,
    )  # fmt: skip

    def why() -> str:
        return str(cluster.task("web")["error"])

    assert eventually(lambda: "volume pinned is on node2" in why() and why())
    cluster.orc("service", "update", "-d", "web", "--constraint-rm", "node.hostname==node1")
    assert cluster.await_running("web", 1)[0]["node"] == "node2"


def test_each_slot_keeps_its_own(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    script = "cat /data/slot 2>/dev/null || echo fresh; echo $ORC_TASK_SLOT > /data/slot; sleep 1h"
    tasks = cluster.script(
        "db", hello, script, "--replicas", "3", "--mount",
        "type=volume,source=db-{{.Task.Slot}},target=/data",
    )  # fmt: skip
    homes = {task["slot"]: task["node"] for task in tasks}
    assert len(set(homes.values())) == 3
    for task in tasks:
        mine = partial(inside, cluster, task, "cat /data/slot")
        eventually(lambda mine=mine, task=task: mine() == str(task["slot"]))  # type: ignore[misc]
    cluster.orc("service", "update", "--force", "db")
    again = cluster.running("db")
    assert {task["slot"]: task["node"] for task in again} == homes
    for task in again:
        slot = str(task["slot"])
        assert inside(cluster, task, "cat /data/slot") == slot
        assert volume(cluster, f"db-{slot}")["node"] == task["node"]

    def said() -> set[str]:
        logs = cluster.orc("service", "logs", "db").stdout
        return {line.rpartition("| ")[2] for line in logs.splitlines()}

    eventually(lambda: said() >= {"fresh", "1", "2", "3"})


def test_new_volume_is_filled_from_the_image(volumes: Cluster, seeded: str) -> None:
    cluster = volumes
    (task,) = cluster.script(
        "fill", seeded, "sleep 1h", "-v", "filled:/seed", "--mount",
        "source=bare,target=/other,volume-nocopy", "--mount", "source=empty,target=/seed/deep,ro",
    )  # fmt: skip
    listed = inside(cluster, task, "stat -c '%n %u:%g %a' /seed /seed/file; readlink /seed/link")
    assert listed.splitlines() == ["/seed 1000:1001 750", "/seed/file 1000:1001 644", "file"]
    assert inside(cluster, task, "cat /seed/file; cat /seed/deep/file") == "first\ntwo"
    refused = cluster.in_task(task, "/bin/busybox", "sh", "-c", "echo x > /seed/deep/new", ok=False)
    assert "Read-only file system" in refused.stderr
    inside(cluster, task, "echo changed > /seed/file")
    cluster.orc("service", "update", "--force", "fill")
    (task,) = cluster.running("fill")
    assert inside(cluster, task, "cat /seed/file") == "changed"


def test_one_folder_of_a_volume(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    (writer,) = cluster.script(
        "writer", hello,
        "mkdir -p /data/a/b && echo mine > /data/a/b/file && ln -s a/b /data/good && "
        "ln -s /etc /data/bad && touch /data/ready; sleep 1h", "-v", "shared:/data",
    )  # fmt: skip
    eventually(lambda: inside(cluster, writer, "ls /data/ready"))
    part = "source=shared,target=/part,volume-subpath="
    (task,) = cluster.script("part", hello, "sleep 1h", "--mount", f"{part}good")
    assert inside(cluster, task, "cat /part/file; stat -c %u /part/file") == "mine\n0"
    inside(cluster, task, "echo more > /part/new")
    assert inside(cluster, writer, "cat /data/a/b/new; stat -c %u /data/a/b/new") == "more\n0"
    # A link that was good when one container started is looked at again for the next.
    inside(cluster, writer, "ln -sfn /etc /data/good")
    for path, why in (
        ("good", "is a symbolic link to outside of the volume"),
        ("none", "has no folder 'none'"),
    ):
        run = cluster.orc("run", "--rm", "--mount", part + path, hello, "true", ok=False)
        assert run.returncode != 0
        assert why in run.stderr
        assert len(run.stderr.splitlines()) == 1, run.stderr
    cluster.orc("service", "rm", "-d", "part")

    def unmounted() -> bool:
        mounts = cluster.exec(task["node"], "cat", "/proc/self/mountinfo").stdout
        assert "/subpaths/" not in mounts
        return True

    eventually(unmounted)


def test_a_size_is_a_hard_limit(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    cluster.orc("volume", "create", "--opt", "size=16m", "small")
    (task,) = cluster.script(
        "full", hello, "sleep 1h", "-v", "small:/data", "--storage-opt", "size=12m"
    )
    for folder, most in (("/data", 16 << 20), ("/var/tmp", 12 << 20)):
        full = attempt(
            cluster, task, f"mkdir -p {folder}; dd if=/dev/zero of={folder}/big bs=64k count=1024"
        )
        assert "No space left on device" in full, folder
        written = int(inside(cluster, task, f"stat -c %s {folder}/big"))
        assert most / 2 < written <= most
    assert volume(cluster, "small")["limit"] == 16 << 20
    cluster.orc("service", "rm", "-d", "full")

    def unmounted() -> bool:
        mounts = cluster.exec(task["node"], "cat", "/proc/self/mountinfo").stdout
        assert "/disk" not in mounts
        return True

    eventually(unmounted)


def test_bind_mount_of_a_missing_path(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    cluster.orc(
        "service", "create", "-d", "--name", "bad", "--restart-condition", "none", "--mount",
        "type=bind,source=/nowhere/x,target=/data", hello,
    )  # fmt: skip

    def why() -> str:
        return str(cluster.task("bad")["error"])

    eventually(lambda: "bind source path /nowhere/x does not exist on node" in why())
    (task,) = cluster.script(
        "made", hello, "echo here > /data/file; sleep 1h", "-v", "/run/orc-made/deep:/data"
    )
    eventually(
        lambda: cluster.exec(task["node"], "cat", "/run/orc-made/deep/file").stdout == "here\n",
    )


def test_volumes_from_places_together(volumes: Cluster, seeded: str) -> None:
    cluster = volumes
    (holder,) = cluster.script(
        "holder", seeded, "sleep 1h", "-v", "shared:/seed", "-v", "/anonymous"
    )
    tasks = cluster.script(
        "user", seeded, "sleep 1h", "--volumes-from", "holder.1:ro", "--replicas", "3"
    )
    assert {task["node"] for task in tasks} == {holder["node"]}
    inside(cluster, holder, "echo news > /anonymous/file")
    for task in tasks:
        assert inside(cluster, task, "cat /seed/file /anonymous/file") == "first\nnews"
    assert "Read-only file system" in attempt(cluster, tasks[0], "touch /anonymous/x")
    assert set(volume(cluster, "shared")["used_by"]) == {"holder.1", "user.1", "user.2", "user.3"}


def test_prune_removes_unused_volumes(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    cluster.script("web", hello, "sleep 1h", "-v", "used:/data", "-v", "/anonymous")
    cluster.orc("volume", "create", "--label", "keep=yes", "unused")
    cluster.orc("volume", "create", "spare")
    assert cluster.orc("volume", "prune", "--force").stdout.startswith("Total")
    pruned = cluster.orc("volume", "prune", "-a", "-f", "--filter", "label!=keep").stdout
    assert pruned.splitlines()[0] == "spare"
    names = [row["name"] for row in cluster.json("volume", "ls") if not row["anonymous"]]
    assert names == ["unused", "used"]
    assert any(row["anonymous"] for row in cluster.json("volume", "ls"))
    cluster.orc("service", "rm", "-d", "web")
    # One without a name goes with its task.
    eventually(lambda: not any(row["anonymous"] for row in cluster.json("volume", "ls")))


def test_mounts_survive_a_killed_agent_and_a_reboot(volumes: Cluster, hello: str) -> None:
    cluster = volumes
    cluster.orc("volume", "create", "--opt", "size=16m", "small")
    (task,) = cluster.script("web", hello, "date >> /data/log; sleep 1h", "-v", "small:/data")
    cluster.kill9(task["node"], "daemon")
    cluster.await_ready()
    eventually(lambda: inside(cluster, task, "cat /data/log"))
    cluster.power_off(task["node"])
    cluster.start(task["node"])
    cluster.await_ready()

    def lines() -> int:
        (again,) = cluster.running("web")
        assert again["node"] == task["node"]
        log = cluster.exec(again["node"], *_entering(again, "cat /data/log"), ok=False).stdout
        return len(log.splitlines())

    eventually(lambda: lines() >= 2)


SOCKET = "/run/docker/plugins/toy.sock"


@contextmanager
def plugin(cluster: Cluster, host: str, folder: Path) -> Iterator[None]:
    """A volume plugin of global scope on a host, until the end of the block."""
    script = Path(__file__).with_name("volumeplugin.py")
    command = [ORC, "dev", "exec", "--name", cluster.name, host, sys.executable, str(script)]
    process = subprocess.Popen([*command, SOCKET, str(folder), "global"], env=cluster.env)
    try:
        yield
    finally:
        cluster.exec(host, "sh", "-c", f"kill $(cat {SOCKET.replace('sock', 'pid')})")
        process.wait(PATIENCE)
        cluster.exec(host, "rm", SOCKET)


@contextmanager
def rclone(cluster: Cluster, host: str, folder: Path, *around: str) -> Iterator[str]:
    """Debian's rclone as a volume plugin of FUSE mounts on a host, until the end of the block, and
    the name of its driver; `around` is a command that runs it."""
    name = f"rclone-{folder.name}"
    socket, pid = f"/run/docker/plugins/{name}.sock", folder / "pid"
    folder.mkdir()
    (folder / "rclone.conf").touch()
    # Not a child of nsenter's, which stops and goes on together with its child.
    serve = (
        f"mkdir -p /run/docker/plugins; rclone serve docker --allow-other --socket-addr {socket}"
        f" --base-dir {folder}/mounts --cache-dir {folder}/cache --config {folder}/rclone.conf &"
        f" echo $! > {pid}; wait"
    )
    command = [ORC, "dev", "exec", "--name", cluster.name, host, *around, "sh", "-c", serve]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=cluster.env, stdout=log, stderr=log)
    try:

        def found() -> bool:
            made = cluster.orc(
                *("volume", "create", "-d", name, "--node", host, "-o", "type=local"),
                *("-o", f"path={folder}/data", f"data-{folder.name}"),
                ok=False,
            )
            return made.returncode == 0

        (folder / "data").mkdir()
        eventually(found)
        yield name
        cluster.orc("volume", "rm", f"data-{folder.name}")
    finally:
        cluster.exec(host, "sh", "-c", f"kill -CONT $(cat {pid}); kill $(cat {pid})", ok=False)
        process.wait(PATIENCE)
        cluster.exec(host, "rm", "-f", socket)


def test_a_fuse_plugin_in_containers_with_users_of_their_own(
    volumes: Cluster, hello: str, tmp_path: Path
) -> None:
    cluster, folder = volumes, tmp_path / "fuse"

    def attempt_run(command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        mount = ("-v", "data-fuse:/data", "--entrypoint", "/bin/busybox")
        return cluster.orc("run", "--rm", *mount, hello, "sh", "-c", command, ok=ok)

    with rclone(cluster, "node1", folder) as driver:
        found = attempt_run(
            "grep -q '^ *0 *0 ' /proc/self/uid_map && exit 9; stat -f -c %t /data;"
            " echo written > /data/file && cat /data/file"
        )
        assert found.stdout.split() == ["65735546", "written"], "the type of FUSE"
        assert (folder / "data" / "file").read_text() == "written\n"
        assert "cannot map user ids" in volume(cluster, "data-fuse")["notice"]

        # Hung: it is named, what needs it fails, and others go on.
        pid = (folder / "pid").read_text().strip()
        cluster.exec("node1", "kill", "-STOP", pid)
        hung = attempt_run("true", ok=False)
        assert hung.returncode == 125
        waits, failed = hung.stderr.splitlines()
        assert f"waits: volume driver {driver} has not answered yet (volume data-fuse)" in waits
        assert f"volume driver {driver} does not answer: no answer within" in failed
        local = ("--constraint", "node.hostname==node1", "--entrypoint", "/bin/busybox")
        assert cluster.orc("run", "--rm", *local, hello, "true").returncode == 0
        removal = cluster.orc("volume", "rm", "data-fuse", ok=False)
        assert f"volume driver {driver} does not answer" in removal.stderr
        # It comes back.
        cluster.exec("node1", "kill", "-CONT", pid)
        assert attempt_run("cat /data/file").stdout == "written\n"


def test_a_mount_that_only_its_plugin_sees_is_refused(
    volumes: Cluster, hello: str, tmp_path: Path
) -> None:
    private = ("unshare", "--mount", "--propagation", "private")
    with rclone(volumes, "node1", tmp_path / "hidden", *private):
        mount = ("-v", "data-hidden:/data", "--entrypoint", "/bin/busybox")
        found = volumes.orc("run", "--rm", *mount, hello, "touch", "/data/file", ok=False)
        assert found.returncode == 125
        assert "in a mount namespace of its own, which containers do not see" in found.stderr
    assert list((tmp_path / "hidden" / "mounts").glob("*/file")) == []


def test_a_plugin_serves_its_volumes_everywhere_it_is(
    volumes: Cluster, hello: str, tmp_path: Path
) -> None:
    cluster, folder = volumes, tmp_path / "toys"
    with ExitStack() as running:
        for host in ("node1", "node2"):
            running.enter_context(plugin(cluster, host, folder))

        def created() -> bool:
            return cluster.orc("volume", "create", "-d", "toy", "toys", ok=False).returncode == 0

        eventually(created)
        assert volume(cluster, "toys")["scope"] == "global"
        tasks = cluster.script("web", hello, "sleep 1h", "-v", "toys:/data", "--replicas", "2")
        assert {task["node"] for task in tasks} <= {"node1", "node2"}
        inside(cluster, tasks[0], "echo shared > /data/file")
        assert inside(cluster, tasks[1], "cat /data/file") == "shared"
        folder.with_suffix(".hang").touch()
        cluster.orc("volume", "create", "--node", "node3", "own")
        listing = cluster.orc("volume", "ls")
        assert "node1: volume driver toy does not answer" in listing.stderr
        assert "own" in listing.stdout
        assert "toys" in listing.stdout
        folder.with_suffix(".hang").unlink()
        cluster.orc("service", "rm", "-d", "web")
        eventually(lambda: cluster.orc("volume", "rm", "toys", ok=False).returncode == 0)
        assert list(folder.iterdir()) == []
