# SPDX-License-Identifier: Apache-2.0
"""Images: built, loaded, spread over the nodes as they are needed, replaced, and shared."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

NODES = ["node1", "node2", "node3"]
ON_EACH = ("--replicas", "3")


BUSYBOX = Path(__file__).parents[2] / "charts" / "hello" / "busybox"
"""Is there once the image `hello` was built."""

BASE = "FROM scratch\nCOPY busybox /bin/busybox\nENV PATH=/bin\n"


@pytest.fixture
def context(tmp_path: Path, hello: str) -> Path:
    """A folder to build from: an image with a shell and the file `/greeting`."""
    folder = tmp_path / "context"
    folder.mkdir()
    shutil.copy(BUSYBOX, folder)
    (folder / "greeting").write_text("one\n")
    (folder / "Dockerfile").write_text(f"{BASE}COPY greeting /greeting\n")
    return folder


def image(cluster: Cluster, name: str) -> dict[str, Any]:
    """The one image of that name."""
    repository, _, tag = name.partition(":")
    rows = [
        row
        for row in cluster.json("images")
        if (row["repository"], row["tag"]) == (repository, tag)
    ]
    assert len(rows) == 1, rows
    return dict(rows[0])


def file_in(cluster: Cluster, task: dict[str, Any], path: str) -> str:
    return cluster.in_task(task, "/bin/busybox", "cat", path).stdout


def layer_folders(cluster: Cluster, node: str) -> dict[str, tuple[int, int]]:
    """A node's unpacked layers: name → (inode, time of the last change)."""
    folder = cluster.data(node) / "images" / "layers"
    return {
        path.name: ((found := path.stat()).st_ino, found.st_mtime_ns) for path in folder.iterdir()
    }


def rubbish(cluster: Cluster) -> list[Path]:
    """What interrupted or refused uploads and builds left behind on any node."""
    return [
        path
        for node in NODES
        for folder in ("uploads", "images/tmp", "build/tmp")
        for path in (cluster.data(node) / folder).glob("*")
    ]


def test_a_failing_build_shows_its_output_and_its_line(cluster: Cluster, context: Path) -> None:
    before = cluster.json("images")
    (context / "Dockerfile").write_text(
        f"{BASE}# This one works.\n"
        'RUN ["/bin/busybox", "sh", "-c", "echo so far so good"]\n'
        'RUN ["/bin/busybox", "sh", "-c", "echo the reason; exit 7"]\n'
        "COPY greeting /greeting\n"
    )
    done = cluster.orc("build", "-t", "failing:1", str(context), ok=False)
    assert done.returncode == 1
    *output, last = done.stderr.splitlines()
    assert "so far so good" in output
    assert "the reason" in output
    assert "Dockerfile:6:" in last
    assert "exit 7" in last
    assert "7" in last.rpartition(":")[2]
    assert "Traceback" not in done.stderr
    assert cluster.json("images") == before
    eventually(lambda: rubbish(cluster) == [])


@pytest.mark.parametrize(
    ("dockerfile", "words"),
    [
        ("FROM scratch\nCOPY nothing /x\n", "Dockerfile:2:"),
        ("FROM scratch\nJUMP\n", "JUMP"),
        ("", "Dockerfile"),
    ],
)
def test_invalid_dockerfile_is_refused(
    cluster: Cluster, context: Path, dockerfile: str, words: str
) -> None:
    before = cluster.json("images")
    (context / "Dockerfile").write_text(dockerfile)
    done = cluster.orc("build", "-t", "failing:1", str(context), ok=False)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert cluster.json("images") == before


def test_a_dockerignore_is_honoured(cluster: Cluster, context: Path) -> None:
    for name in ("secret.key", "notes.txt", "kept.txt", "sub/deep.key", "sub/page"):
        (context / name).parent.mkdir(exist_ok=True)
        (context / name).write_text("x")
    (context / ".dockerignore").write_text("**/*.key\n*.txt\n!kept.txt\n# a comment\n")
    (context / "Dockerfile").write_text(f"{BASE}COPY . /all/\n")
    cluster.orc("build", "-t", "ignoring:1", str(context))
    (task,) = cluster.script("idle", "ignoring:1", "sleep 1000")
    found = cluster.in_task(task, "/bin/busybox", "find", "/all", "-type", "f").stdout.split()
    files = {name.removeprefix("/all/") for name in found}
    assert {"kept.txt", "greeting", "sub/page"} <= files
    assert not {"secret.key", "notes.txt", "sub/deep.key"} & files


def test_an_image_goes_to_the_nodes_that_need_it(cluster: Cluster, context: Path) -> None:
    (context / "greeting").write_text("travels\n")
    cluster.orc("build", "-t", "travels:1", "--node", "node2", str(context))
    assert image(cluster, "travels:1")["nodes"] == ["node2"]
    tasks = cluster.script("idle", "travels:1", "sleep 1000", *ON_EACH)
    assert {task["node"] for task in tasks} == set(NODES)
    assert {file_in(cluster, task, "/greeting") for task in tasks} == {"travels\n"}
    eventually(lambda: sorted(image(cluster, "travels:1")["nodes"]) == NODES)


def test_a_layer_is_unpacked_once_a_node(cluster: Cluster, hello: str, context: Path) -> None:
    cluster.script("first", hello, "sleep 1000", *ON_EACH)
    before = {node: layer_folders(cluster, node) for node in NODES}
    # More containers, and an image on top of the same layers: one layer more and no other.
    cluster.script("second", hello, "sleep 1000", "--replicas", "6")
    assert {node: layer_folders(cluster, node) for node in NODES} == before
    (context / "Dockerfile").write_text(f"FROM {hello}\nCOPY greeting /greeting\n")
    cluster.orc("build", "-t", "taller:1", "--node", "node1", str(context))
    below, above = image(cluster, hello)["layers"], image(cluster, "taller:1")["layers"]
    assert above[: len(below)] == below
    assert len(above) == len(below) + 1
    cluster.script("third", "taller:1", "sleep 1000", *ON_EACH)
    for node in NODES:
        after = layer_folders(cluster, node)
        assert before[node].items() <= after.items()
        assert len(after) == len(before[node]) + 1


def with_each_layer_twice(archive: Path, name: str) -> None:
    """Change an image in an archive: above its layers come the same once more."""
    with tarfile.open(archive) as old:
        files = {each.name: old.extractfile(each).read() for each in old}  # type: ignore[union-attr]

    def path(digest: str) -> str:
        return f"blobs/sha256/{digest.removeprefix('sha256:')}"

    def put(document: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        files[path(digest)] = data
        return {"digest": digest, "size": len(data)}

    (entry,) = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files[path(entry["digest"])])
    config = json.loads(files[path(manifest["config"]["digest"])])
    config["rootfs"]["diff_ids"] *= 2
    config.pop("history", None)
    manifest["layers"] *= 2
    manifest["config"] |= put(config)
    entry |= put(manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    del files["manifest.json"]
    with tarfile.open(archive, "w") as new:
        for each, data in files.items():
            member = tarfile.TarInfo(each)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def test_an_image_in_which_layers_recur_runs_on_all_nodes(
    cluster: Cluster, hello: str, tmp_path: Path
) -> None:
    archive = tmp_path / "twice.tar"
    cluster.orc("save", "-o", str(archive), hello)
    with_each_layer_twice(archive, "twice:1")
    cluster.orc("load", str(archive))
    layers = image(cluster, "twice:1")["layers"]
    assert len(layers) == 2 * len(set(layers))
    tasks = cluster.script("twice", "twice:1", "sleep 1000", *ON_EACH)
    assert {task["node"] for task in tasks} == set(NODES)


def archived(folder: Path, name: str) -> dict[str, Path]:
    """An image in both kinds of archive, as other tools write them: `NAME:oci`, `NAME:docker`."""
    shutil.copy(BUSYBOX, folder)
    # A layer like no other, and most of the archive.
    (folder / "unlike").write_bytes(os.urandom(4 << 20))
    (folder / "Dockerfile").write_text(
        f'{BASE}COPY unlike /unlike\nENV BOX=yes\nENTRYPOINT ["/bin/busybox", "sleep", "1000"]\n'
    )
    buildah = ["buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run"]
    buildah += ["--storage-driver", "vfs"]
    made = {kind: folder / f"{kind}.tar" for kind in ("oci", "docker")}
    local = f"localhost/{name}:1"
    for command in (
        [*buildah, "bud", "--quiet", "--isolation", "chroot", "-t", local, str(folder)],
        [*buildah, "push", "--quiet", local, f"oci-archive:{made['oci']}:{name}:oci"],
        [
            *("skopeo", "copy", "--quiet", f"oci-archive:{made['oci']}"),
            f"docker-archive:{made['docker']}:{name}:docker",
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def archives(hello: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives of the image `boxed`."""
    return archived(tmp_path_factory.mktemp("boxed"), "boxed")


@pytest.fixture(scope="module")
def foreign_archives(hello: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives of an image that no node has a layer of: what is known is not read again."""
    return archived(tmp_path_factory.mktemp("foreign"), "foreign")


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_an_archive_of_another_tool_is_loaded(
    cluster: Cluster, archives: dict[str, Path], kind: str
) -> None:
    done = cluster.orc("load", "--node", "node3", str(archives[kind]))
    assert f"loaded boxed:{kind} (" in done.stdout
    assert image(cluster, f"boxed:{kind}")["nodes"] == ["node3"]
    # Under a name of our own choice, it is one more name of the same image.
    cluster.orc("load", "--node", "node3", "-t", f"renamed:{kind}", "-i", str(archives[kind]))
    assert image(cluster, f"renamed:{kind}")["id"] == image(cluster, f"boxed:{kind}")["id"]
    cluster.orc(
        "service", "create", "--name", "box", "--stop-grace-period", "100ms", f"boxed:{kind}"
    )
    (task,) = cluster.running("box")
    environment = cluster.exec(task["node"], "cat", f"/proc/{task['pid']}/environ").stdout
    assert "BOX=yes" in environment.split("\0")


@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_a_damaged_archive_is_refused_and_changes_nothing(
    cluster: Cluster, foreign_archives: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    good = foreign_archives[kind].read_bytes()
    middle = len(good) // 2
    before = cluster.json("images")
    for damage, content in {
        "cut": good[:middle],
        "flipped": good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :],
        "noise": b"\x93\x01noise" * 1000,
        "empty": b"",
        "another file": b"FROM scratch\n",
    }.items():
        bad = tmp_path / "bad.tar"
        bad.write_bytes(content)
        line = cluster.refused("load", "-t", "damaged:1", str(bad))
        assert "archive" in line or "is damaged" in line, damage
    assert cluster.json("images") == before
    eventually(lambda: rubbish(cluster) == [])


def test_a_rebuilt_tag_moves_in_the_whole_cluster(cluster: Cluster, context: Path) -> None:
    (context / "greeting").write_text("old\n")
    cluster.orc("build", "-t", "moving:1", "--node", "node1", str(context))
    cluster.script("web", "moving:1", "sleep 1000", *ON_EACH)
    old = image(cluster, "moving:1")["id"]
    (context / "greeting").write_text("new\n")
    cluster.orc("build", "-t", "moving:1", "--node", "node2", str(context))
    assert image(cluster, "moving:1")["id"] != old
    # A new service gets the new one on every node, also where the old one had the name.
    fresh = cluster.script("fresh", "moving:1", "sleep 1000", *ON_EACH)
    assert {task["node"] for task in fresh} == set(NODES)
    assert {file_in(cluster, task, "/greeting") for task in fresh} == {"new\n"}
    # The one that runs keeps what it was created with, whoever restarts, until it is updated.
    assert {file_in(cluster, task, "/greeting") for task in cluster.running("web")} == {"old\n"}
    cluster.orc("service", "scale", "web=4")
    assert {file_in(cluster, task, "/greeting") for task in cluster.running("web")} == {"old\n"}
    cluster.orc("service", "update", "web", "--force")
    assert {file_in(cluster, task, "/greeting") for task in cluster.running("web")} == {"new\n"}


def test_an_update_of_the_image_rolls(cluster: Cluster, hello: str, context: Path) -> None:
    (context / "greeting").write_text("second edition\n")
    cluster.orc("build", "-t", "edition:2", str(context))
    before = cluster.script("web", hello, "sleep 1000", *ON_EACH)
    cluster.orc("service", "update", "web", "--image", "edition:2")
    after = cluster.running("web")
    assert {task["image"] for task in after} == {"edition:2"}
    assert {file_in(cluster, task, "/greeting") for task in after} == {"second edition\n"}
    assert not {task["id"] for task in before} & {task["id"] for task in after}
    # And back; both images are on the nodes already.
    cluster.orc("service", "update", "web", "--image", hello)
    assert {task["image"] for task in cluster.running("web")} == {hello}
    line = cluster.refused("service", "update", "web", "--image", "edition:3")
    assert "no image 'edition:3'" in line
    assert {task["image"] for task in cluster.running("web")} == {hello}
