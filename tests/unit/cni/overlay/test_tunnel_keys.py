# SPDX-License-Identifier: Apache-2.0
"""The choice of tunnels and rotation of keys: tables, and properties of two hosts."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cni.firewall.tunnelguard import PREFIX
from orchestrator.cni.netlink.wireguard import Device, Endpoint, Peer, Session
from orchestrator.cni.overlay import tunnelkeys
from orchestrator.cni.overlay.tunnelkeys import (
    ALIVE,
    KEEPALIVE,
    LIMIT,
    QUIET,
    Host,
    OwnKey,
    RemoteKey,
    active_tunnel,
    address_of,
    can_retire,
    difference,
    egress_keys,
    free_slot,
    peers,
    rotation_due,
)
from orchestrator.model.networks import TUNNELS6

NOW = 1_000_000.0


def key(name: str) -> str:
    return base64.b64encode(name.encode().ljust(32)).decode()


def own(slot: int, *, age: float = 100.0, rotation: int = 0) -> OwnKey:
    return OwnKey(slot, key(f"mine{slot}"), "", NOW - age, rotation)


OLD, NEW = own(0), own(1, age=10.0)
THEIRS, THEIRS_NEW = RemoteKey(key("theirs"), 51840), RemoteKey(key("theirs+"), 51841)
ADDRESS = IPv4Address("192.0.2.12")


def handshakes(*ages: tuple[OwnKey, RemoteKey, float]) -> dict[tuple[int, str], float]:
    return {(mine.slot, other.public): NOW - age for mine, other, age in ages}


@pytest.mark.parametrize(
    ("keys", "rotation", "most_age", "wanted"),
    [
        ((), 0, 0, True),
        ((OLD,), 0, 0, False),
        ((OLD,), 1, 0, True),
        ((own(0, rotation=2),), 2, 0, False),
        ((own(0, rotation=2),), 1, 0, False),
        ((OLD,), 0, 100.0, True),
        ((OLD,), 0, 100.5, False),
        ((own(0, age=-5),), 0, 1.0, False),
        ((OLD, NEW), 5, 1.0, False),
    ],
)
def test_when_a_key_is_due(
    keys: tuple[OwnKey, ...], rotation: int, most_age: float, wanted: bool
) -> None:
    assert rotation_due(keys, rotation, most_age, NOW) is wanted


def test_devices_alternate() -> None:
    assert free_slot(()) == 0
    assert free_slot((own(0),)) == 1
    assert free_slot((own(1),)) == 0


@pytest.mark.parametrize(
    ("keys", "quiet", "wanted"),
    [
        ((OLD,), QUIET, False),
        ((OLD, NEW), QUIET - 1, False),
        ((OLD, NEW), QUIET, True),
        ((OLD, own(1, age=LIMIT)), 0.0, True),
    ],
)
def test_when_an_old_key_is_removed(keys: tuple[OwnKey, ...], quiet: float, wanted: bool) -> None:
    assert can_retire(keys, quiet, NOW) is wanted


def test_hosts_that_use_an_old_key_send_before_it_is_removed() -> None:
    assert QUIET > KEEPALIVE


@pytest.mark.parametrize(
    ("shaken", "wanted"),
    [
        # Before any handshake: our old one, as the new one may be unknown; their new one.
        ([], (OLD, THEIRS_NEW)),
        ([(OLD, THEIRS, 5)], (OLD, THEIRS)),
        ([(OLD, THEIRS, 5), (NEW, THEIRS, 90)], (NEW, THEIRS)),
        ([(OLD, THEIRS, 5), (OLD, THEIRS_NEW, 5)], (OLD, THEIRS_NEW)),
        ([(NEW, THEIRS, 5), (OLD, THEIRS_NEW, 5)], (OLD, THEIRS_NEW)),
        ([(NEW, THEIRS_NEW, 5), (OLD, THEIRS, 1)], (NEW, THEIRS_NEW)),
        # One that has died is worth less than one that lives, and more than one that never was.
        ([(NEW, THEIRS_NEW, ALIVE), (OLD, THEIRS, 5)], (OLD, THEIRS)),
        ([(NEW, THEIRS, ALIVE)], (NEW, THEIRS)),
    ],
)
def test_the_active_tunnel(
    shaken: list[tuple[OwnKey, RemoteKey, float]], wanted: tuple[OwnKey, RemoteKey]
) -> None:
    host = Host(ADDRESS, (THEIRS, THEIRS_NEW))
    assert active_tunnel((OLD, NEW), host, handshakes(*shaken), NOW) == wanted


def test_a_removed_key_is_not_used_however_fresh() -> None:
    shaken = handshakes((OLD, THEIRS, 1), (NEW, THEIRS, 1))
    assert active_tunnel((OLD,), Host(ADDRESS, (THEIRS_NEW,)), shaken, NOW) == (OLD, THEIRS_NEW)


def test_peers_of_both_devices_and_their_keepalive() -> None:
    host = Host(ADDRESS, (THEIRS,))
    wanted = peers((OLD, NEW), [host, Host(IPv4Address("192.0.2.13"), ())], {}, NOW)
    peer = Peer(THEIRS.public, Endpoint(ADDRESS, 51840), address_of(THEIRS.public), KEEPALIVE)
    assert wanted == {0: {THEIRS.public: peer}, 1: {THEIRS.public: peer}}
    # Once the new tunnel lives, the old one is let fall asleep, which is how its end is known.
    wanted = peers((OLD, NEW), [host], handshakes((NEW, THEIRS, 1)), NOW)
    assert (wanted[0][THEIRS.public].keepalive, wanted[1][THEIRS.public].keepalive) == (0, 25)
    assert egress_keys((OLD, NEW), [host], handshakes((NEW, THEIRS, 1)), NOW) == {
        THEIRS.public: NEW
    }


def test_a_host_is_not_its_own_peer() -> None:
    mine = RemoteKey(OLD.public, 51840)
    assert peers((OLD,), [Host(ADDRESS, (mine,))], {}, NOW) == {0: {}}


def session(peer: Peer, age: float = 5.0) -> Session:
    return Session(peer, NOW - age, 1, 1)


def test_changes_to_the_peers_of_a_device() -> None:
    peer = Peer(THEIRS.public, Endpoint(ADDRESS, 51840), address_of(THEIRS.public), KEEPALIVE)
    moved = replace(peer, endpoint=Endpoint(IPv4Address("198.51.100.7"), 4000))
    unknown = replace(peer, public=key("unknown"))

    def changes(*present: Session) -> tuple[list[Peer], list[str]]:
        return difference({peer.public: peer}, Device("", 0, present), NOW)

    assert changes() == ([peer], [])
    assert changes(session(peer)) == ([], [])
    assert changes(session(unknown), session(peer)) == ([], [unknown.public])
    # A learned endpoint stays while the peer is live; then the configured one is set again.
    assert changes(session(moved)) == ([], [])
    assert changes(session(moved, ALIVE)) == ([peer], [])
    assert changes(session(replace(moved, keepalive=0))) == ([moved], [])
    assert changes(session(replace(peer, allowed=None))) == ([peer], [])


@given(st.binary(min_size=32, max_size=32))
def test_an_address_derives_from_a_key(private: bytes) -> None:
    public = base64.b64encode(private).decode()
    assert address_of(public) in PREFIX
    assert address_of(public) == address_of(public)


# -- two hosts, each with its own view ------------------------------------------------------------

states = st.sampled_from(["old", "both", "new"])
NAMES = {"old": ("k1",), "both": ("k1", "k2"), "new": ("k2",)}


def _own(host: str, state: str) -> list[OwnKey]:
    return [OwnKey(int(name[1]) - 1, key(host + name), "", 0.0, 0) for name in NAMES[state]]


@given(
    states,
    states,
    st.sets(st.tuples(st.sampled_from(["k1", "k2"]), st.sampled_from(["k1", "k2"]))),
)
def test_both_ends_select_the_same_tunnel_after_the_same_handshakes(
    one: str, two: str, shaken: set[tuple[str, str]]
) -> None:
    """And it is one of which both have the keys, whatever is remembered of others."""
    mine, other = _own("a", one), _own("b", two)
    told_mine = Host(ADDRESS, tuple(RemoteKey(each.public, each.port) for each in mine))
    told_other = Host(ADDRESS, tuple(RemoteKey(each.public, each.port) for each in other))
    seen_here = {(int(a[1]) - 1, key("b" + b)): NOW - 1 for a, b in shaken}
    seen_there = {(int(b[1]) - 1, key("a" + a)): NOW - 1 for a, b in shaken}
    here = active_tunnel(mine, told_other, seen_here, NOW)
    there = active_tunnel(other, told_mine, seen_there, NOW)
    assert here[0] in mine
    assert here[1] in told_other.keys
    common = {(a, b) for a, b in shaken if a in NAMES[one] and b in NAMES[two]}
    if len(common) == 1:
        assert (here[0].public, here[1].public) == (there[1].public, there[0].public)
    if common:
        chosen = here[0].slot, here[1].public
        assert chosen in seen_here, "what has shaken hands is preferred to what has not"


def test_the_model_has_the_same_address_range() -> None:
    assert PREFIX == TUNNELS6


def test_ports_and_devices_differ() -> None:
    assert (own(0).device, own(1).device) == ("orcwg0", "orcwg1")
    assert (own(0).port, own(1).port) == tunnelkeys.PORTS
