# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nsfixtures import host, hosts, netns_folder
from nshosts import NsHost

from orchestrator.cni.netlink import namespaces

__all__ = ["host", "hosts", "netns_folder"]


@pytest.fixture
def box(host: NsHost) -> Iterator[Path]:
    """A namespace as a runtime makes it for a container."""
    path = host.run / "box"
    namespaces.ensure(path)
    yield path
    namespaces.remove(path)
