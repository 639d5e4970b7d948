"""Images by name, as archives and out of containers, as a Docker user does it by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

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
        cluster.orc("service", "rm", *services)
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


def test_an_image_in_use_stays_and_it_says_by_whom(cluster: Cluster, mine: str) -> None:
    cluster.orc("service", "create", "--name", "web", mine)
    line = cluster.refused("rmi", mine)
    assert "image 'mine:1' is used by container web.1 on node" in line
    assert "-f" in line
    cluster.orc("rmi", "-f", mine)
    assert "mine:1" not in _images(cluster)
    assert len(cluster.running("web")) == 1
    assert "freed" in cluster.orc("image", "prune", "-f").stdout
    assert len(cluster.running("web")) == 1
    cluster.orc("service", "rm", "web")
    eventually(lambda: not cluster.json("service", "ls"), within=20)
    pruned = eventually(
        lambda: [
            line
            for line in cluster.orc("image", "prune", "-f").stdout.splitlines()
            if line.startswith("deleted")
        ],
        within=20,
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


def test_a_saved_image_is_what_it_was(cluster: Cluster, mine: str, tmp_path: Path) -> None:
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
    cluster.orc("service", "create", "-d", "--name", "work", "mine:2", *command)
    cluster.await_running("work", 1)

    def changes() -> set[tuple[str, str]]:
        return {(c["kind"], c["path"]) for c in cluster.json("diff", "work.1")}

    eventually(lambda: ("A", "/new") in changes(), within=10)
    assert ("D", "/bin/entrypoint") in changes()
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
    cluster.orc("service", "create", "--name", "again", "made:1", "/bin/busybox", "sleep", "999")
    assert not cluster.json("diff", "again.1")
    cluster.orc("service", "rm", "work", "again")


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
