# SPDX-License-Identifier: Apache-2.0
"""The network of image builds: which subnet it takes, and what is attached to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.network import build_network
from orchestrator.agent.network.build_network import BuildNetwork
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Attachment, NetworkConfig


class FakeNetworking:
    """Keeps what it was asked for."""

    def __init__(self) -> None:
        self.subnets: list[str] = []
        self.attached: list[str] = []
        self.removed = 0
        self.failure = ""

    async def apply(self, config: NetworkConfig) -> None:
        assert config.vni == 0
        self.subnets.append(config.subnet)

    async def attach(self, network: str, container_id: str) -> Attachment:
        if self.failure:
            raise NetworkError(self.failure)
        self.attached.append(container_id)
        return Attachment(container_id, "", network, "", "", "", "", {})

    async def detach(self, container_id: str) -> None:
        if container_id in self.attached:
            self.attached.remove(container_id)

    async def remove(self, network: str) -> None:
        self.removed += 1


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(build_network, "keep", lambda namespace, path: None)
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


async def test_the_subnet_is_not_used_elsewhere(tmp_path: Path, namespace: int) -> None:
    node, taken = FakeNetworking(), ["172.31.255.128/25", "fd00::/64"]
    network = BuildNetwork(node, tmp_path, "10.0.0.1", lambda: taken)
    await network.attach("one", namespace)
    assert node.subnets == ["172.31.254.0/24"]
    taken.append("172.31.254.0/23")
    await network.attach("two", namespace)
    assert node.subnets[-1] == "172.31.254.0/24"  # another build is on it
    await network.detach("one")
    await network.detach("two")
    assert network.attached == frozenset()
    await network.attach("three", namespace)
    assert node.subnets[-1] == "172.31.253.0/24"
    assert node.removed == 2
    assert node.attached == ["three"]


async def test_a_build_without_a_network_fails_with_a_remedy(
    tmp_path: Path, namespace: int
) -> None:
    node = FakeNetworking()
    node.failure = "the bridge is gone"
    network = BuildNetwork(node, tmp_path, "10.0.0.1", list)
    with pytest.raises(ImageError, match="the bridge is gone; --network none"):
        await network.attach("one", namespace)
    crowded = BuildNetwork(node, tmp_path, "10.0.0.1", lambda: ["0.0.0.0/0"])
    with pytest.raises(ImageError, match=r"no subnet .* is free; --network host"):
        await crowded.attach("one", namespace)
