# SPDX-License-Identifier: Apache-2.0
"""Removal of folders that are deliberately hard to remove."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from orchestrator.linux.trees import remove_tree, tree_usage


def deep(folder: Path, depth: int) -> None:
    """A folder within a folder, and so on, each with a file of 4 KiB."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("f", dir_fd=here)
        inner = os.open("f", os.O_RDONLY, dir_fd=here)
        file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner)
        os.write(file, bytes(4096))
        os.close(file)
        os.close(here)
        here = inner
    os.close(here)


def test_a_tree_deeper_than_the_stack_and_the_descriptor_limit(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    deep(tree, 2500)  # deeper than a path can name, too
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        remove_tree(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not tree.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/link").symlink_to(tmp_path / "kept")
    (tree / "link").symlink_to(tmp_path / "kept")
    remove_tree(tree)
    assert os.listdir(tmp_path) == ["kept"]
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "link")
    assert (tmp_path / "kept/file").read_text() == "kept"


def test_names_like_its_own_are_no_obstacle(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(1, 6):
        (tree / f"a/{number}/x").mkdir(parents=True)
    (tree / ".removed-1/inner").mkdir(parents=True)
    (tree / ".removed-2").write_text("")
    (tree / ".removed-3").mkdir()
    remove_tree(tree)
    assert not tree.exists()


@pytest.mark.parametrize("kind", ["nothing", "file"])
def test_a_path_that_is_not_a_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("")
    remove_tree(path)
    assert not path.exists()


def test_a_deep_tree_is_counted(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    deep(tree, 1100)
    try:
        assert tree_usage(tree) >= 1100 * 4096
    finally:
        remove_tree(tree)


def test_each_file_counts_once_and_none_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/file").write_bytes(bytes(1 << 20))
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(bytes(1 << 16))
    once = tree_usage(tree)
    (tree / "again").hardlink_to(tree / "file")
    (tree / "link").symlink_to(tmp_path / "host")
    assert once <= tree_usage(tree) < once + (1 << 15)
    (tmp_path / "link").symlink_to(tree)
    assert tree_usage(tmp_path / "link") == 0
    assert tree_usage(tmp_path / "gone") == 0
