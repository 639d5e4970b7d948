# SPDX-License-Identifier: Apache-2.0
"""Images by name, as archives and out of containers, as a Docker user does it by hand."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ORC, Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def _images(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {f"{i['repository']}:{i['tag']}": i for i in cluster.json("images")}


@pytest.fixture
def mine(cluster: Cluster, hello: str, tmp_path: Path) -> Iterator[str]:
    """An image of this test's own, on top of hello."""
    (tmp_path / "Dockerfile").write_text(f"FROM {hello}\nLABEL of={tmp_path}\n")
    cluster.orc("build", "-q", "-t", "mine:1", str(tmp_path))
    yield "mine:1"
    services = [s["name"] for s in cluster.json("service", "ls")]
    if services:
        cluster.orc("service", "rm", "-d", *services)
    for name in ("mine:1", "mine:2", "made:1"):
        cluster.orc("rmi", "-f", name, ok=False)


def test_a_name_more_and_a_name_less(cluster: Cluster, mine: str) -> None:
    cluster.orc("tag", mine, "mine:2")
    before = _images(cluster)
    assert before["mine:1"]["id"] == before["mine:2"]["id"]
    assert cluster.orc("rmi", mine).stdout == "untagged: mine:1\n"
    assert "mine:1" not in _images(cluster)
    done = cluster.orc("rmi", "mine:2").stdout
    assert "untagged: mine:2" in done
    assert f"deleted: {before['mine:1']['id']}" in done
    assert before["mine:1"]["id"] not in {i["id"] for i in cluster.json("images")}
    assert "no image 'mine:2'" in cluster.refused("rmi", "mine:2")


def test_disconnected_node_removes_its_copy_when_it_reconnects(cluster: Cluster, mine: str) -> None:
    image = _images(cluster)[mine]
    cluster.orc("service", "create", "--name", "web", "--mode", "global", mine)
    assert set(_images(cluster)[mine]["nodes"]) == set(cluster.nodes())
    cluster.orc("service", "rm", "-d", "web")
    eventually(lambda: not cluster.json("service", "ls"))
    blob = cluster.data("node3") / "images/blobs/sha256" / image["digest"].partition(":")[2]
    cluster.stop("node3")
    try:
        eventually(lambda: cluster.nodes()["node3"]["state"] == "down")
        done = cluster.orc("rmi", mine)
        assert f"deleted: {image['id']}" in done.stdout
        assert "node node3 is unavailable and removes its copy when it returns" in done.stderr
        assert image["id"] not in {i["id"] for i in cluster.json("images")}
        assert blob.exists()
    finally:
        cluster.start("node3")
    eventually(lambda: not blob.exists())
    assert image["id"] not in {i["id"] for i in cluster.json("images")}
    assert "no image" in cluster.refused("image", "inspect", image["id"])


def test_image_in_use_is_kept_and_its_users_are_named(cluster: Cluster, mine: str) -> None:
    cluster.orc("service", "create", "--name", "web", mine)
    cluster.orc("image", "prune", "-f")  # what others have left without a name
    line = cluster.refused("rmi", mine)
    assert "image 'mine:1' is in use by service web" in line
    assert "-f" in line
    cluster.orc("rmi", "-f", mine)
    assert "mine:1" not in _images(cluster)
    assert len(cluster.running("web")) == 1
    assert "Total reclaimed space: 0B" in cluster.orc("image", "prune", "-f").stdout
    assert len(cluster.running("web")) == 1
    cluster.orc("service", "rm", "-d", "web")
    eventually(lambda: not cluster.json("service", "ls"))
    pruned = eventually(
        lambda: [
            line
            for line in cluster.orc("image", "prune", "-f").stdout.splitlines()
            if line.startswith("deleted")
        ],
    )
    assert len(pruned) == 1


def test_history_and_inspect(cluster: Cluster, mine: str, tmp_path: Path) -> None:
    (document,) = json.loads(cluster.orc("image", "inspect", mine).stdout)
    assert document["names"] == ["mine:1"]
    assert document["config"]["Labels"]["of"] == str(tmp_path)
    assert document["nodes"]
    steps = cluster.json("history", mine)
    assert "LABEL" in steps[0]["created_by"]
    assert sum(step["size"] for step in steps) > 0
    short = document["id"].removeprefix("sha256:")[:12]
    assert json.loads(cluster.orc("image", "inspect", short).stdout) == [document]


def test_saved_image_is_unchanged(cluster: Cluster, mine: str, tmp_path: Path) -> None:
    was = _images(cluster)[mine]["id"]
    archive = tmp_path / "mine.tar"
    cluster.orc("save", "-o", str(archive), mine)
    cluster.orc("rmi", mine)
    cluster.orc("load", "-i", str(archive))
    assert _images(cluster)[mine]["id"] == was


def test_a_containers_changes_become_an_image(cluster: Cluster, mine: str, tmp_path: Path) -> None:
    script = "echo new > /new; busybox rm /bin/entrypoint; exec busybox sleep 1000"
    (tmp_path / "Dockerfile").write_text(f"FROM {mine}\nENTRYPOINT []\n")
    cluster.orc("build", "-q", "-t", "mine:2", str(tmp_path))
    command = ("/bin/busybox", "sh", "-c", script)
    at_once = ("--stop-grace-period", "100ms")
    cluster.orc("service", "create", "-d", "--name", "work", *at_once, "mine:2", *command)
    cluster.await_running("work", 1)

    def changes() -> set[tuple[str, str]]:
        return {(c["kind"], c["path"]) for c in cluster.json("diff", "work.1")}

    eventually(lambda: {("A", "/new"), ("D", "/bin/entrypoint")} <= changes())
    assert not {path for _, path in changes()} & {"/etc/hosts", "/proc", "/dev"}
    cluster.orc("export", "-o", str(tmp_path / "files.tar"), "work.1")
    with tarfile.open(tmp_path / "files.tar") as files:
        member = files.extractfile("new")
        assert member is not None
        assert member.read() == b"new\n"
    made = cluster.orc("commit", "-m", "by hand", "-c", "ENV A=1", "work.1", "made:1").stdout
    (document,) = json.loads(cluster.orc("image", "inspect", "made:1").stdout)
    assert document["id"] == made.strip()
    assert "A=1" in document["config"]["Env"]
    assert document["history"][-1]["comment"] == "by hand"
    again = ("made:1", "/bin/busybox", "sleep", "999")
    cluster.orc("service", "create", "--name", "again", *at_once, *again)
    assert not cluster.json("diff", "again.1")
    cluster.orc("service", "rm", "-d", "work", "again")


def test_import_takes_a_tar_only(cluster: Cluster, hello: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "root.tar", "w") as files:
        files.addfile(tarfile.TarInfo("hi"), io.BytesIO())
    cluster.orc("import", "-c", 'CMD ["/hi"]', str(tmp_path / "root.tar"), "made:1")
    (document,) = json.loads(cluster.orc("image", "inspect", "made:1").stdout)
    assert document["config"]["Cmd"] == ["/hi"]
    cluster.orc("rmi", "made:1")
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    assert "not a tar" in cluster.refused("import", str(tmp_path / "no.tar"), "made:1")
    assert "made:1" not in _images(cluster)


SHELL = ("sh", "-c")
IN_BUSYBOX = ("--entrypoint", "/bin/busybox")


def test_files_of_a_stopped_container_keep_their_owners(
    cluster: Cluster, mine: str, tmp_path: Path
) -> None:
    script = "echo x > /seven; busybox chown 7:8 /seven; busybox rm /bin/entrypoint; echo $A"
    run = ("run", *IN_BUSYBOX, "--name", "work", "-e", "A=1", "--node", "node2", mine)
    assert cluster.orc(*run, *SHELL, script).stdout == "1\n"
    # It has ended, and its root is not mounted any more.
    changes = {(c["kind"], c["path"]) for c in cluster.json("diff", "work")}
    assert changes == {("A", "/seven"), ("C", "/bin"), ("D", "/bin/entrypoint")}
    cluster.orc("export", "-o", str(tmp_path / "stopped.tar"), "work")
    commit = ("commit", "--author", "me", "--message", "by hand", "--change", "USER 7", "work")
    cluster.orc(*commit, "made:1")
    cluster.orc("rm", "work")
    (document,) = json.loads(cluster.orc("image", "inspect", "made:1").stdout)
    assert document["author"] == "me"
    assert document["history"][-1]["comment"] == "by hand"
    # What it was run with is the image's, too.
    assert "A=1" in document["config"]["Env"]
    assert document["config"]["Entrypoint"] == ["/bin/busybox"]
    assert document["config"]["Cmd"] == [*SHELL, script]
    show = "busybox stat -c %u:%g%n /seven /bin/busybox; busybox id -u"
    # Its entrypoint is now the one that it was run with.
    again = ("run", "-d", "--name", "again", "--node", "node3", "made:1", *SHELL)
    cluster.orc(*again, f"{show}; busybox sleep 1000")
    said = ["7:8/seven", "0:0/bin/busybox", "7"]
    eventually(lambda: cluster.orc("logs", "again").stdout.split() == said)
    cluster.orc("export", "-o", str(tmp_path / "running.tar"), "again")
    cluster.orc("rm", "-f", "again")
    for name in ("stopped", "running"):
        with tarfile.open(tmp_path / f"{name}.tar") as files:
            members = {member.name: member for member in files.getmembers()}
        assert (members["seven"].uid, members["seven"].gid) == (7, 8)
        assert (members["bin/busybox"].uid, members["bin/busybox"].gid) == (0, 0)
        assert "bin/entrypoint" not in members
    # And such a tar is an image's root again, however it is compressed.
    subprocess.run(["xz", "-0", tmp_path / "stopped.tar"], check=True)
    cluster.orc("import", "-m", "all of it", str(tmp_path / "stopped.tar.xz"), "made:1")
    run = ("run", "--rm", "--entrypoint", "", "made:1", "/bin/busybox", *SHELL)
    assert cluster.orc(*run, show).stdout.split()[0] == "7:8/seven"


def test_commit_pauses_the_container(cluster: Cluster, mine: str) -> None:
    # Two files that are always changed one after the other.
    script = "i=0; while :; do i=$((i+1)); echo $i > /a; echo $i > /b; done"
    cluster.orc("run", "-d", "--name", "busy", *IN_BUSYBOX, mine, *SHELL, script)
    eventually(lambda: cluster.orc("commit", "busy", "made:1", ok=False).returncode == 0)
    asked = ("--since", "1m", "--until", "0s", "--filter", "container=busy")

    def heard() -> bool:
        lines = cluster.orc("events", *asked, "--format", "{{.Action}}").stdout.split()
        paused = [each for each in lines if "pause" in each]
        assert paused == ["pause", "unpause"] * (len(paused) // 2)
        return bool(paused)

    eventually(heard)
    (busy,) = [row for row in cluster.json("ps") if row["name"] == "busy"]
    assert busy["state"] == "running"
    cluster.orc("rm", "-f", "busy")
    # The one that is being written may be empty.
    read = "read a < /a || read a < /b; read b < /b || b=$a; echo $((a-b))"
    made = ("run", "--rm", *IN_BUSYBOX, "made:1")
    assert cluster.orc(*made, *SHELL, read).stdout.strip() in ("0", "1")


def test_images_of_several_nodes_in_one_archive(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    for node, name in (("node1", "mine:1"), ("node3", "mine:2")):
        (tmp_path / "Dockerfile").write_text(f"FROM {hello}\nLABEL of={tmp_path} node={node}\n")
        cluster.orc("build", "-q", "-t", name, "--node", node, str(tmp_path))
    cluster.orc("tag", "mine:2", "made:1")
    before = {name: _images(cluster)[name] for name in ("mine:1", "mine:2", "made:1")}
    assert (before["mine:1"]["nodes"], before["mine:2"]["nodes"]) == (["node1"], ["node3"])
    archive = tmp_path / "all.tar"
    cluster.orc("save", "-o", str(archive), *before)
    with tarfile.open(archive) as files:
        names = files.getnames()
    assert len(names) == len(set(names))
    for row in before.values():
        tag = f"{row['repository']}:{row['tag']}"
        source = f"docker-archive:{archive}:{tag}"
        done = subprocess.run(["skopeo", "inspect", source], capture_output=True, check=True)
        assert json.loads(done.stdout)["Labels"]["node"] == row["nodes"][0]
    cluster.orc("rmi", "-f", *before)
    subprocess.run(["gzip", "-1", archive], check=True)
    with archive.with_suffix(".tar.gz").open("rb") as stdin:
        done = subprocess.run(
            [ORC, "load", "--node", "node2"],
            env=cluster.env, stdin=stdin, capture_output=True, check=True, text=True,
        )  # fmt: skip
    assert len(done.stdout.splitlines()) == 2
    after = {name: _images(cluster)[name] for name in before}
    assert {name: row["id"] for name, row in after.items()} == {
        name: row["id"] for name, row in before.items()
    }


def test_a_stopped_container_keeps_its_image(cluster: Cluster, mine: str) -> None:
    digest = _images(cluster)[mine]["id"]
    cluster.orc("run", *IN_BUSYBOX, "--name", "ended", mine, *SHELL, "echo again")
    line = cluster.refused("rmi", mine)
    assert "image 'mine:1' is in use by container ended on node" in line
    done = cluster.orc("rmi", "-f", mine)
    assert done.stdout == "untagged: mine:1\n"
    assert "stays while it is used by container ended" in done.stderr
    cluster.orc("image", "prune", "-a", "-f", "--filter", "label=of")
    (row,) = [row for row in cluster.json("images", "--filter", "dangling=true", "-f", "label=of")
              if row["id"] == digest]  # fmt: skip
    assert (row["repository"], row["tag"]) == ("<none>", "<none>")
    assert "again" in cluster.orc("start", "-a", "ended").stdout
    cluster.orc("rm", "ended")
    prune = ("image", "prune", "-f", "--filter", "label=of")
    eventually(lambda: f"deleted: {digest}" in cluster.orc(*prune).stdout)


def test_image_referenced_by_name_only_is_in_use(cluster: Cluster, mine: str) -> None:
    cluster.orc("service", "create", "-d", "--name", "web", "--no-resolve-image", mine)
    assert "is in use by" in cluster.refused("rmi", mine)
    cluster.orc("service", "rm", "-d", "web")
