# SPDX-License-Identifier: Apache-2.0
"""Cgroups of a host whose containers come and go while it is switched off."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.dev import hostcgroups

pytestmark = pytest.mark.root


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of a host, in one hierarchy."""
    hierarchy = hostcgroups.hierarchies(Path("/proc/self/mountinfo").read_text())[0]
    folder = hierarchy / f"orc-thaw-{os.getpid()}"
    folder.mkdir()
    yield folder
    hostcgroups.remove_cgroups(lambda name: name == folder.name)


def test_a_host_is_thawed_while_its_containers_end(cgroup: Path) -> None:
    ended = threading.Event()

    def containers() -> None:
        while not ended.is_set():
            for number in range(20):
                (cgroup / f"task{number}").mkdir()
            for number in range(20):
                with suppress(FileNotFoundError):
                    (cgroup / f"task{number}").rmdir()

    thread = threading.Thread(target=containers)
    thread.start()
    try:
        for _ in range(300):
            hostcgroups.thaw(lambda name: name == cgroup.name)
    finally:
        ended.set()
        thread.join()
