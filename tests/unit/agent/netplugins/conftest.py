# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "cni"))
sys.path.insert(0, str(Path(__file__).parents[1] / "network"))

from chainkit import Bench
from nsfixtures import host, netns_folder
from nshosts import NsHost

__all__ = ["host", "netns_folder"]


@pytest.fixture
def bench(host: NsHost, tmp_path: Path) -> Iterator[Bench]:
    """A host with Debian's plugins, and containers' namespaces on it."""
    made = Bench(host, tmp_path)
    yield made
    made.close()
