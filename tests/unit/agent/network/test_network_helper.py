# SPDX-License-Identifier: Apache-2.0
"""The helper that does a node's network: killed, hung, asked by many, and what it refuses."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from nodekit import NET, config, host_veths, node, published
from nshosts import NsHost

from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Peer, PortMapping
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.cni.errors import Code
from orchestrator.cni.netlink import devices, namespaces
from orchestrator.cni.netlink.netlinksocket import NetlinkError
from orchestrator.cni.overlay import vxlan

pytestmark = pytest.mark.root


@pytest.fixture
async def single(host: NsHost) -> AsyncIterator[NodeNetwork]:
    async with node(host) as network:
        await network.apply(config(host, 0))
        yield network


async def test_a_killed_helper_leaks_and_doubles_nothing(single: NodeNetwork, host: NsHost) -> None:
    given: dict[str, str] = {}
    for number in range(40):
        name = f"c{number}"
        async with asyncio.TaskGroup() as group:
            adding = group.create_task(
                single.attach(NET, name, published(PortMapping(1000 + number, 80)))
            )
            if number % 2:
                # At a different point of each attachment.
                await asyncio.sleep(number * 0.00008)
                pid = single.helper_pid
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
        given[name] = adding.result().address
    assert len(set(given.values())) == 40
    kept = [f"c{number}" for number in range(0, 40, 4)]
    await single.collect(kept)
    assert len(host_veths(host)) == len(kept)
    assert sorted(path.name for path in (host.run / "netns").iterdir()) == sorted(kept)
    for name in kept:
        await single.check(NET, name)
    listed = host.shell("nft", "list", "map", "inet", "orc", "published")
    assert listed.count("tcp . ") == len(kept)
    await single.collect([])
    assert host_veths(host) == []


async def test_a_cancelled_caller_does_not_affect_others(single: NodeNetwork) -> None:
    for number in range(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0005):
                await single.attach(NET, f"cancelled{number}")
        attached = await single.attach(NET, f"c{number}")
        assert attached.container_id in attached.netns


async def test_many_at_once(single: NodeNetwork, host: NsHost) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(single.attach(NET, f"c{number}")) for number in range(50)]
    assert len({task.result().address for task in tasks}) == 50
    assert len(host_veths(host)) == 50


async def test_a_helper_that_hangs_is_replaced(host: NsHost) -> None:
    async with NodeNetwork(
        host.state, host.run, timeout=0.1, command=("sh", "-c", "exec sleep 60")
    ) as network:
        with pytest.raises(NetworkError, match=r"did not answer within 0\.1 s"):
            await network.apply(config(host, 0))
        assert network.helper_pid is None


async def test_helper_that_dies_at_once_is_an_error(host: NsHost) -> None:
    async with NodeNetwork(host.state, host.run, command=("false",)) as network:
        with pytest.raises(NetworkError, match="died twice"):
            await network.apply(config(host, 0))
    async with NodeNetwork(host.state, host.run, command=("/nowhere",)) as network:
        with pytest.raises(NetworkError, match="cannot be started: No such file"):
            await network.apply(config(host, 0))


def test_the_helper_leaves_with_its_agent(host: NsHost) -> None:
    command = [*host.helper, str(host.state), str(host.run)]
    done = subprocess.run(command, input=b"not json\n", capture_output=True, timeout=5)
    assert done.returncode == 0
    assert b"not a request of the helper" in done.stdout


async def test_before_the_first_configuration(host: NsHost) -> None:
    async with node(host) as network:
        with pytest.raises(NetworkError, match="not received the network from a manager yet"):
            await network.attach(NET, "a")


def test_the_agent_stays_free_of_netlink() -> None:
    code = "import sys, orchestrator.agent.network.node_network; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    ours = {name for name in loaded.split() if name.startswith("orchestrator.cni")}
    # The endpoint table's types are shared, and pure.
    assert ours <= {
        "orchestrator.cni",
        "orchestrator.cni.balancing",
        "orchestrator.cni.balancing.endpointtable",
        "orchestrator.cni.errors",
    }


async def test_an_address_of_another_host_is_refused(host: NsHost) -> None:
    elsewhere = NsHost(host.netns, "203.0.113.5", host.state, host.run)
    async with node(host) as network:
        with pytest.raises(NetworkError, match=r"no interface .* address 203\.0\.113\.5"):
            await network.apply(config(elsewhere, 0))


async def test_peers_that_overlap(single: NodeNetwork, host: NsHost) -> None:
    peers = (Peer("10.128.1.0/24", "192.0.2.1"), Peer("10.128.1.0/25", "192.0.2.2"))
    with pytest.raises(NetworkError, match="must not overlap"):
        await single.apply(config(host, 0, peers))


async def test_a_vni_in_use(single: NodeNetwork, host: NsHost) -> None:
    host.shell("ip", "link", "del", "orcvx7")
    host.shell(
        "ip", "link", "add", "other", "type", "vxlan", "id", "7", "dstport", "4789",
        "local", host.address,
    )  # fmt: skip
    with pytest.raises(NetworkError, match="another VXLAN device already uses VNI 7"):
        await single.apply(config(host, 0))


def test_errors_of_older_kernels(host: NsHost) -> None:
    with (
        namespaces.opened(host.netns) as within,
        namespaces.route_socket(within) as sock,
        pytest.raises(NetlinkError) as caught,
    ):
        devices.create(sock, {}, [("IFLA_IFNAME", "x0")], "a-kind-that-is-not-compiled-in")
    refused = vxlan.refused("orcvx7", 7, caught.value)
    assert str(refused).startswith("this kernel has no VXLAN: load the module vxlan")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EOPNOTSUPP, Code.KERNEL_LACKS, "this kernel has no VXLAN: load the module vxlan"),
        (errno.EPERM, Code.IO_FAILURE, "networks need root"),
        (errno.EEXIST, Code.INVALID_CONFIG, "VNI 7"),
        (errno.ENOMEM, Code.IO_FAILURE, "VXLAN device orcvx7: Cannot allocate memory"),
    ],
)
def test_errors_of_the_kernel(number: int, code: Code, words: str) -> None:
    error = vxlan.refused("orcvx7", 7, NetlinkError(number, os.strerror(number)))
    assert (error.code, words in str(error)) == (code, True)
