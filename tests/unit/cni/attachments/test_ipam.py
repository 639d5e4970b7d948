# SPDX-License-Identifier: Apache-2.0
"""Addresses and ports of a host: never twice, never lost, reuse after quarantine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orchestrator.cni.attachments.ipam import Ipam, Key
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import replace
from orchestrator.cni.netconf import NetConf, PortMapping, RuntimeConfig, parse


def network(**more: Any) -> NetConf:
    """A network with room for five containers."""
    base = {"cniVersion": "1.1.0", "name": "net", "subnet": "10.128.0.0/29"}
    return parse({**base, "clusterCIDR": "10.128.0.0/14", **more})


NET = network()
SUBNET = NET.subnet
FIRST, LAST = IPv4Address("10.128.0.2"), IPv4Address("10.128.0.6")


def asking(conf: NetConf = NET, **wanted: Any) -> NetConf:
    return replace(conf, runtime_config=RuntimeConfig(**wanted))


class Clock:
    """Seconds since the host started, as the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(container: str, ifname: str = "eth0", network: str = "net") -> Key:
    return Key(network, container, ifname)


@pytest.fixture
def ipam(tmp_path: Path) -> Iterator[Ipam]:
    with Ipam(tmp_path) as opened:
        yield opened


def test_the_same_attachment_keeps_its_address(ipam: Ipam) -> None:
    first = ipam.reserve(key("a"), NET)
    assert ipam.reserve(key("a"), NET) == first
    assert first.address == FIRST


def test_networks_and_interfaces_are_distinguished(ipam: Ipam) -> None:
    given = {
        ipam.reserve(key("a"), NET).address,
        ipam.reserve(key("a", "eth1"), NET).address,
    }
    assert given == {FIRST, FIRST + 1}
    assert ipam.reserve(key("a", network="other"), NET).address == FIRST


def test_a_freed_address_is_reused_last(ipam: Ipam) -> None:
    ipam.reserve(key("a"), NET)
    ipam.release(key("a"))
    given = [ipam.reserve(key(f"c{number}"), NET).address for number in range(5)]
    assert given == [FIRST + 1, FIRST + 2, FIRST + 3, LAST, FIRST]


def test_an_exhausted_pool_is_reported(ipam: Ipam) -> None:
    for number in range(5):
        ipam.reserve(key(f"c{number}"), NET)
    assert ipam.free(NET) == 0
    with pytest.raises(CniError, match=r"all 5 addresses of 10\.128\.0\.0/29") as caught:
        ipam.reserve(key("one too many"), NET)
    assert caught.value.code == Code.TRY_AGAIN_LATER
    ipam.release(key("c3"))
    assert ipam.reserve(key("one too many"), NET).address == FIRST + 3


def test_a_released_address_is_quarantined_unless_all_others_are_taken(tmp_path: Path) -> None:
    clock = Clock()
    with Ipam(tmp_path, clock) as ipam:
        for name in "abcde":
            ipam.reserve(key(name), NET)
        ipam.release(key("d"))
        clock.now += 30
        ipam.release(key("b"))
        assert ipam.reserve(key("f"), NET).address == FIRST + 3, "the one that rested longest"
        clock.now += 1
        ipam.release(key("a"))
        ipam.release(key("c"))
        clock.now += 58
    with Ipam(tmp_path, clock) as ipam:
        ipam.release(key("e"))
        assert ipam.reserve(key("g"), NET).address == FIRST + 1, "b's is the oldest"
        clock.now += 2.5
        assert ipam.reserve(key("h"), NET).address == FIRST + 2, "rested, and next in the round"


def test_a_quarantined_address_is_available_on_request(ipam: Ipam) -> None:
    ipam.reserve(key("a"), NET)
    ipam.release(key("a"))
    assert ipam.reserve(key("b"), asking(address=FIRST)).address == FIRST


def test_the_ipv6_address_has_the_same_offset(ipam: Ipam) -> None:
    both = network(subnet="10.128.3.0/24", subnet6="fd00:0:0:3::/64", clusterCIDR6="fd00::/56")
    lease = ipam.reserve(key("a"), both)
    assert lease.addresses == [IPv4Address("10.128.3.2"), IPv6Address("fd00:0:0:3::2")]
    fixed = IPv4Address("10.128.7.9")
    assert ipam.reserve(key("b"), asking(both, address=fixed)).address6 == IPv6Address(
        "fd00:0:0:7::9"
    )


def test_a_fixed_ipv6_address_is_exclusive(ipam: Ipam) -> None:
    both = network(subnet6="fd00::/64")
    fixed = IPv6Address("fd00::3")
    given = ipam.reserve(key("a"), asking(both, address6=fixed))
    assert given.addresses == [FIRST, fixed]
    assert ipam.reserve(key("a"), both) == given, "kept"
    second = ipam.reserve(key("b"), both)
    assert second.addresses == [FIRST + 2, IPv6Address("fd00::4")], "10.128.0.3 has no pair left"
    with pytest.raises(CniError, match="fd00::4 is in use by container b"):
        ipam.reserve(key("c"), asking(both, address6=IPv6Address("fd00::4")))
    with pytest.raises(CniError, match="fd00::1 is reserved"):
        ipam.reserve(key("c"), asking(both, address6=IPv6Address("fd00::1")))


def test_reserved_addresses_and_the_gateway_are_available_on_request_only(ipam: Ipam) -> None:
    few = network(gateway="10.128.0.3", reserved=["10.128.0.1", "10.128.0.4", "10.128.0.5"])
    given = [ipam.reserve(key(name), few).address for name in "ab"]
    assert given == [FIRST, LAST]
    with pytest.raises(CniError, match="all 2 addresses"):
        ipam.reserve(key("c"), few)
    asked = IPv4Address("10.128.0.4")
    assert ipam.reserve(key("c"), asking(few, address=asked)).address == asked


def test_a_range_of_the_subnet(ipam: Ipam) -> None:
    part = network(subnet="10.128.0.0/24", ipRange="10.128.0.128/30")
    assert [str(ipam.reserve(key(name), part).address) for name in "abcd"] == [
        "10.128.0.128",
        "10.128.0.129",
        "10.128.0.130",
        "10.128.0.131",
    ]
    assert ipam.free(part) == 0


def test_networks_are_recorded_until_they_are_removed(tmp_path: Path) -> None:
    with Ipam(tmp_path) as ipam:
        ipam.remember("one", "{}")
        ipam.remember("two", "{}")
        ipam.remember("one", '{"mtu": 1400}')
    with Ipam(tmp_path) as ipam:
        assert ipam.networks() == {"one": '{"mtu": 1400}', "two": "{}"}
        ipam.remember("one", None)
        assert ipam.networks() == {"two": "{}"}


def test_release_is_idempotent(ipam: Ipam) -> None:
    ipam.reserve(key("a"), NET)
    ipam.release(key("a"))
    ipam.release(key("a"))
    assert ipam.leases() == []


def test_a_fixed_address(ipam: Ipam) -> None:
    wanted = FIRST + 2
    assert ipam.reserve(key("a"), asking(address=wanted)).address == wanted
    with pytest.raises(CniError, match="in use by container a") as caught:
        ipam.reserve(key("b"), asking(address=wanted))
    assert caught.value.code == Code.ADDRESS_IN_USE
    for reserved in (SUBNET[0], SUBNET[1], SUBNET[-1]):
        with pytest.raises(CniError, match="is reserved"):
            ipam.reserve(key("b"), asking(address=reserved))
    assert [lease.key.container for lease in ipam.leases()] == ["a"]


def test_a_new_subnet_gives_a_new_address(ipam: Ipam) -> None:
    ipam.reserve(key("a"), NET)
    other = network(subnet="10.128.9.0/24")
    assert ipam.reserve(key("a"), other).address == IPv4Address("10.128.9.2")
    assert len(ipam.leases()) == 1


@pytest.mark.parametrize(
    ("held", "wanted", "conflict"),
    [
        (PortMapping(80, 80), PortMapping(80, 81), True),
        (PortMapping(80, 80), PortMapping(80, 80, "udp"), False),
        (PortMapping(80, 80), PortMapping(81, 80), False),
        (PortMapping(80, 80, host_ip=FIRST), PortMapping(80, 80, host_ip=LAST), False),
        (PortMapping(80, 80, host_ip=FIRST), PortMapping(80, 80), True),
        (PortMapping(80, 80), PortMapping(80, 80, host_ip=LAST), True),
    ],
)
def test_a_port_has_one_owner(
    ipam: Ipam, held: PortMapping, wanted: PortMapping, conflict: bool
) -> None:
    ipam.reserve(key("a"), asking(ports=(held,)))
    if conflict:
        with pytest.raises(CniError, match="already published by container a") as caught:
            ipam.reserve(key("b"), asking(ports=(PortMapping(9999, 1), wanted)))
        assert caught.value.code == Code.PORT_IN_USE
        assert [lease.key.container for lease in ipam.leases()] == ["a"], "all or nothing"
        ipam.release(key("a"))
    assert wanted in ipam.reserve(key("b"), asking(ports=(PortMapping(9999, 1), wanted))).ports


def test_an_unusable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CniError, match=r"addresses in .*ipam\.db") as caught:
        Ipam(tmp_path / "file")
    assert caught.value.code == Code.IO_FAILURE


KILLED = """
import os, sys
from pathlib import Path
from orchestrator.cni.netconf import parse
from orchestrator.cni.attachments.ipam import Ipam, Key
conf = parse({"cniVersion": "1.1.0", "name": "net", "subnet": "10.8.0.0/16"})
with Ipam(Path(sys.argv[1])) as ipam:
    for number in range(10_000):
        key = Key("net", f"{os.getpid()}-{number}", "eth0")
        lease = ipam.reserve(key, conf)
        print(lease.key.container, lease.address, flush=True)
"""


def test_kill_9_loses_and_doubles_nothing(tmp_path: Path) -> None:
    given: dict[str, str] = {}
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _, line in zip(range(50), process.stdout, strict=False):
            container, address = line.split()
            given[container] = address
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout:
            if line.endswith("\n"):
                container, address = line.split()
                given[container] = address
        process.wait()
        process.stdout.close()
    assert len(given) >= 150
    assert len(set(given.values())) == len(given), "no address twice"
    with Ipam(tmp_path) as ipam:
        held = {lease.key.container: str(lease.address) for lease in ipam.leases()}
    assert given.items() <= held.items(), "what was given is on record"


class Leases(RuleBasedStateMachine):
    """Any sequence of reservations and releases, against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(os.environ["PYTEST_IPAM_FOLDER"]) / os.urandom(6).hex()
        self.ipam = Ipam(self.folder)
        self.model: dict[str, IPv4Address] = {}

    @rule(container=st.sampled_from("abcdefgh"))
    def reserve(self, container: str) -> None:
        if container not in self.model and len(self.model) == 5:
            with pytest.raises(CniError):
                self.ipam.reserve(key(container), NET)
            return
        address = self.ipam.reserve(key(container), NET).address
        assert self.model.setdefault(container, address) == address
        assert FIRST <= address <= LAST

    @rule(container=st.sampled_from("abcdefgh"))
    def release(self, container: str) -> None:
        self.ipam.release(key(container))
        self.model.pop(container, None)

    @rule()
    def reopen(self) -> None:
        self.ipam.__exit__(None, None, None)
        self.ipam = Ipam(self.folder)

    @invariant()
    def agrees(self) -> None:
        held = {lease.key.container: lease.address for lease in self.ipam.leases("net")}
        assert held == self.model
        assert len(set(held.values())) == len(held)

    def teardown(self) -> None:
        self.ipam.__exit__(None, None, None)


def test_any_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_IPAM_FOLDER", str(tmp_path))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Leases, settings=settings(max_examples=30, stateful_step_count=25))
