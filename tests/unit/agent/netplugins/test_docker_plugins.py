# SPDX-License-Identifier: Apache-2.0
"""Networks of a plugin that speaks Docker's protocol over a socket: it makes real veth pairs, and
the containers' namespaces then have them, with the addresses; nothing of it is left."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from chainkit import eth, shown, until
from forging import datagram, ear, say, wire
from nshosts import NsHost, reach

from orchestrator.agent.netplugins.attachment_records import AttachmentRecords
from orchestrator.agent.netplugins.remote_driver import NetworkPlugin
from orchestrator.agent.netplugins.remote_networks import RemoteNetworks
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import Exposure, NetworkConfig, PortMapping
from orchestrator.agent.network.node_network import NodeNetwork
from orchestrator.agent.plugins import plugin_client as plugincalls
from orchestrator.agent.plugins.plugin_discovery import PluginSet
from orchestrator.cni.netlink import namespaces

pytestmark = pytest.mark.root

SCRIPT = Path(__file__).parents[3] / "e2e" / "networkplugin.py"


@dataclass
class Node:
    """A host, its helper, and the plugin on it."""

    host: NsHost
    helper: NodeNetwork
    folder: Path

    def networks(self) -> RemoteNetworks:
        """As an agent makes them at its start."""
        plugins = PluginSet(NetworkPlugin.activate, "network plugin", [self.folder / "run"], [])
        return RemoteNetworks(AttachmentRecords(self.folder / "state"), plugins, self.helper)

    @asynccontextmanager
    async def plugin(self, *kinds: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """The plugin runs."""
        socket = self.folder / "run" / "toy.sock"
        command = (sys.executable, str(SCRIPT), str(socket), str(self.log), *kinds)
        process = await asyncio.create_subprocess_exec(*self.host.command(*command))
        try:
            await until(lambda: socket.exists() and _answers(socket))
            yield process
        finally:
            process.kill()
            await process.wait()
            socket.unlink(missing_ok=True)

    @property
    def log(self) -> Path:
        return self.folder / "calls"

    def fault(self, method: str, words: str) -> Path:
        """Have a call answered with an error."""
        path = Path(f"{self.log}.{method}")
        path.write_text(words)
        return path

    def calls(self) -> list[str]:
        """The calls about networks, by their names."""
        lines = self.log.read_text().splitlines()
        names = [line.split()[0].partition(".") for line in lines]
        return [name for kind, _, name in names if kind == "NetworkDriver" and "Get" not in name]

    def told(self, method: str) -> dict[str, Any]:
        """The body of the last call with this name."""
        lines = [line for line in self.log.read_text().splitlines() if f".{method} " in line]
        found: dict[str, Any] = json.loads(lines[-1].partition(" ")[2])
        return found

    async def container(self, name: str) -> str:
        return await self.helper.namespace(name)

    def links(self) -> str:
        return self.host.shell("ip", "-brief", "link")


def _answers(socket: Path) -> bool:
    done = subprocess.run(
        ["curl", "-s", "--unix-socket", str(socket), "-d", "{}", "http://x/Plugin.Activate"],
        capture_output=True,
        check=False,
    )
    return b"Implements" in done.stdout


@pytest.fixture
async def node(host: NsHost, tmp_path: Path) -> AsyncIterator[Node]:
    async with NodeNetwork(host.state, host.run, command=host.helper) as helper:
        yield Node(host, helper, tmp_path)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugincalls, "PATIENCE", 0.2)


NETWORK = NetworkConfig(
    "net123456789",
    "toys",
    0,
    "10.88.0.0/16",
    "10.88.1.0/24",
    0,
    "",
    driver="toy",
    options={"colour": "red"},
)


@asynccontextmanager
async def running(networks: RemoteNetworks) -> AsyncIterator[None]:
    task = asyncio.create_task(networks.run())
    try:
        await until(lambda: networks.scopes)
        yield
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_containers_send_with_their_own_addresses(node: Node) -> None:
    async with node.plugin(), running(networks := node.networks()):
        await networks.apply(NETWORK)
        netns = [await node.container(name) for name in ("c1", "c2")]
        one = await networks.attach(NETWORK, "c1", eth(), netns[0])
        two = await networks.attach(NETWORK, "c2", eth(), netns[1])

        async def heard() -> list[bytes]:
            """What arrives of a forged packet, before one that is not."""
            await node.helper.expose(Exposure(checked=tuple(networks.checked())))
            with ear(two.netns) as listener, wire(one.netns) as veth:
                forged = datagram("10.88.1.77", two.address, listener.port, b"forged")
                veth.send(two.mac, one.mac, forged)
                say(one.netns, two.address, listener.port, b"own")
                return listener.until(b"own")

        assert await heard() == []
        await networks.apply(replace(NETWORK, source_check=False))
        assert await heard() == [b"forged"]
        await networks.apply(NETWORK)
        assert await heard() == []
        for name in ("c1", "c2"):
            await networks.detach(name)


async def test_containers_have_the_plugins_interfaces(node: Node) -> None:
    async with node.plugin(), running(networks := node.networks()):
        await networks.apply(NETWORK)
        one, two = await node.container("c1"), await node.container("c2")
        port = PortMapping(8080, 80)
        made = await networks.attach(NETWORK, "c1", eth(ports=(port,), options={"speed": "9"}), one)
        assert (made.address, made.mac[:6]) == ("10.88.1.2", "02:99:")
        (link,) = shown(one, "address", "show", "eth0")
        assert link["address"] == made.mac
        assert ("10.88.1.2", 16) in [(a["local"], a["prefixlen"]) for a in link["addr_info"]]
        routes = {each["dst"]: each.get("gateway") for each in shown(one, "route", "show")}
        assert routes["default"] == "10.88.1.1"
        assert "203.0.113.0/24" in routes
        await networks.attach(NETWORK, "c2", eth("eth1", mac="02:00:00:00:00:02"), two)
        assert shown(two, "address", "show", "eth1")[0]["address"] == "02:00:00:00:00:02"
        assert reach(two, one, "10.88.1.3", 80) == "10.88.1.2"

        assert node.told("CreateNetwork") == {
            "NetworkID": "net123456789",
            "Options": {
                "com.docker.network.generic": {"colour": "red"},
                "com.docker.network.enable_ipv6": False,
            },
            "IPv4Data": [
                {
                    "AddressSpace": "",
                    "Pool": "10.88.0.0/16",
                    "Gateway": "10.88.1.1/16",
                    "AuxAddresses": {},
                }
            ],
            "IPv6Data": [],
        }
        assert [call for call in node.calls() if call == "CreateNetwork"] == ["CreateNetwork"]
        assert "speed" not in node.told("CreateEndpoint")["Options"]  # of the second container

        await networks.detach("c1")
        await networks.detach("c2")
        assert node.calls()[-3:] == ["RevokeExternalConnectivity", "Leave", "DeleteEndpoint"]
        assert "vc" not in node.links()
        assert networks.unused() == ["net123456789"]
        await networks.remove("net123456789")
        await until(lambda: "plnet12345" not in node.links())
        assert networks.unused() == []


async def test_the_requests_for_an_endpoint(node: Node) -> None:
    async with node.plugin(), running(networks := node.networks()):
        netns = await node.container("c1")
        asked = eth(ports=(PortMapping(8080, 80),), options={"speed": "9"}, ip="10.88.0.9")
        await networks.attach(NETWORK, "c1", asked, netns)
        told = node.told("CreateEndpoint")
        assert told["Interface"] == {
            "Address": "10.88.0.9/16",
            "AddressIPv6": "",
            "MacAddress": "",
        }
        assert told["Options"]["speed"] == "9"
        (mapped,) = told["Options"]["com.docker.network.portmap"]
        assert (mapped["Proto"], mapped["Port"], mapped["HostPort"]) == (6, 80, 8080)
        assert node.told("Join")["SandboxKey"] == netns
        assert node.told("Join")["EndpointID"] == told["EndpointID"]
        await networks.detach("c1")


async def test_addresses_of_an_ipam_plugin(node: Node) -> None:
    network = replace(NETWORK, cluster_cidr="", subnet="", ipam_driver="toy")
    async with node.plugin(), running(networks := node.networks()):
        one, two = await node.container("c1"), await node.container("c2")
        made = await networks.attach(network, "c1", eth(), one)
        assert made.address == "10.99.0.2"  # the first is the gateway's
        fixed = await networks.attach(network, "c2", eth(ip="10.99.0.50"), two)
        assert fixed.address == "10.99.0.50"
        assert reach(two, one, "10.99.0.50", 80) == "10.99.0.2"
        with pytest.raises(NetworkError, match=r"ipam plugin toy: address 10.99.0.50 is taken"):
            await networks.attach(network, "c3", eth(ip="10.99.0.50"), await node.container("c3"))
        assert networks.interfaces("c3") == {}
        await networks.detach("c1")
        assert node.told("ReleaseAddress") == {"PoolID": "pool1", "Address": "10.99.0.2"}
        await networks.detach("c2")
        await networks.remove(network.id)
        await until(lambda: "ReleasePool" in node.log.read_text())


async def test_addresses_allocated_by_the_network_plugin(node: Node) -> None:
    network = replace(NETWORK, cluster_cidr="", subnet="", ipam_driver="null")
    async with node.plugin("NetworkDriver"), running(networks := node.networks()):
        assert networks.ipam == ()
        await networks.apply(network)
        one, two = await node.container("c1"), await node.container("c2")
        made = await networks.attach(network, "c1", eth(), one)
        assert made.address.startswith("10.98.0.")
        assert node.told("CreateNetwork")["IPv4Data"][0]["Pool"] == "0.0.0.0/0"
        other = await networks.attach(network, "c2", eth(), two)
        assert reach(two, one, other.address, 80) == made.address
        await networks.detach("c1")
        await networks.detach("c2")


async def test_two_families(node: Node) -> None:
    network = replace(NETWORK, cluster_cidr6="fd88::/48", subnet6="fd88:0:0:1::/64")
    async with node.plugin(), running(networks := node.networks()):
        netns = await node.container("c1")
        made = await networks.attach(network, "c1", eth(), netns)
        assert (made.address, made.address6) == ("10.88.1.2", "fd88:0:0:1::2")
        (link,) = shown(netns, "address", "show", "eth0")
        assert "fd88:0:0:1::2" in [each["local"] for each in link["addr_info"]]
        await networks.detach("c1")


async def test_a_released_address_is_not_reused_immediately(node: Node) -> None:
    async with node.plugin(), running(networks := node.networks()):
        for number, expected in enumerate(("10.88.1.2", "10.88.1.3", "10.88.1.4")):
            netns = await node.container(f"c{number}")
            made = await networks.attach(NETWORK, f"c{number}", eth(), netns)
            assert made.address == expected
            await networks.detach(f"c{number}")


@pytest.mark.parametrize("method", ["CreateNetwork", "CreateEndpoint", "Join"])
async def test_a_plugins_refusal_is_reported_and_undone(node: Node, method: str) -> None:
    async with node.plugin(), running(networks := node.networks()):
        fault = node.fault(method, "no\n  way")
        netns = await node.container("c1")
        with pytest.raises(NetworkError) as caught:
            await networks.attach(NETWORK, "c1", eth(), netns)
        assert str(caught.value) == "network plugin toy: no way"
        assert networks.interfaces("c1") == {}
        assert "vc" not in node.links()
        fault.unlink()
        made = await networks.attach(NETWORK, "c1", eth(), netns)
        assert made.address.startswith("10.88.1.")
        await networks.detach("c1")


async def test_an_unavailable_plugin_is_called_later(node: Node) -> None:
    networks = node.networks()
    async with node.plugin(), running(networks):
        netns = await node.container("c1")
        await networks.attach(NETWORK, "c1", eth(), netns)
    # Dead, its socket left behind; the container's end does not wait for it.
    await networks.detach("c1")
    assert networks.interfaces("c1") == {NETWORK.id: "eth0"}
    with pytest.raises(NetworkError, match="network plugin toy does not answer"):
        await networks.attach(NETWORK, "c2", eth(), await node.container("c2"))
    async with node.plugin(), running(networks):
        await until(lambda: networks.interfaces("c1") == {})
    assert node.calls()[-2:] == ["Leave", "DeleteEndpoint"]


async def test_a_hung_plugin_times_out_and_is_used_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugincalls, "NOTICE", 0.1)
    networks = node.networks()
    async with node.plugin() as process, running(networks):
        netns = await node.container("c1")
        process.send_signal(signal.SIGSTOP)
        words = "network plugin toy does not answer: no answer within"
        with pytest.raises(NetworkError, match=words):
            await networks.attach(NETWORK, "c1", eth(), netns)
        process.send_signal(signal.SIGCONT)
        made = await networks.attach(NETWORK, "c1", eth(), netns)
        assert made.address.startswith("10.88.1.")


async def test_over_a_restart_of_the_agent(node: Node) -> None:
    async with node.plugin():
        before = node.networks()
        async with running(before):
            one, two = await node.container("c1"), await node.container("c2")
            first = await before.attach(NETWORK, "c1", eth(), one)
            await before.attach(NETWORK, "c2", eth(), two)
        networks = node.networks()
        networks.collect(["c1"])
        async with running(networks):
            await until(lambda: networks.interfaces("c2") == {})
            assert await networks.attach(NETWORK, "c1", eth(), one) == first
            assert node.calls().count("CreateNetwork") == 1
            # After a reboot the namespace is another one.
            namespaces.remove(node.host.run / "netns" / "c1")
            made = await networks.attach(NETWORK, "c1", eth(), await node.container("c1"))
            assert made.address != first.address
            await networks.detach("c1")


async def test_a_plugin_of_another_kind(node: Node) -> None:
    networks = node.networks()
    async with node.plugin("VolumeDriver"):
        task = asyncio.create_task(networks.run())
        with pytest.raises(NetworkError, match="plugin toy is not a network plugin"):
            await networks.attach(NETWORK, "c1", eth(), await node.container("c1"))
        assert networks.scopes == {}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("missing", ["driver", "ipam"])
async def test_a_network_whose_plugin_is_missing_is_refused(node: Node, missing: str) -> None:
    edit: Callable[[NetworkConfig], NetworkConfig] = (
        (lambda config: replace(config, driver="other"))
        if missing == "driver"
        else (lambda config: replace(config, ipam_driver="other"))
    )
    async with node.plugin(), running(networks := node.networks()):
        with pytest.raises(NetworkError, match="network plugin other does not answer on"):
            await networks.apply(edit(NETWORK))
