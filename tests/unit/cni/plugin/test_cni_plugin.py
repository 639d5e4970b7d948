# SPDX-License-Identifier: Apache-2.0
"""The command `orc-cni` as a runtime sees it: results, errors, versions, kernel."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cnikit import conf, environment
from nshosts import NsHost, reach, socket_in

from orchestrator.cni.errors import Code
from orchestrator.cni.netlink import namespaces
from orchestrator.cni.overlay.veth import veth_name
from orchestrator.cni.plugin import protocol

# -- without a kernel ----------------------------------------------------------------------------

GOOD = {"cniVersion": "1.1.0", "name": "n", "subnet": "10.1.0.0/24"}
ENVIRONMENT = {"CNI_CONTAINERID": "c", "CNI_NETNS": "/proc/nowhere", "CNI_IFNAME": "eth0"}


@pytest.mark.parametrize(
    ("command", "data", "changes", "code", "words"),
    [
        ("", GOOD, {}, 4, "CNI_COMMAND is ''"),
        ("PATCH", GOOD, {}, 4, "use one of ADD, DEL, CHECK"),
        ("ADD", GOOD, {"CNI_CONTAINERID": ""}, 4, "ADD needs CNI_CONTAINERID"),
        ("ADD", GOOD, {"CNI_NETNS": "", "CNI_IFNAME": ""}, 4, "CNI_NETNS, CNI_IFNAME"),
        ("DEL", GOOD, {"CNI_IFNAME": ""}, 4, "DEL needs CNI_IFNAME"),
        ("CHECK", GOOD, {"CNI_NETNS": ""}, 4, "CHECK needs CNI_NETNS"),
        ("ADD", GOOD, {"CNI_IFNAME": "eth/0"}, 4, "CNI_IFNAME 'eth/0'"),
        ("ADD", GOOD, {"CNI_IFNAME": "sixteen-letters!"}, 4, "up to 15 bytes"),
        ("ADD", GOOD, {"CNI_IFNAME": "eth0:1"}, 4, "no slash, colon, percent sign or space"),
        ("ADD", GOOD, {"CNI_IFNAME": ".."}, 4, "CNI_IFNAME"),
        ("ADD", GOOD, {"CNI_CONTAINERID": "../etc"}, 4, "CNI_CONTAINERID"),
        ("ADD", '{"cniVersion"', {}, 6, "not valid JSON"),
        ("ADD", "", {}, 6, "not valid JSON"),
        ("ADD", "[]", {}, 6, "not a JSON object"),
        ("VERSION", "nonsense", {}, 6, "not valid JSON"),
        ("ADD", {**GOOD, "cniVersion": "0.3.1"}, {}, 1, "use one of 0.4.0, 1.0.0, 1.1.0"),
        ("DEL", {**GOOD, "cniVersion": "9.9.9"}, {}, 1, "version 9.9.9 is not supported"),
        ("ADD", {"name": "n"}, {}, 1, "version 0.1.0"),
        ("GC", {**GOOD, "cniVersion": "1.0.0"}, {}, 1, "GC needs cniVersion 1.1.0"),
        ("STATUS", {**GOOD, "cniVersion": "0.4.0"}, {}, 1, "STATUS needs cniVersion"),
        ("ADD", {**GOOD, "ipam": {"type": "dhcp"}}, {}, 2, "remove this field"),
        ("ADD", {**GOOD, "name": ""}, {}, 7, "name is missing"),
        ("ADD", {**GOOD, "name": "a b"}, {}, 7, "name 'a b'"),
        ("ADD", {**GOOD, "subnet": None}, {}, 7, "subnet None is not an IPv4 network"),
        ("ADD", {**GOOD, "subnet": "10.1.0.1/24"}, {}, 7, "has host bits set"),
        ("ADD", {**GOOD, "subnet": "10.1.0.0/30"}, {}, 7, "too small"),
        ("ADD", {**GOOD, "clusterCIDR": "10.2.0.0/16"}, {}, 7, "not part of clusterCIDR"),
        ("ADD", {**GOOD, "bridge": "much-too-long-name"}, {}, 7, "at most 15 characters"),
        ("ADD", {**GOOD, "bridge": 'x" drop'}, {}, 7, "not an interface name"),
        ("ADD", {**GOOD, "mtu": "1500"}, {}, 7, "mtu '1500'"),
        ("ADD", {**GOOD, "vni": 1 << 24, "nodeAddress": "192.0.2.1"}, {}, 7, "vni 16777216"),
        ("ADD", {**GOOD, "vni": 1}, {}, 7, "nodeAddress None"),
        ("ADD", {**GOOD, "vni": 1, "nodeAddress": "192.0.2.1", "peers": [1]}, {}, 7, "peers"),
        (
            "ADD",
            {**GOOD, "runtimeConfig": {"portMappings": [{"hostPort": 0, "containerPort": 1}]}},
            {},
            7,
            "hostPort 0: give a whole number from 1 to 65535",
        ),
        (
            "ADD",
            {
                **GOOD,
                "runtimeConfig": {
                    "portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]
                },
            },
            {},
            7,
            "port protocol 'icmp'",
        ),
        (
            "ADD",
            {
                **GOOD,
                "runtimeConfig": {
                    "portMappings": [
                        {"hostPort": 80, "containerPort": 1},
                        {"hostPort": 80, "containerPort": 2},
                    ]
                },
            },
            {},
            7,
            "port 80/tcp cannot lead to 1 and to 2",
        ),
        ("ADD", {**GOOD, "runtimeConfig": {"ips": ["10.9.0.1"]}}, {}, 7, "not in the network"),
        ("ADD", {**GOOD, "runtimeConfig": {"ips": ["fd00::2"]}}, {}, 7, "has no IPv6"),
        (
            "ADD",
            {**GOOD, "subnet6": "fd00:0:0:3::/64", "runtimeConfig": {"ips": ["fd00::2"]}},
            {},
            7,
            "fd00::2 is not in the network fd00:0:0:3::/64",
        ),
        ("ADD", {**GOOD, "runtimeConfig": {"ips": ["x"]}}, {}, 7, "ips 'x' is not an IP address"),
        ("ADD", {**GOOD, "runtimeConfig": {"mac": "2:3"}}, {}, 7, "mac '2:3' is not a hardware"),
        ("ADD", {**GOOD, "subnet6": "fd00::/126"}, {}, 7, "not as many addresses as"),
        ("ADD", {**GOOD, "gateway": "10.1.1.1"}, {}, 7, "gateway 10.1.1.1 is not an address of"),
        ("ADD", {**GOOD, "ipRange": "10.2.0.0/25"}, {}, 7, "ipRange 10.2.0.0/25 is not part of"),
        ("ADD", {**GOOD, "mtu": 500}, {}, 7, "mtu 500: give a whole number from 576"),
        ("ADD", {**GOOD, "subnet6": "fd00::/64", "mtu": 600}, {}, 7, "from 1280 to 65535"),
        ("ADD", {**GOOD, "args": {"cni": {"ips": ["10.1.0.3", "10.1.0.4"]}}}, {}, 7, "ask for one"),
        ("CHECK", GOOD, {}, 7, "CHECK needs prevResult"),
    ],
)
def test_errors(
    tmp_path: Path, command: str, data: Any, changes: dict[str, str], code: int, words: str
) -> None:
    if isinstance(data, dict):
        data = json.dumps({**data, "dataDir": str(tmp_path)})
    status, document = protocol.answer(
        data.encode(), {"CNI_COMMAND": command, **ENVIRONMENT, **changes}
    )
    assert status == 1
    assert document is not None
    assert document["code"] == code, document
    assert words in document["msg"]
    assert document["cniVersion"]


@pytest.mark.parametrize("version", ["0.3.0", "1.0.0", "1.1.0"])
def test_version(version: str) -> None:
    data = json.dumps({"cniVersion": version}).encode()
    assert protocol.answer(data, {"CNI_COMMAND": "VERSION"}) == (
        0,
        {"cniVersion": version, "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]},
    )


def test_plugin_starts_without_the_rest_of_orc() -> None:
    code = "import sys, orchestrator.cni.helper; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    modules = loaded.split()
    ours = {name for name in modules if name.startswith("orchestrator.")}
    assert all(name.startswith(("orchestrator.cni", "orchestrator.linux")) for name in ours)
    assert not {"grpc", "click"} & set(modules)


def test_names_of_veth_pairs_fit_and_differ() -> None:
    ids = [f"{prefix}{number}" for prefix in ("c", "task-web.") for number in range(5000)]
    names = {veth_name(container, ifname) for container in ids for ifname in ("eth0", "eth1")}
    assert len(names) == 20_000
    assert {len(name) for name in names} == {15}


def test_at_a_terminal_it_prints_a_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CNI_COMMAND", raising=False)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert protocol.main() == 0
    assert "CNI plugin" in capsys.readouterr().out


# -- with a kernel -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
def test_add_check_del(host: NsHost, box: Path, version: str) -> None:
    settings = conf(host, version)
    status, result = host.cni("ADD", settings, **environment(box))
    assert status == 0, result
    assert result["cniVersion"] == version
    bridge, end, inside = result["interfaces"]
    assert (bridge["name"], inside["name"], inside["sandbox"]) == ("orc0", "eth0", str(box))
    assert result["ips"][0]["address"] == "10.128.0.2/24"
    assert result["ips"][0]["gateway"] == "10.128.0.1"
    assert result["ips"][0]["interface"] == 2
    assert ("version" in result["ips"][0]) == (version == "0.4.0")
    assert result["routes"] == [
        {"dst": "10.128.0.0/14", "gw": "10.128.0.1"},
        {"dst": "0.0.0.0/0", "gw": "10.128.0.1"},
    ]

    container = NsHost(box, "", host.state, host.run)
    (link,) = container.ip("link", "show", "eth0")
    assert (link["address"], link["operstate"]) == (inside["mac"], "UP")
    (port,) = host.ip("link", "show", end["name"])
    assert (port["master"], port["address"]) == ("orc0", end["mac"])
    (lo,) = container.ip("link", "show", "lo")
    assert "UP" in lo["flags"]
    assert reach(box, host.netns, "10.128.0.2", 80) == "10.128.0.1"
    assert reach(host.netns, box, "10.128.0.1", 81) == "10.128.0.2"

    checked = {**settings, "prevResult": result}
    assert host.cni("CHECK", checked, **environment(box)) == (0, None)
    assert host.cni("DEL", checked, **environment(box)) == (0, None)
    assert {link["ifname"] for link in container.ip("link")} == {"lo"}
    assert host.cni("DEL", settings, **environment(box)) == (0, None), "twice is fine"


@pytest.mark.root
def test_add_twice_gives_the_same(host: NsHost, box: Path) -> None:
    first = host.cni("ADD", conf(host), **environment(box))
    container = NsHost(box, "", host.state, host.run)
    container.shell("ip", "addr", "flush", "dev", "eth0")
    assert host.cni("ADD", conf(host), **environment(box)) == first
    checked = {**conf(host), "prevResult": first[1]}
    assert host.cni("CHECK", checked, **environment(box)) == (0, None), "mended"


@pytest.mark.root
def test_a_second_interface(host: NsHost, box: Path) -> None:
    _, first = host.cni("ADD", conf(host), **environment(box))
    other = conf(host, name="other", bridge="orc1", subnet="10.129.0.0/24")
    status, second = host.cni("ADD", other, **environment(box, ifname="net1"))
    assert status == 0
    assert (first["ips"][0]["address"], second["ips"][0]["address"]) == (
        "10.128.0.2/24",
        "10.129.0.2/24",
    )


@pytest.mark.root
def test_a_foreign_interface_is_left_alone(host: NsHost, box: Path) -> None:
    container = NsHost(box, "", host.state, host.run)
    container.shell("ip", "link", "add", "eth0", "type", "bridge")
    status, error = host.cni("ADD", conf(host), **environment(box))
    assert (status, error["code"]) == (1, Code.INTERFACE_IN_USE)
    (link,) = container.ip("link", "show", "eth0")
    assert link["linkinfo"]["info_kind"] == "bridge"
    ends = [link["ifname"] for link in host.ip("link") if link["ifname"].startswith("orcv")]
    assert ends == [], "rolled back"
    _, result = host.cni("ADD", conf(host), **environment(box, "c2", "eth1"))
    assert result["ips"][0]["address"] != ""


@pytest.mark.root
def test_a_vanished_namespace(host: NsHost, box: Path) -> None:
    _, result = host.cni("ADD", conf(host), **environment(box))
    namespaces.remove(box)
    assert host.cni("DEL", conf(host), **environment(box)) == (0, None)
    status, error = host.cni("ADD", conf(host), **environment(box))
    assert (status, error["code"]) == (1, Code.INVALID_NETNS)
    ordinary = host.run / "file"
    ordinary.touch()
    status, error = host.cni("ADD", conf(host), **environment(ordinary))
    assert (status, error["code"]) == (1, Code.INVALID_NETNS)
    checked = {**conf(host), "prevResult": result}
    status, error = host.cni("CHECK", checked, **environment(box))
    assert (status, error["code"]) == (1, Code.UNKNOWN_CONTAINER)


@pytest.mark.root
def test_a_fixed_address(host: NsHost, box: Path) -> None:
    wanted = conf(host, runtimeConfig={"ips": ["10.128.0.77/24"]})
    _, result = host.cni("ADD", wanted, **environment(box))
    assert result["ips"][0]["address"] == "10.128.0.77/24"
    again = conf(host, args={"cni": {"ips": ["10.128.0.77"]}})
    status, error = host.cni("ADD", again, **environment(box, "c2", "eth1"))
    assert (status, error["code"]) == (1, Code.ADDRESS_IN_USE)


@pytest.mark.root
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (["ip", "addr", "del", "10.128.0.2/24", "dev", "eth0"], "lost the address 10.128.0.2/24"),
        (["ip", "link", "set", "eth0", "down"], "is down"),
        (["ip", "route", "del", "default"], "lost its route to 0.0.0.0/0 via 10.128.0.1"),
        (["ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"], "has the MAC"),
        (["ip", "link", "del", "eth0"], "eth0 is gone from the container"),
    ],
)
def test_check_finds_damage(host: NsHost, box: Path, damage: list[str], words: str) -> None:
    _, result = host.cni("ADD", conf(host), **environment(box))
    NsHost(box, "", host.state, host.run).shell(*damage)
    checked = {**conf(host), "prevResult": result}
    status, error = host.cni("CHECK", checked, **environment(box))
    assert (status, error["code"]) == (1, Code.CHECK_FAILED)
    assert words in error["msg"]


@pytest.mark.root
def test_check_finds_damage_on_the_host(host: NsHost, box: Path) -> None:
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    published = conf(host, runtimeConfig={"portMappings": ports})
    _, result = host.cni("ADD", published, **environment(box))
    checked = {**conf(host), "prevResult": result}

    def complaint(document: dict[str, Any]) -> str:
        status, error = host.cni("CHECK", document, **environment(box))
        assert (status, error["code"]) == (1, Code.CHECK_FAILED)
        return str(error["msg"])

    other = copy.deepcopy(checked)
    other["prevResult"]["ips"][0]["address"] = "10.128.0.99/24"
    assert "prevResult does not have the address 10.128.0.2/24" in complaint(other)
    host.shell("nft", "flush", "map", "inet", "orc_cni", "published")
    assert "port 8080/tcp of this host no longer leads to 10.128.0.2" in complaint(checked)
    host.shell("ip", "link", "set", result["interfaces"][1]["name"], "nomaster")
    assert "not a port of bridge orc0" in complaint(checked)


@pytest.mark.root
def test_status(host: NsHost, box: Path) -> None:
    assert host.cni("STATUS", conf(host)) == (0, None)
    small = conf(host, subnet="10.128.0.0/29")
    for number in range(5):
        fixed = {**small, "runtimeConfig": {"ips": [f"10.128.0.{2 + number}"]}}
        status, error = host.cni("ADD", fixed, **environment(box, f"c{number}", f"eth{number}"))
        assert status == 0, error
    status, error = host.cni("STATUS", small)
    assert (status, error["code"]) == (1, Code.NOT_AVAILABLE)
    status, error = host.cni("ADD", small, **environment(box, "c9", "eth9"))
    assert (status, error["code"]) == (1, Code.TRY_AGAIN_LATER)
    overlay = conf(host, vni=1, nodeAddress="203.0.113.9")
    status, error = host.cni("STATUS", overlay)
    assert (status, error["code"]) == (1, Code.NOT_AVAILABLE)
    assert "no interface of this host has the address 203.0.113.9" in error["msg"]
    host.shell("ip", "link", "set", "uplink", "down")
    status, error = host.cni("STATUS", conf(host, vni=1, nodeAddress=host.address))
    assert (status, error["code"]) == (1, Code.LIMITED_CONNECTIVITY)


@pytest.mark.root
def test_gc_removes_attachments_that_are_not_valid(host: NsHost, box: Path) -> None:
    ports = [{"hostPort": 8080, "containerPort": 80}]
    published = conf(host, runtimeConfig={"portMappings": ports})
    host.cni("ADD", conf(host), **environment(box, "keep", "eth0"))
    host.cni("ADD", published, **environment(box, "stale", "eth1"))
    valid = conf(host, **{"cni.dev/valid-attachments": [{"containerID": "keep", "ifname": "eth0"}]})
    assert host.cni("GC", valid) == (0, None)
    inside = {link["ifname"] for link in NsHost(box, "", host.state, host.run).ip("link")}
    assert inside == {"lo", "eth0"}
    assert "8080" not in host.shell("nft", "list", "map", "inet", "orc_cni", "published")
    assert host.cni("GC", valid) == (0, None), "twice is fine"


@pytest.mark.root
def test_published_ports_by_command(host: NsHost, box: Path) -> None:
    ports = [
        {"hostPort": 8080, "containerPort": 80},
        {"hostPort": 8081, "containerPort": 81, "hostIP": "127.0.0.1"},
        {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
    ]
    published = conf(host, runtimeConfig={"portMappings": ports})
    status, result = host.cni("ADD", published, **environment(box))
    assert status == 0, result
    assert reach(box, host.netns, host.address, 8080, 80) == host.address
    assert reach(box, host.netns, "127.0.0.1", 8081, 81) == "10.128.0.1"
    with pytest.raises(ConnectionRefusedError):
        reach(box, host.netns, host.address, 8081, 81)
    status, error = host.cni("ADD", published, **environment(box, "c2", "eth1"))
    assert (status, error["code"]) == (1, Code.PORT_IN_USE)
    assert "already published by container c1" in error["msg"]
    host.cni("DEL", conf(host), **environment(box))
    status, _ = host.cni("ADD", published, **environment(box, "c2", "eth1"))
    assert status == 0, "free again"


@pytest.mark.root
def test_containers_do_not_reach_the_hosts_loopback(host: NsHost, box: Path) -> None:
    host.cni("ADD", conf(host), **environment(box))
    container = NsHost(box, "", host.state, host.run)
    container.shell("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    container.shell("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
    container.shell("ip", "route", "add", "127.0.0.1/32", "via", "10.128.0.1", "dev", "eth0")
    with socket_in(host.netns) as listener, socket_in(box) as dialler:
        listener.bind(("127.0.0.1", 9000))
        listener.listen()
        dialler.settimeout(0.3)
        dialler.bind(("10.128.0.2", 0))
        with pytest.raises(TimeoutError):
            dialler.connect(("127.0.0.1", 9000))


@pytest.mark.root
def test_fifty_at_once_get_fifty_addresses(host: NsHost) -> None:
    boxes = [host.run / f"box{number}" for number in range(50)]
    for box in boxes:
        namespaces.ensure(box)

    def add(number: int) -> str:
        status, result = host.cni("ADD", conf(host), **environment(boxes[number], f"c{number}"))
        assert status == 0, result
        return str(result["ips"][0]["address"])

    with ThreadPoolExecutor(16) as pool:
        given = Counter(pool.map(add, range(50)))
    assert len(given) == 50
    for number in (0, 49):
        inside = NsHost(boxes[number], "", host.state, host.run).ip("addr", "show", "eth0")
        assert inside[0]["addr_info"][0]["local"] + "/24" in given


@pytest.mark.root
def test_a_foreign_device_of_the_bridges_name(host: NsHost, box: Path) -> None:
    host.shell("ip", "link", "add", "orc0", "type", "veth")
    status, error = host.cni("ADD", conf(host), **environment(box))
    assert (status, error["code"]) == (1, Code.INVALID_CONFIG)
    assert "orc0 exists and is not a bridge" in error["msg"]
