# SPDX-License-Identifier: Apache-2.0
"""Kernel entries of peers: properties of `desired` and `diff`."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cni.netlink.routing import RouteEntry
from orchestrator.cni.peers import (
    Entry,
    FdbEntry,
    Neighbour,
    Operations,
    Peer,
    desired,
    diff,
    vtep_mac,
)

GATEWAY = IPv4Address("10.128.0.1")
ME = Peer(IPv4Network("10.128.0.0/24"), IPv4Address("192.0.2.10"))


def wanted_for(peers: Iterable[Peer]) -> frozenset[Entry]:
    return desired(ME, peers, GATEWAY)


def peer(number: int, host: int | None = None) -> Peer:
    subnet = IPv4Network(f"10.{129 + number // 250}.{number % 250}.0/24")
    return Peer(subnet, IPv4Address("192.0.2.0") + (number if host is None else host) % 250)


peers_of_a_network = st.sets(st.integers(0, 600), max_size=20).map(
    lambda numbers: [peer(number) for number in numbers]
)

# Entries as a hand may have left them on the device, also several for one address or MAC.
small = st.integers(0, 4)
entries = st.one_of(
    st.builds(
        lambda a, b, metric: RouteEntry(
            peer(a).subnet, peer(b).subnet.network_address, IPv4Address("10.128.0.1"), metric, True
        ),
        small,
        small,
        st.sampled_from([0, 0, 100]),
    ),
    st.builds(
        lambda a, b: Neighbour(peer(a).subnet.network_address, vtep_mac(peer(b).subnet)),
        small,
        small,
    ),
    st.builds(lambda a, b: FdbEntry(vtep_mac(peer(a).subnet), peer(b).address), small, small),
)


def kernel(present: frozenset[Entry], operations: Operations) -> frozenset[Entry]:
    """What a kernel has after operations: putting replaces what has the same key."""
    state = set(present)
    for entry in operations.remove:
        assert entry in state, "only what is there may be removed"
        state.remove(entry)
    for entry in operations.put:
        match entry:
            case RouteEntry():
                state -= {
                    other
                    for other in state
                    if isinstance(other, RouteEntry)
                    and (other.destination, other.metric) == (entry.destination, entry.metric)
                }
            case Neighbour():
                state -= {
                    other
                    for other in state
                    if isinstance(other, Neighbour) and other.address == entry.address
                }
            case FdbEntry():
                same = [
                    other
                    for other in state
                    if isinstance(other, FdbEntry) and other.mac == entry.mac
                ]
                assert len(same) <= 1, "replacing one of several is undefined"
                state -= set(same)
        state.add(entry)
    return frozenset(state)


def test_a_peer_is_one_route_one_neighbour_one_forward() -> None:
    other = Peer(IPv4Network("10.128.3.0/24"), IPv4Address("192.0.2.13"))
    vtep, mac = IPv4Address("10.128.3.0"), "02:76:0a:80:03:00"
    assert wanted_for([ME, other]) == {
        RouteEntry(other.subnet, vtep, IPv4Address("10.128.0.1"), onlink=True),
        Neighbour(vtep, mac),
        FdbEntry(mac, other.address),
    }


@given(peers_of_a_network)
def test_a_peer_costs_three_entries(peers: list[Peer]) -> None:
    assert len(wanted_for([*peers, ME])) == 3 * len(peers)


@given(peers_of_a_network)
def test_order_and_repetition_do_not_matter(peers: list[Peer]) -> None:
    assert wanted_for(peers) == wanted_for([*reversed(peers), *peers])


@pytest.mark.parametrize(
    "second",
    [
        Peer(IPv4Network("10.129.0.0/24"), IPv4Address("192.0.2.99")),
        Peer(IPv4Network("10.129.0.0/25"), IPv4Address("192.0.2.99")),
        Peer(IPv4Network("10.128.0.0/16"), IPv4Address("192.0.2.99")),
    ],
)
def test_overlapping_claims_are_refused(second: Peer) -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.99.*must not overlap"):
        wanted_for([peer(0), second])


@given(peers_of_a_network, st.frozensets(entries, max_size=12))
def test_one_pass_converges(peers: list[Peer], present: frozenset[Entry]) -> None:
    wanted = wanted_for(peers)
    assert kernel(present, diff(wanted, present)) == wanted


@given(st.sets(small), st.frozensets(entries, max_size=16))
def test_one_pass_repairs_any_state(numbers: set[int], present: frozenset[Entry]) -> None:
    wanted = wanted_for([peer(number) for number in numbers])
    assert kernel(present, diff(wanted, present)) == wanted


@given(peers_of_a_network)
def test_a_converged_state_needs_no_operation(peers: list[Peer]) -> None:
    wanted = wanted_for(peers)
    assert diff(wanted, wanted) == Operations((), ())


@given(st.sets(small), st.frozensets(entries, max_size=16))
def test_routes_come_last_and_go_first(numbers: set[int], present: frozenset[Entry]) -> None:
    operations = diff(wanted_for([peer(number) for number in numbers]), present)
    put = [isinstance(entry, RouteEntry) for entry in operations.put]
    gone = [isinstance(entry, RouteEntry) for entry in operations.remove]
    assert put == sorted(put)
    assert gone == sorted(gone, reverse=True)


def test_a_moved_peer_is_replaced_in_place() -> None:
    before, after = wanted_for([peer(1, host=5)]), wanted_for([peer(1, host=6)])
    operations = diff(after, before)
    assert operations.remove == ()
    assert operations.put == (FdbEntry(vtep_mac(peer(1).subnet), peer(1, host=6).address),)
