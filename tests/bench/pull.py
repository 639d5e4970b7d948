# SPDX-License-Identifier: Apache-2.0
"""Pulling and unpacking an image, beside skopeo and tar by hand, from one registry.

The registry is Debian's docker-registry on loopback; the image is made of folders of this machine,
each packed as a layer by gzip: libraries, which are few and large, and what is in /usr/share, which
is many small files. By hand is `skopeo copy` into a folder, `tar -x` of each layer in turn, and a
flush; Orc's is the image store of a node, which verifies and flushes all that it keeps.

A disk that others use, and ext4 with its memory of deleted files, vary more than both; so the time
of the processors (all processes, user and system) stands beside the time that passed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.agent.images.image_spec import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, node_platform
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.registry import Registry
from tests.bench.cluster import BenchError
from tests.bench.tables import MIB, Table, at_most, median, seconds, times
from tests.freeports import free_ports

ROUNDS = 3
TARGET = 1.3
"""Times what it takes by hand, at most."""
FOLDERS = ("/usr/lib/python3", "/usr/share", "/usr/bin")
"""What the layers are made of, the lowest first."""
LARGEST = 100 * MIB
"""Bytes of files in a layer, about: a desktop's /usr would take minutes."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each round."""

    passed: tuple[float, ...]
    worked: tuple[float, ...]
    """Of all processors."""


@dataclass(frozen=True, slots=True)
class Pull:
    """What was measured of one image."""

    layers: tuple[int, ...]
    """Bytes of each, packed."""
    files: int
    by_hand: Times
    by_orc: Times


def measure(folder: Path) -> Pull:
    """Make an image in `folder`, serve it, and pull it a few times in both ways.

    Raises BenchError without the tools.
    """
    for tool in ("docker-registry", "skopeo", "tar", "gzip"):
        if shutil.which(tool) is None:
            raise BenchError(f"{tool} is not installed: scripts/setup")
    layout, files = folder / "pull-image", 0
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    packed = []
    for source in FOLDERS:
        names = _some(Path(source))
        files += len(names)
        packed.append(_layer(layout, names))
    _finish(layout, packed)
    with _registry(folder) as name:
        subprocess.run(
            ["skopeo", "copy", "-q", f"oci:{layout}:image", f"docker://{name}"], check=True
        )
        rounds = [
            (_timed(folder, lambda to: _by_hand(name, to)), _timed(folder, _by_orc(name)))
            for _ in range(ROUNDS)
        ]
    hand, orc = ([each[which] for each in rounds] for which in (0, 1))
    sizes = tuple(int(layer["size"]) for _, layer in packed)
    return Pull(sizes, files, _times(hand), _times(orc))


def report(pull: Pull) -> Table:
    """The table; pure."""
    rows = []
    for what, hand, orc in (
        ("time passed", pull.by_hand.passed, pull.by_orc.passed),
        ("processor time", pull.by_hand.worked, pull.by_orc.worked),
    ):
        ratio = median(orc) / median(hand)
        target = at_most(ratio, TARGET, f"{TARGET}x")
        rows.append((what, seconds(median(orc)), seconds(median(hand)), times(ratio), target))
    sizes = ", ".join(f"{size / MIB:.0f}" for size in pull.layers)
    return Table(
        "Pull and unpack an image",
        ("what", "Orc", "skopeo and tar", "ratio", "target"),
        tuple(rows),
        (f"layers of {sizes} MiB packed, {pull.files} files; medians of {ROUNDS}",),
    )


def _some(source: Path) -> list[str]:
    """Files of a folder, in order, until they are `LARGEST` bytes."""
    names, size = [], 0
    for top, folders, files in os.walk(source):
        folders.sort()
        for file in sorted(files):
            path = Path(top, file)
            size += path.lstat().st_size
            if size > LARGEST:
                return names
            names.append(str(path.relative_to("/")))
    return names


def _layer(layout: Path, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Pack files into a blob: the digest of its content, and its descriptor."""
    tar = layout / "layer.tar"
    subprocess.run(
        ["tar", "--null", "-C", "/", "--no-recursion", "-T", "-", "-cf", tar],
        input="\0".join(names).encode(errors="surrogateescape"),
        check=True,
    )
    with tar.open("rb") as file:
        diff_id = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    subprocess.run(["gzip", "-6", tar], check=True)
    packed = tar.with_name("layer.tar.gz")
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    packed.rename(layout / "blobs" / "sha256" / digest)
    kind = f"{OCI_LAYER}+gzip"
    return diff_id, {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _finish(layout: Path, layers: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Write the config, the manifest and the index of an image of these layers."""

    def document(kind: str, content: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        (layout / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": node_platform().architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [diff_id for diff_id, _ in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": document(OCI_CONFIG, config),
        "layers": [layer for _, layer in layers],
    }
    entry = document(OCI_MANIFEST, manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


@contextmanager
def _registry(folder: Path) -> Iterator[str]:
    """Serve a registry on loopback, which skopeo takes without TLS: a name in it."""
    port = free_ports()
    config = folder / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    home = folder / "pull-home"
    conf = home / ".config" / "containers"
    conf.mkdir(parents=True)
    (conf / "registries.conf").write_text(
        f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    before = os.environ.get("HOME", "/root")
    os.environ["HOME"] = str(home)
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("docker-registry does not start")
            time.sleep(0.05)
        yield f"127.0.0.1:{port}/bench:1"
    finally:
        os.environ["HOME"] = before
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionRefusedError:
        return False
    return True


def _timed(folder: Path, act: Callable[[Path], None]) -> tuple[float, float]:
    """Seconds that passed and that processors worked, of an act in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        worked, began = _worked(), time.perf_counter()
        act(Path(own))
        return time.perf_counter() - began, _worked() - worked


def _worked() -> float:
    """Seconds of processor time so far, of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _times(rounds: Sequence[tuple[float, float]]) -> Times:
    return Times(tuple(passed for passed, _ in rounds), tuple(worked for _, worked in rounds))


def _by_hand(name: str, folder: Path) -> None:
    layout = folder / "layout"
    subprocess.run(["skopeo", "copy", "-q", f"docker://{name}", f"oci:{layout}:image"], check=True)
    blobs = layout / "blobs" / "sha256"
    index = json.loads((layout / "index.json").read_text())
    manifest = index["manifests"][0]["digest"].removeprefix("sha256:")
    for number, layer in enumerate(json.loads((blobs / manifest).read_text())["layers"]):
        into = folder / f"layer-{number}"
        into.mkdir()
        blob = blobs / layer["digest"].removeprefix("sha256:")
        subprocess.run(["tar", "-xf", blob, "-C", into], check=True)
    subprocess.run(["sync", "-f", folder], check=True)


def _by_orc(name: str) -> Callable[[Path], None]:
    async def pull(folder: Path) -> None:
        registry = Registry(folder)
        async with ImageStore(folder / "store") as store:
            digest = await registry.resolve(name)
            async with registry.source(name, digest, there=store.blob_path) as fetch:
                await store.ensure(digest, fetch, name)

    return lambda folder: asyncio.run(pull(folder))
