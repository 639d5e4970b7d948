# SPDX-License-Identifier: Apache-2.0
"""Trees of files as they appear to a program, from this node's mounts and from another tool."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from imagekit import Layout
from storekit import no_fetch

from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.runtime.isolation.rootfs import mount_image_root, mount_layers
from orchestrator.linux.mounts import unmount, unshare_mounts

T = TypeVar("T")

Tree = dict[bytes, tuple[object, ...]]
"""What is at each path below the root: type, mode, owner, device, time, content, attributes, and
the paths of the same file."""


def tree(root: Path) -> Tree:
    """All that is below `root`, as stat(2), readlink(2) and listxattr(2) show it."""
    found: Tree = {}
    same: dict[tuple[int, int], list[bytes]] = {}
    start = os.fsencode(root)
    for path in _paths(start):
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode):
            same.setdefault((info.st_dev, info.st_ino), []).append(path[len(start) :])
    for path in _paths(start):
        info = os.lstat(path)
        folder = stat.S_ISDIR(info.st_mode)
        names = os.listxattr(path, follow_symlinks=False)
        found[path[len(start) :]] = (
            stat.filemode(info.st_mode),
            (info.st_uid, info.st_gid),
            info.st_rdev,
            None if folder else info.st_mtime_ns,
            _content(path, info),
            {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)},
            () if folder else tuple(sorted(same[(info.st_dev, info.st_ino)])),
        )
    return found


def _paths(folder: bytes) -> list[bytes]:
    found = []
    for entry in os.scandir(folder):
        found.append(entry.path)
        if entry.is_dir(follow_symlinks=False):
            found.extend(_paths(entry.path))
    return found


def _content(path: bytes, info: os.stat_result) -> object:
    """A link's target; of a file its size and a digest of what is not a hole."""
    if stat.S_ISLNK(info.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(info.st_mode):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while (begin := _data_from(file.fileno(), file.tell())) is not None:
            file.seek(begin)
            piece = file.read(1 << 20)
            if kept := piece.strip(b"\0"):
                digest.update(b"%d:" % (begin + piece.index(kept)) + kept)
    return info.st_size, digest.hexdigest()


def _data_from(descriptor: int, offset: int) -> int | None:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:
        return None


def privately(work: Callable[[], T]) -> T:
    """The result of `work`, done with mounts of its own, which end with it."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            unshare_mounts()
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def container_tree(layers: Sequence[Path], folder: Path) -> Tree:
    """What a container of these layers sees."""
    places = [folder / name for name in ("upper", "work", "root", "maps")]
    for place in places:
        place.mkdir(parents=True)
    upper, work, root, maps = places

    def look() -> Tree:
        mount_image_root(layers, upper, work, root, maps=maps)
        found = tree(root)
        unmount(root)
        return found

    try:
        return privately(look)
    finally:
        shutil.rmtree(folder)


def read_only_tree(layers: Sequence[Path], folder: Path) -> Tree:
    """What shows when the layers are mounted without a writable one."""
    folder.mkdir()

    def look() -> Tree:
        mount_layers(layers, folder)
        found = tree(folder)
        unmount(folder)
        return found

    try:
        return privately(look)
    finally:
        folder.rmdir()


async def here(layout: Layout, digest: str, folder: Path) -> Tree:
    """The tree of a container of an image of the layout, by this node's store and mounts."""
    async with ImageStore(folder / "store") as store:
        await store.load(layout.finish())
        image = await store.ensure(digest, no_fetch)
        return container_tree(image.layers, folder / "container")


def by_umoci(layout: Layout, name: str, folder: Path) -> Tree:
    """The tree of an image of the layout as umoci unpacks it: one layer after the other into one
    folder, without an overlay."""
    image = f"{layout.finish()}:{name}"
    command = ["umoci", "raw", "unpack", "--image", image, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        return tree(folder)
    finally:
        shutil.rmtree(folder)
