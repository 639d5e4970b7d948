# SPDX-License-Identifier: Apache-2.0
"""Orders about containers' files, where an agent was killed in the middle of one."""

from __future__ import annotations

from pathlib import Path

from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.streams.container_export import ContainerExports


class Roots:
    """A runtime of which one container has gone meanwhile."""

    def __init__(self) -> None:
        self.resumed: list[str] = []

    def upper(self, container_id: str) -> Path:
        raise AssertionError

    root = upper

    def users(self, container_id: str) -> range:
        raise AssertionError

    async def resume(self, container_id: str) -> None:
        self.resumed.append(container_id)
        if container_id == "gone":
            raise RuntimeFailure("it could not be resumed: it is not there")


async def test_a_container_left_paused_by_a_commit_is_resumed(tmp_path: Path) -> None:
    roots, scratch = Roots(), tmp_path / "scratch"
    async with ImageStore(tmp_path / "store") as store:
        files = ContainerExports(store=store, runners={}, roots=roots, scratch=scratch)
        (scratch / "frozen-gone").touch()
        (scratch / "frozen-t1").touch()
        (scratch / "tmpabc").mkdir()
        await files.recover()
    assert sorted(roots.resumed) == ["gone", "t1"]
    assert list(scratch.iterdir()) == []
