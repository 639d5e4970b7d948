# SPDX-License-Identifier: Apache-2.0
"""The fixtures over `nshosts`, for the network's tests in several folders."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from nshosts import NsHost, make_host, make_hosts, remove_tree, workplace

NUMBERS = count()


@pytest.fixture(scope="session")
def netns_folder() -> Iterator[Path]:
    with workplace() as folder:
        yield folder


@pytest.fixture
def host(netns_folder: Path) -> Iterator[NsHost]:
    """One host with an address, and nothing else."""
    folder = netns_folder / f"one{next(NUMBERS)}"
    made = make_host(folder, "h")
    made.shell("ip", "link", "add", "uplink", "type", "bridge")
    made.shell("ip", "addr", "add", f"{made.address}/24", "dev", "uplink")
    made.shell("ip", "link", "set", "uplink", "up")
    yield made
    remove_tree(folder)


@pytest.fixture(scope="session")
def hosts(netns_folder: Path) -> Iterator[list[NsHost]]:
    """A router and three hosts on an underlay; tests leave them as they were."""
    folder = netns_folder / f"three{next(NUMBERS)}"
    yield make_hosts(folder, 3)
    remove_tree(folder)
