# SPDX-License-Identifier: Apache-2.0
"""Which tracked connections a change of the endpoint table ends: a table."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from orchestrator.cni.balancing.endpointtable import Endpoint, Published, Service
from orchestrator.cni.balancing.staleflows import after_change, after_restart
from orchestrator.cni.netlink.conntrack import UDP, Flow

VIP, ONE, TWO = (IPv4Address(text) for text in ("10.0.0.100", "10.0.0.1", "10.0.0.2"))
TCP = 6


def service(*endpoints: tuple[IPv4Address, bool], vip: bool = True, **fields: Any) -> Service:
    return Service(
        id="web", network="n1", vip=VIP if vip else None,
        endpoints=tuple(Endpoint(address, None, ready) for address, ready in endpoints),
        **fields,
    )  # fmt: skip


def flow(server: IPv4Address, protocol: int = UDP, port: int = 53) -> Flow:
    return Flow(protocol=protocol, destination=VIP.packed, port=port, server=server.packed)


@pytest.mark.parametrize(
    ("before", "after", "udp", "tcp"),
    [
        ([service((ONE, True))], [service((ONE, True), (TWO, True))], None, None),
        ([service((ONE, True))], [service((ONE, False))], True, False),
        ([service((ONE, True), (TWO, True))], [service((TWO, True))], True, True),
        ([service((ONE, True))], [], True, True),
        ([service((ONE, True), vip=False)], [], None, None),
        ([service((ONE, True), vip=False)], [service((ONE, False), vip=False)], None, None),
        (
            [service((ONE, True), vip=False, ports=(Published("udp", 53, 53),))],
            [service(vip=False, ports=(Published("udp", 53, 53),))],
            True,
            True,
        ),
    ],
)
def test_the_flows_to_the_first_endpoint(
    before: list[Service], after: list[Service], udp: bool | None, tcp: bool | None
) -> None:
    found = after_change(before, after)
    if udp is None:
        assert found is None
    else:
        assert found is not None
        assert (found.stale(flow(ONE)), found.stale(flow(ONE, TCP))) == (udp, tcp)


def test_flows_to_a_vip_without_nat_are_stale_when_it_is_added() -> None:
    found = after_change([], [service((ONE, True))])
    assert found is not None
    assert not found.translated
    anew = after_restart([service((ONE, True))], [])
    for protocol in (UDP, TCP):
        assert found.stale(flow(VIP, protocol))
        assert anew.stale(flow(VIP, protocol))
        assert not anew.stale(flow(ONE, protocol))
    assert not found.stale(flow(ONE, TCP))
