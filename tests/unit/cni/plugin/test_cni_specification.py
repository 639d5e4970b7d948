# SPDX-License-Identifier: Apache-2.0
"""The plugin against the text of the CNI specification 1.1.0, and the codes of libcni."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cnikit import conf, environment
from nshosts import NsHost, reach

from orchestrator.cni.errors import Code
from orchestrator.cni.netlink import namespaces
from orchestrator.cni.plugin import protocol

GOOD = {"cniVersion": "1.1.0", "name": "n", "subnet": "10.1.0.0/24"}
ENVIRONMENT = {"CNI_CONTAINERID": "c", "CNI_NETNS": "/proc/nowhere", "CNI_IFNAME": "eth0"}


def refused(command: str, data: bytes, **changes: str) -> dict[str, Any]:
    status, document = protocol.answer(data, {"CNI_COMMAND": command, **ENVIRONMENT, **changes})
    assert status == 1
    assert document is not None
    return document


# -- "Error": what every error document holds ------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"])
def test_deeply_nested_json_cannot_be_decoded(command: str) -> None:
    for data in (b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
        error = refused(command, data)
        assert error["code"] == Code.DECODING_FAILURE
        assert "too deeply" in error["msg"]


def test_the_message_on_an_unsupported_field_has_key_and_value() -> None:
    error = refused("ADD", json.dumps({**GOOD, "ipam": {"type": "host-local"}}).encode())
    assert error["code"] == Code.UNSUPPORTED_FIELD
    assert 'ipam {"type": "host-local"}' in error["msg"]


@pytest.mark.parametrize(
    "changes",
    [
        {"CNI_CONTAINERID": "c" * 300},
        {"CNI_CONTAINERID": "-c"},
        {"CNI_CONTAINERID": "c\n"},
        {"CNI_CONTAINERID": "ä"},
        {"CNI_IFNAME": "a%d"},
        {"CNI_IFNAME": "ääääääää"},
        {"CNI_IFNAME": "à"},
        {"CNI_IFNAME": "a\tb"},
        {"CNI_IFNAME": "."},
        {"CNI_IFNAME": "a/b"},
        {"CNI_IFNAME": "a:b"},
        {"CNI_IFNAME": "sixteen-letters-"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_invalid_parameters(tmp_path: Path, command: str, changes: dict[str, str]) -> None:
    data = {**GOOD, "dataDir": str(tmp_path), "prevResult": {"cniVersion": "1.1.0"}}
    error = refused(command, json.dumps(data).encode(), **changes)
    assert error["code"] == Code.INVALID_ENVIRONMENT, error


def test_an_unusable_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = {**GOOD, "dataDir": str(tmp_path / "file" / "folder")}
    error = refused("ADD", json.dumps(data).encode())
    assert error["code"] == Code.IO_FAILURE
    assert "addresses in" in error["msg"]


# -- ADD -------------------------------------------------------------------------------------------


@pytest.fixture
def second(host: NsHost) -> Iterator[Path]:
    """Another one."""
    path = host.run / "second"
    namespaces.ensure(path)
    yield path
    namespaces.remove(path)


def links(host: NsHost, netns: Path) -> set[str]:
    return {link["ifname"] for link in NsHost(netns, "", host.state, host.run).ip("link")}


@pytest.mark.root
@pytest.mark.parametrize("way", ["/proc/self/ns/net", "/proc/thread-self/ns/net", "netns"])
def test_add_is_refused_in_the_hosts_own_namespace(host: NsHost, way: str) -> None:
    path = str(host.netns) if way == "netns" else way
    before = {link["ifname"] for link in host.ip("link")}
    status, error = host.cni("ADD", conf(host), **environment(path))
    assert (status, error["code"]) == (1, Code.INVALID_NETNS)
    assert "own network namespace" in error["msg"]
    assert {link["ifname"] for link in host.ip("link")} - before <= {"orc0"}


@pytest.mark.root
def test_an_id_as_long_as_allowed(host: NsHost, box: Path) -> None:
    status, result = host.cni("ADD", conf(host), **environment(box, "c" * 200, "fifteen-letters"))
    assert status == 0, result


@pytest.mark.root
def test_a_second_add_in_another_namespace_leaves_the_first_alone(
    host: NsHost, box: Path, second: Path
) -> None:
    _, first = host.cni("ADD", conf(host), **environment(box))
    status, error = host.cni("ADD", conf(host), **environment(second))
    assert (status, error["code"]) == (1, Code.INTERFACE_IN_USE)
    assert f"in {box}: run DEL there first" in error["msg"]
    assert links(host, second) == {"lo"}
    checked = {**conf(host), "prevResult": first}
    assert host.cni("CHECK", checked, **environment(box)) == (0, None)
    assert reach(box, host.netns, "10.128.0.2", 80) == "10.128.0.1"

    assert host.cni("DEL", conf(host), **environment(box)) == (0, None)
    status, result = host.cni("ADD", conf(host), **environment(second))
    assert status == 0, result


@pytest.mark.root
def test_a_second_add_to_another_network_leaves_the_first_alone(host: NsHost, box: Path) -> None:
    _, first = host.cni("ADD", conf(host), **environment(box))
    other = conf(host, name="other", bridge="orc1", subnet="10.129.0.0/24")
    status, error = host.cni("ADD", other, **environment(box))
    assert (status, error["code"]) == (1, Code.INTERFACE_IN_USE)
    assert "connected to network testnet" in error["msg"]
    checked = {**conf(host), "prevResult": first}
    assert host.cni("CHECK", checked, **environment(box)) == (0, None)


@pytest.mark.root
def test_add_after_the_first_namespace_vanished_without_del(
    host: NsHost, box: Path, second: Path
) -> None:
    host.cni("ADD", conf(host), **environment(box))
    namespaces.remove(box)
    status, result = host.cni("ADD", conf(host), **environment(second))
    assert status == 0, result
    assert links(host, second) == {"lo", "eth0"}


# -- DEL -------------------------------------------------------------------------------------------


@pytest.mark.root
def test_del_needs_neither_namespace_nor_result(host: NsHost, box: Path) -> None:
    host.cni("ADD", conf(host), **environment(box))
    without = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": ""}
    assert host.cni("DEL", conf(host), **without) == (0, None)
    assert links(host, box) == {"lo"}
    assert host.cni("DEL", conf(host), **without) == (0, None)


# -- CHECK -----------------------------------------------------------------------------------------


def _put(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def change(result: dict[str, Any], value: Any) -> None:
        place: Any = result
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def _append(key: str) -> Callable[[dict[str, Any], Any], None]:
    return lambda result, value: result[key].append(value)


@pytest.mark.root
def test_check_compares_the_result(host: NsHost, box: Path) -> None:
    _, result = host.cni("ADD", conf(host), **environment(box))
    cases: list[tuple[Callable[[dict[str, Any], Any], None], Any, str]] = [
        (_put("ips", 0, "address"), "10.128.0.99/24", "have the address 10.128.0.2/24"),
        (_put("ips", 0, "gateway"), "10.128.0.9", "gateway 10.128.0.9 for 10.128.0.2/24"),
        (_put("ips", 0, "interface"), 1, "on another interface"),
        (_put("ips"), [], "have the address"),
        (_put("interfaces", 0, "name"), "br0", "the interface orc0 of this host"),
        (_put("interfaces", 1, "name"), "veth0", "of this host"),
        (_put("interfaces", 2, "name"), "eth1", "the interface eth0 with MAC"),
        (_put("interfaces", 2, "mac"), "02:00:00:00:00:09", "the interface eth0 with MAC"),
        (_put("interfaces", 2, "sandbox"), "/run/netns/other", "not the container's sandbox"),
        (_put("interfaces", 2, "sandbox"), str(host.netns), "not the container's sandbox"),
        (_put("routes", 1, "gw"), "10.128.0.9", "route to 0.0.0.0/0 via 10.128.0.9"),
        (_append("routes"), {"dst": "192.0.2.0/24"}, "route to 192.0.2.0/24"),
        (_append("ips"), {"address": "10.128.0.7/24", "interface": 2}, "address 10.128.0.7/24"),
    ]
    for change, value, words in cases:
        previous = copy.deepcopy(result)
        change(previous, value)
        status, error = host.cni(
            "CHECK", {**conf(host), "prevResult": previous}, **environment(box)
        )
        assert status == 1, words
        assert error["code"] == Code.CHECK_FAILED
        assert words in error["msg"]
    assert host.cni("CHECK", {**conf(host), "prevResult": result}, **environment(box)) == (0, None)
    previous = copy.deepcopy(result)
    previous["routes"].append({"dst": "nonsense"})
    status, error = host.cni("CHECK", {**conf(host), "prevResult": previous}, **environment(box))
    assert (status, error["code"]) == (1, Code.INVALID_CONFIG)


@pytest.mark.root
def test_check_allows_additions_of_later_plugins_in_the_chain(host: NsHost, box: Path) -> None:
    _, result = host.cni("ADD", conf(host), **environment(box))
    container = NsHost(box, "", host.state, host.run)
    container.shell("ip", "addr", "add", "10.128.0.7/24", "dev", "eth0")
    container.shell("ip", "route", "add", "192.0.2.0/24", "via", "10.128.0.1")
    container.shell("ip", "link", "add", "net1", "type", "bridge")
    result["ips"].append({"address": "10.128.0.7/24", "interface": 2})
    result["interfaces"].append({"name": "net1", "sandbox": str(box)})
    result["ips"].append({"address": "10.200.0.7/24", "interface": 3})
    result["routes"].append({"dst": "192.0.2.0/24", "gw": "10.128.0.1"})
    result["routes"].append({"dst": "198.51.100.0/24", "table": 100})
    assert host.cni("CHECK", {**conf(host), "prevResult": result}, **environment(box)) == (0, None)


@pytest.mark.root
def test_check_takes_another_path_to_the_same_namespace(host: NsHost, box: Path) -> None:
    _, result = host.cni("ADD", conf(host), **environment(box))
    other = box.with_name("link")
    other.symlink_to(box)
    checked = {**conf(host), "prevResult": result}
    assert host.cni("CHECK", checked, **environment(other)) == (0, None)


@pytest.mark.root
def test_check_and_status_fail_without_the_firewall_rules(host: NsHost, box: Path) -> None:
    assert host.cni("STATUS", conf(host)) == (0, None), "nothing is needed before the first ADD"
    _, result = host.cni("ADD", conf(host), **environment(box))
    checked = {**conf(host), "prevResult": result}
    assert host.cni("STATUS", conf(host)) == (0, None)
    host.shell("nft", "flush", "chain", "inet", "orc_cni", "masquerade_orc0")
    for command, document, code in (
        ("CHECK", checked, Code.CHECK_FAILED),
        ("STATUS", conf(host), Code.LIMITED_CONNECTIVITY),
    ):
        status, error = host.cni(command, document, **environment(box))
        assert (status, error["code"]) == (1, code)
        assert "inet orc_cni masquerade_orc0 has 0 entries" in error["msg"]
    host.shell("nft", "delete", "table", "inet", "orc_cni")
    for command, document, code in (
        ("CHECK", checked, Code.CHECK_FAILED),
        ("STATUS", conf(host), Code.LIMITED_CONNECTIVITY),
    ):
        status, error = host.cni(command, document, **environment(box))
        assert (status, error["code"]) == (1, code)
        assert "is gone" in error["msg"]
    assert host.cni("ADD", conf(host), **environment(box)) == (0, result), "restored"
    assert host.cni("CHECK", checked, **environment(box)) == (0, None)
    assert host.cni("STATUS", conf(host)) == (0, None)


@pytest.mark.root
def test_add_restores_lost_rules_of_all_containers(host: NsHost, box: Path, second: Path) -> None:
    published = conf(
        host, runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
    )
    _, result = host.cni("ADD", published, **environment(box))
    host.shell("nft", "flush", "ruleset")
    assert host.cni("ADD", conf(host), **environment(second, "c2"))[0] == 0
    checked = {**published, "prevResult": result}
    assert host.cni("CHECK", checked, **environment(box)) == (0, None)
    assert reach(box, host.netns, host.address, 8080, 80) == host.address


@pytest.mark.root
def test_status_fails_when_the_host_no_longer_forwards(host: NsHost, box: Path) -> None:
    host.cni("ADD", conf(host), **environment(box))
    host.shell("sysctl", "-qw", "net.ipv4.ip_forward=0")
    status, error = host.cni("STATUS", conf(host))
    assert (status, error["code"]) == (1, Code.LIMITED_CONNECTIVITY)
    assert "net.ipv4.ip_forward is switched off" in error["msg"]


# -- GC --------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize(
    "more",
    [{}, {"cni.dev/valid-attachments": None}, {"cni.dev/valid-attachments": []}],
    ids=["absent", "null", "empty"],
)
def test_gc_without_valid_attachments_removes_those_of_this_network(
    host: NsHost, box: Path, more: dict[str, Any]
) -> None:
    """libcni's `cnitool gc` gives no list, where it knows of no valid attachment."""
    host.cni("ADD", conf(host), **environment(box, "stale", "eth0"))
    other = conf(host, name="other", bridge="orc1", subnet="10.129.0.0/24")
    host.cni("ADD", other, **environment(box, "kept", "net1"))
    assert host.cni("GC", conf(host, **more)) == (0, None)
    assert links(host, box) == {"lo", "net1"}


@pytest.mark.root
def test_gc_by_the_older_name_of_the_list(host: NsHost, box: Path) -> None:
    host.cni("ADD", conf(host), **environment(box, "keep", "eth0"))
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    assert host.cni("GC", conf(host, **{"cni.dev/attachments": valid})) == (0, None)
    assert links(host, box) == {"lo", "eth0"}


def test_an_invalid_list_of_valid_attachments() -> None:
    data = {**GOOD, "cni.dev/valid-attachments": [{"containerID": "c"}]}
    error = refused("GC", json.dumps(data).encode())
    assert error["code"] == Code.INVALID_CONFIG
    assert "ifname is missing" in error["msg"]
