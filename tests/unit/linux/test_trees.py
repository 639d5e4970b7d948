"""Removal of folders that somebody made to be hard to remove."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from orchestrator.linux.trees import remove_tree


def deep(folder: Path, depth: int) -> None:
    """A folder within a folder, and so on, deeper than a path can name."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("folder", dir_fd=here)
        inner = os.open("folder", os.O_RDONLY, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(here)
        here = inner
    os.close(here)


def test_a_tree_deeper_than_the_stack_and_than_descriptors(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    deep(tree, 5000)
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
def test_what_is_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "file":
        path.write_text("")
    remove_tree(path)
    assert not path.exists()
