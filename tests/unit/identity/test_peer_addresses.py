# SPDX-License-Identifier: Apache-2.0
"""The address that a call comes from."""

from __future__ import annotations

import pytest

from orchestrator.identity.tls import host_of


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.1:4321", "10.0.0.1"),
        ("ipv6:%5Bfd00::1%5D:4321", "fd00::1"),
        ("ipv6:[fd00::1]:4321", "fd00::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4321", "fe80::1"),
        ("ipv6:%5B::ffff:10.0.0.1%5D:4321", "10.0.0.1"),
        ("unix:/run/x:1", ""),
        ("", ""),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host
