# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.dev.devplan import (
    UNDERLAYS,
    ClusterPlan,
    DevError,
    Route,
    check_name,
    check_size,
    choose_subnet,
    is_host_cgroup,
    parse_routes,
)

PLAN = ClusterPlan("dev", IPv4Network("10.213.7.0/24"), 1, 3, "/root", None, "0a1b2c3d")


def test_hosts_have_names_addresses_and_one_daemon() -> None:
    assert [(h.name, str(h.address), h.daemon, h.cgroup) for h in PLAN.hosts] == [
        ("manager1", "10.213.7.11", "manager", "orc-dev-manager1-0a1b2c3d"),
        ("node1", "10.213.7.21", "agent", "orc-dev-node1-0a1b2c3d"),
        ("node2", "10.213.7.22", "agent", "orc-dev-node2-0a1b2c3d"),
        ("node3", "10.213.7.23", "agent", "orc-dev-node3-0a1b2c3d"),
    ]
    assert PLAN.hosts[0].mac == "02:0d:0a:d5:07:0b"
    assert str(PLAN.gateway) == "10.213.7.1"


def test_largest_cluster_fits_its_subnet() -> None:
    check_size(1, 200)
    hosts = ClusterPlan("dev", PLAN.subnet, 1, 200, "/root", None, "t").hosts
    assert len({host.address for host in hosts}) == 201
    assert all(host.address in PLAN.subnet for host in hosts)


def test_a_record_reads_back() -> None:
    assert ClusterPlan.from_json(PLAN.to_json(), PLAN.tag) == PLAN


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "dev", "subnet": "x"}'])
def test_broken_record_is_a_dev_error(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        ClusterPlan.from_json(text, "t")


def test_error_for_an_unknown_host_lists_hosts() -> None:
    with pytest.raises(DevError, match=r"no host 'node9'.*manager1, node1, node2, node3"):
        PLAN.host("node9")


@pytest.mark.parametrize("name", ["dev", "e2e-4711", "e2e-ci-4194304-gw15-rotated", "a", "a" * 32])
def test_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Dev", "-a", "a-", "a/b", "..", "a" * 33, "a b"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(DevError, match="invalid cluster name"):
        check_name(name)


@pytest.mark.parametrize(
    ("managers", "nodes", "says"),
    [(8, 3, "--managers 8"), (0, 3, "--managers 0"), (1, 0, "--nodes 0"), (1, 201, "--nodes 201")],
)
def test_unsupported_sizes_are_refused(managers: int, nodes: int, says: str) -> None:
    with pytest.raises(DevError, match=says):
        check_size(managers, nodes)


def test_cgroups_of_a_cluster_with_a_longer_name_are_kept() -> None:
    assert is_host_cgroup("dev", "t", "orc-dev-node12-t")
    assert is_host_cgroup("dev", "t", "orc-dev-manager1-t")
    assert not is_host_cgroup("dev", "t", "orc-dev-node1-node1-t")
    assert not is_host_cgroup("dev", "t", "orc-dev-b-node1-t")
    assert not is_host_cgroup("dev", "t", "orc-dev-node1-u")
    assert not is_host_cgroup("a.c", "t", "orc-abc-node1-t")


_subnets = st.lists(
    st.integers(0, 255).map(lambda i: list(UNDERLAYS.subnets(new_prefix=24))[i]), max_size=40
)


@given(_subnets)
def test_chosen_subnet_is_free_and_stable(taken: list[IPv4Network]) -> None:
    chosen = choose_subnet("dev", taken)
    assert chosen == choose_subnet("dev", taken)
    assert chosen.subnet_of(UNDERLAYS)
    assert not any(chosen.overlaps(network) for network in taken)
    assert not chosen.overlaps(IPv4Network("10.128.0.0/14"))


def test_subnets_of_wide_routes_are_taken() -> None:
    half = IPv4Network("10.213.0.0/17")
    assert choose_subnet("dev", [half]).subnet_of(IPv4Network("10.213.128.0/17"))
    with pytest.raises(DevError, match="no free /24"):
        choose_subnet("dev", [IPv4Network("10.0.0.0/8")])


def test_routes_are_read_without_the_default() -> None:
    text = (
        '[{"dst":"default","dev":"eth0"},{"dst":"192.0.2.0/24","dev":"eth1"},{"dst":"127.0.0.1"}]'
    )
    assert parse_routes(text) == [
        Route(IPv4Network("192.0.2.0/24"), "eth1"),
        Route(IPv4Network("127.0.0.1/32"), ""),
    ]
    assert parse_routes("") == []
