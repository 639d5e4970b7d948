# SPDX-License-Identifier: Apache-2.0
"""Which address takes the place of one that a manager's host has lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.identity.host_identity import NodeIdentity
from orchestrator.identity.own_address import (
    AddressLost,
    follow_host,
    record_address,
    recorded_interface,
    replacement,
)
from orchestrator.linux.host_addresses import HostAddress

OLD = "192.168.1.10"
LAN, LAN6 = HostAddress("eth0", "192.168.1.77"), HostAddress("eth0", "fd00::77")
STORAGE, CONTAINERS = HostAddress("eth1", "10.0.0.5"), HostAddress("orcbr0", "10.128.0.1")


@pytest.mark.parametrize(
    ("interface", "found"),
    [
        ("eth0", [LAN]),
        ("eth0", [STORAGE, LAN, LAN6, CONTAINERS]),
        pytest.param("ens3", [LAN, LAN6], id="the interface is gone"),
    ],
)
def test_the_only_address_of_the_interface_takes_its_place(
    interface: str, found: list[HostAddress]
) -> None:
    names = {each.interface for each in found}
    assert replacement(OLD, interface, found, names) == LAN.address


@pytest.mark.parametrize(
    ("interface", "found", "names", "candidate"),
    [
        pytest.param("eth0", [STORAGE], {"eth0", "eth1"}, "", id="not configured yet"),
        pytest.param(
            "eth0", [LAN, HostAddress("eth0", "192.168.1.78")], {"eth0"}, LAN.address, id="two"
        ),
        pytest.param("", [LAN], {"eth0"}, LAN.address, id="never ran there"),
        pytest.param("eth0", [LAN6], {"eth0"}, "", id="another family"),
    ],
)
def test_an_operator_decides_otherwise(
    interface: str, found: list[HostAddress], names: set[str], candidate: str
) -> None:
    with pytest.raises(AddressLost) as raised:
        replacement(OLD, interface, found, names)
    assert f"does not have the address {OLD}" in str(raised.value)
    assert all(each.address in str(raised.value) for each in found)
    assert raised.value.candidate == candidate


def test_the_interface_is_known_for_the_address_that_it_had(tmp_path: Path) -> None:
    assert recorded_interface(tmp_path, OLD) == ""
    record_address(tmp_path, OLD, [HostAddress("eth0", OLD), STORAGE])
    assert recorded_interface(tmp_path, OLD) == "eth0"
    assert recorded_interface(tmp_path, "192.168.1.20") == "", "it was advertised by hand"
    record_address(tmp_path, "127.0.0.1", [LAN])
    assert recorded_interface(tmp_path, OLD) == "eth0"


def test_a_node_follows_its_host_and_the_manager_on_it(tmp_path: Path) -> None:
    """Loopback has every address of 127.0.0.0/8, and 192.0.2.1 is on no host."""
    before = NodeIdentity("n1", "c1", "worker", "127.0.0.5", ("127.0.0.5:7420", "10.0.0.1:7420"))
    assert follow_host(tmp_path, before) == before
    with pytest.raises(AddressLost):
        follow_host(tmp_path, replace(before, address="192.0.2.1"))
