# SPDX-License-Identifier: Apache-2.0
"""Chains of Debian's CNI plugins on a host of their own: what the kernel then has, and that nothing
of it is left."""

from __future__ import annotations

import json

import pytest
from chainkit import Bench, config, eth, shell, shown
from nshosts import reach, wait_for

from orchestrator.agent.netplugins import cni_chains
from orchestrator.agent.network.helper_process import NetworkError
from orchestrator.agent.network.network_types import PortMapping
from orchestrator.cni.netlink import namespaces

pytestmark = pytest.mark.root


def full_chain(bench: Bench) -> str:
    bench.install("bridge", "host-local", "portmap", "bandwidth", "firewall", "tuning")
    return bench.conflist(
        {
            "type": "bridge",
            "bridge": "apps0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": bench.ipam(),
            "capabilities": {"ips": True, "mac": True},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall"},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "321"}},
    )


async def test_a_chain_applies_all_requests_and_releases_them(bench: Bench) -> None:
    chains, network = bench.chains(), config(full_chain(bench))
    await chains.apply(network)
    netns = bench.container("one")
    outside = bench.container("outside")
    bench.host.shell("ip", "link", "add", "out", "type", "veth", "peer", "eth0", "netns", outside)
    bench.host.shell("ip", "address", "add", "198.51.100.1/24", "dev", "out")
    bench.host.shell("ip", "link", "set", "out", "up")
    shell(outside, "ip", "address", "add", "198.51.100.7/24", "dev", "eth0")
    shell(outside, "ip", "link", "set", "eth0", "up")

    asked = eth(
        ip="10.77.0.9",
        mac="02:00:00:00:00:09",
        ports=(PortMapping(8080, 80),),
        options={"egress-rate": "20m"},
    )
    made = await chains.attach(network, "one", asked, netns)

    assert (made.address, made.mac) == ("10.77.0.9", "02:00:00:00:00:09")
    (link,) = shown(netns, "address", "show", "eth0")
    assert link["address"] == "02:00:00:00:00:09"
    assert ("10.77.0.9", 24) in [(each["local"], each["prefixlen"]) for each in link["addr_info"]]
    assert shown(netns, "route", "show", "default")[0]["gateway"] == "10.77.0.1"
    assert reach(netns, outside, "198.51.100.1", 8080, listen=80) == "198.51.100.7"
    assert "rate 20Mbit" in bench.host.shell("tc", "qdisc", "show")
    value = shell(netns, "cat", "/proc/sys/net/core/somaxconn")
    assert value.strip() == "321"
    assert bench.leases() == ["10.77.0.9"]

    # Again it is looked at, and stays.
    assert await chains.attach(network, "one", asked, netns) == made
    assert bench.called("bridge") == ["ADD", "CHECK"]

    await chains.detach("one")
    assert bench.leases() == []
    assert not [each for each in shown(netns, "link", "show") if each["ifname"] == "eth0"]
    assert "tbf" not in bench.host.shell("tc", "qdisc", "show")
    assert "10.77.0.9" not in bench.host.shell("iptables-save")
    assert chains.interfaces("one") == {}
    assert chains.unused() == ["n1"]


async def test_ptp_and_its_gateway(bench: Bench) -> None:
    bench.install("ptp", "host-local")
    chains = bench.chains()
    network = config(bench.conflist({"type": "ptp", "ipMasq": False, "ipam": bench.ipam()}))
    one, two = bench.container("one"), bench.container("two")
    made = [
        await chains.attach(network, name, eth(), netns)
        for name, netns in (("one", one), ("two", two))
    ]
    bench.host.shell("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
    assert [each.address for each in made] == ["10.77.0.2", "10.77.0.3"]
    assert reach(two, one, "10.77.0.3", 80) == "10.77.0.2"
    await chains.detach("one")
    await chains.detach("two")
    assert bench.leases() == []


async def test_macvlan_on_the_hosts_interface(bench: Bench) -> None:
    bench.install("macvlan", "host-local")
    bench.host.shell("ip", "link", "add", "wire", "type", "veth", "peer", "plug")
    bench.host.shell("ip", "link", "set", "wire", "up")
    bench.host.shell("ip", "link", "set", "plug", "up")
    chains = bench.chains()
    network = config(
        bench.conflist(
            {"type": "macvlan", "master": "wire", "mode": "bridge", "ipam": bench.ipam()}
        )
    )
    one, two = bench.container("one"), bench.container("two")
    await chains.attach(network, "one", eth("eth1"), one)
    made = await chains.attach(network, "two", eth("eth0"), two)
    assert chains.interfaces("one") == {"n1": "eth1"}
    assert reach(two, one, made.address, 80) == "10.77.0.2"
    # The host is not on a macvlan, so its name server does not listen there.
    assert made.gateway == ""
    await chains.detach("one")
    await chains.detach("two")
    assert bench.leases() == []


async def test_two_families(bench: Bench) -> None:
    bench.install("bridge", "host-local")
    chains = bench.chains()
    ranges = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]
    network = config(
        bench.conflist(
            {
                "type": "bridge",
                "bridge": "apps0",
                "isGateway": True,
                "ipam": bench.ipam() | {"ranges": ranges},
            }
        )
    )
    netns = bench.container("one")
    made = await chains.attach(network, "one", eth(), netns)
    assert (made.address, made.address6) == ("10.77.0.2", "fd77::2")
    await chains.detach("one")


async def test_a_cut_connection_is_reported_and_repaired_by_reconnecting(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.install("bridge", "host-local")
    chains = bench.chains()
    network = config(
        bench.conflist(
            {"type": "bridge", "bridge": "apps0", "isGateway": True, "ipam": bench.ipam()}
        )
    )
    netns = bench.container("one")
    await chains.attach(network, "one", eth(), netns)
    shell(netns, "ip", "link", "del", "eth0")
    await chains.attach(network, "one", eth(), netns)
    assert "attachment may have drifted: CNI plugin bridge (CHECK): " in caplog.text

    await chains.disconnect("n1", "one")
    made = await chains.attach(network, "one", eth(), netns)
    assert bench.called("bridge") == ["ADD", "CHECK", "DEL", "ADD"]
    assert shown(netns, "address", "show", "eth0")
    assert bench.leases() == [made.address]
    await chains.detach("one")


@pytest.mark.parametrize("reused", [False, True], ids=["", "with-the-same-inode-number"])
async def test_over_a_reboot_the_namespace_is_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, reused: bool
) -> None:
    if reused:  # as the kernel may, once the former namespace has ended
        monkeypatch.setattr(cni_chains, "namespace_stamp", lambda netns: 4026532000)
    bench.install("bridge", "host-local")
    network = config(
        bench.conflist(
            {"type": "bridge", "bridge": "apps0", "isGateway": True, "ipam": bench.ipam()},
            disableCheck=True,
        )
    )
    netns = bench.container("one")
    first = await bench.chains().attach(network, "one", eth(), netns)
    # A power loss: links and namespaces are gone, the leases on the disk are not.
    namespaces.remove(bench.host.run / "containers" / "one")
    wait_for(lambda: "veth" not in bench.host.shell("ip", "-br", "link"))
    assert bench.leases() == [first.address]

    netns = bench.container("one")
    made = await bench.chains().attach(network, "one", eth(), netns)
    assert bench.called("bridge") == ["ADD", "DEL", "ADD"]
    assert bench.leases() == [made.address]
    assert shown(netns, "address", "show", "eth0")
    await bench.chains().detach("one")
    assert bench.leases() == []


async def test_a_plugins_error_is_one_line_and_undone(bench: Bench) -> None:
    bench.install("bridge", "host-local")
    chains = bench.chains()
    bridge = {"type": "bridge", "bridge": "apps0", "isGateway": True}
    network = config(bench.conflist(bridge | {"ipam": bench.ipam()}))
    taken = eth(ip="10.78.0.9")
    network = config(bench.conflist(bridge | {"ipam": bench.ipam(), "capabilities": {"ips": True}}))
    with pytest.raises(NetworkError) as caught:
        await chains.attach(network, "one", taken, bench.container("one"))
    assert str(caught.value).startswith("CNI plugin bridge (ADD): ")
    assert "10.78.0.9" in str(caught.value)
    assert "\n" not in str(caught.value)
    # Nothing of it is left, nor on record.
    assert bench.leases() == []
    assert chains.interfaces("one") == {}
    assert bench.called("bridge") == ["ADD", "DEL"]


async def test_a_version_that_a_plugin_does_not_support(bench: Bench) -> None:
    bench.install("bridge", "host-local")
    chains = bench.chains()
    plugin = {"type": "bridge", "bridge": "apps0", "ipam": bench.ipam()}
    netns = bench.container("one")
    with pytest.raises(NetworkError) as caught:
        await chains.attach(config(bench.conflist(plugin, version="1.1.0")), "one", eth(), netns)
    assert "CNI plugin bridge of this node supports versions 0.1.0, " in str(caught.value)
    assert str(caught.value).endswith("the conflist has 1.1.0: set cniVersion to one of them")
    # Of several that a list has it is the newest that all speak.
    both = config(bench.conflist(plugin, version="1.1.0", cniVersions=["0.4.0", "1.0.0"]))
    made = await chains.attach(both, "one", eth(), netns)
    assert made.result["cniVersion"] == "1.0.0"
    await chains.detach("one")


async def test_records_have_the_result_and_the_conflist(bench: Bench) -> None:
    bench.install("bridge", "host-local")
    chains = bench.chains()
    network = config(bench.conflist({"type": "bridge", "bridge": "apps0", "ipam": bench.ipam()}))
    await chains.attach(network, "one", eth(), bench.container("one"))
    (file,) = (bench.state / "attachments").glob("*.json")
    kept = json.loads(file.read_text())
    assert kept["body"]["result"]["ips"][0]["address"] == "10.77.0.2/24"
    assert json.loads(kept["body"]["conflist"])["name"] == "apps"
    await chains.detach("one")
    assert not list((bench.state / "attachments").iterdir())
