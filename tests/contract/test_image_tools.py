# SPDX-License-Identifier: Apache-2.0
"""Images of real tools, and their mounts by the kernel."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
import pytest

from orchestrator.agent.builds.buildah import limits
from orchestrator.agent.images.image_spec import LocalImage
from orchestrator.agent.images.staging import IncomingBlob
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.image_peers import BlobService, fetch_from
from orchestrator.pb import blobs_pb2_grpc

pytestmark = pytest.mark.root

DOCKERFILE = """\
FROM scratch AS base
COPY first /
FROM base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", \
"cd /data; b=/bin/busybox; $b rm gone; $b rm -r replaced emptied; $b mkdir replaced emptied; \
echo 2 > replaced/new; echo 2 > changed"]
ENTRYPOINT ["/bin/busybox"]
"""


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def buildah_storage(root: Path) -> Iterator[list[object]]:
    """The first words of a buildah command with a storage of its own."""
    try:
        yield ["buildah", "--root", root / "root", "--runroot", root / "run",
               "--storage-driver", "overlay"]  # fmt: skip
    finally:
        subprocess.run(["umount", "-q", root / "root" / "overlay"], check=False)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with image `two:1`, whose second layer removes much of the first."""
    top = tmp_path_factory.mktemp("tools")
    data = top / "context" / "first" / "data"
    for path in ("gone", "changed", "kept", "replaced/old", "emptied/a/b"):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_text("1\n")
    (top / "context" / "Dockerfile").write_text(DOCKERFILE)
    run("cp", "/usr/bin/busybox", top / "context" / "busybox")
    with buildah_storage(top / "storage") as buildah:
        run(*buildah, "bud", "--isolation", "chroot", "--layers", *limits(),
            "-t", "two:1", top / "context")  # fmt: skip
        run(*buildah, "push", "two:1", f"oci:{top}/layout:two:1")
    return top / "layout"


async def no_fetch(blob: IncomingBlob) -> None:
    raise AssertionError(f"{blob.digest} was fetched")


def mounted(image: LocalImage, command: str, work: Path) -> str:
    """What a command says in an overlay of the image's layers, in a mount namespace of its own."""
    merged = work / "merged"
    merged.mkdir(exist_ok=True)
    lower = ":".join(str(layer) for layer in reversed(image.layers))
    script = f"mount -t overlay none -o lowerdir={lower} {merged} && cd {merged} && {command}"
    # The old system call: the new one takes at most 256 bytes in one option.
    return run("env", "LIBMOUNT_FORCE_MOUNT2=always",
               "unshare", "--mount", "--propagation", "private", "sh", "-c", script)  # fmt: skip


@pytest.mark.parametrize(
    "form",
    ["oci", "oci zstd", "oci-archive", "docker-archive", "dir of plain layers"],
)
async def test_images_of_real_tools_mount_as_built(layout: Path, tmp_path: Path, form: str) -> None:
    source, given = f"oci:{layout}:two:1", tmp_path / "given"
    match form:
        case "oci":
            given = layout
        case "oci zstd":
            run("skopeo", "copy", "-q", "--dest-compress-format=zstd",
                source, f"oci:{given}:two:1")  # fmt: skip
        case "oci-archive" | "docker-archive":
            run("skopeo", "copy", "-q", source, f"{form}:{given}:two:1")
        case _:
            run("skopeo", "copy", "-q", "--dest-decompress", source, f"oci:{given}:two:1")
    async with ImageStore(tmp_path / "store") as store:
        image = await store.load(given)
        assert image.names == ("two:1",)
        local = await store.ensure(image.id, no_fetch)
        assert local.config.entrypoint == ("/bin/busybox",)
        listing = await asyncio.to_thread(
            mounted, local, "find data -type f | sort; cat data/changed data/kept", tmp_path
        )
    assert listing.split() == ["data/changed", "data/kept", "data/replaced/new", "2", "1"]


async def test_unpacking_a_big_tree_matches_gnu_tar(tmp_path: Path) -> None:
    """The distribution's own files, as one layer: each name, mode, owner, time and content."""
    layer, blob = tmp_path / "plain", tmp_path / "layer.tar"
    trees = ("zoneinfo", "bash-completion")
    run("tar", "-C", "/usr/share", "--numeric-owner", "-cf", blob, *trees)
    layer.mkdir()
    run("tar", "-C", layer, "--same-owner", "-xpf", blob)
    archive = tmp_path / "image"
    run("mkdir", archive)
    digest = run("sha256sum", blob).split()[0]
    config = f'{{"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}'
    (archive / "config.json").write_text(config)
    (archive / "manifest.json").write_text(
        '[{"Config":"config.json","RepoTags":["t:1"],"Layers":["layer.tar"]}]'
    )
    run("mv", blob, archive / "layer.tar")
    async with ImageStore(tmp_path / "store") as store:
        image = await store.load(archive)
        local = await store.ensure(image.id, no_fetch)
    told = "find . -mindepth 1 -printf '%p %y %m %U %G %T@ %l\\n' | sort"
    ours = run("sh", "-c", f"cd {local.layers[0]} && {told}")
    assert ours.count("\n") > 1000
    assert ours == run("sh", "-c", f"cd {layer} && {told}")
    assert run("diff", "-r", "--no-dereference", layer, local.layers[0]) == ""


async def test_transfer_of_an_image_between_nodes(layout: Path, tmp_path: Path) -> None:
    async with (
        ImageStore(tmp_path / "one") as one,
        ImageStore(tmp_path / "two") as two,
    ):
        image = await one.load(layout)
        server = grpc.aio.server()
        blobs_pb2_grpc.add_BlobsServicer_to_server(BlobService(one.blob_path), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            fetch = fetch_from([f"127.0.0.1:{port}"], grpc.aio.insecure_channel, random.Random(1))
            local = await two.ensure(image.id, fetch)
        finally:
            await server.stop(None)
        assert two.changed.is_set()
        [copy] = two.inventory()
        assert (copy.id, copy.size, copy.layers) == (image.id, image.size, image.layers)
        output = await asyncio.to_thread(mounted, local, "cat data/changed", tmp_path)
        assert output == "2\n"
