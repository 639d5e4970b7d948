# SPDX-License-Identifier: Apache-2.0
"""The testbed's life: what one kernel cannot show, and what systemd and the package do.

Started as `python -m tests.vm testbed`. The tests are in an order: later ones break machines.
"""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from devcluster import Cluster, eventually

from tests.vm.testbed.machines import ADDRESSES, CLIENT, Stopwatch, Testbed

pytestmark = [pytest.mark.root, pytest.mark.timeout(3000)]

SOON, LATER = 300.0, 1200.0
"""Seconds: for what takes some on a host that is not emulated, and for what boots a machine."""

CHARTS = Path(__file__).parents[3] / "charts"
MONITORED = ("monitoring_prometheus", "monitoring_alertmanager")
"""Volumes of the monitoring chart."""

Task = dict[str, Any]

PAGE_SERVER = ("busybox", "httpd", "-f", "-p", "0.0.0.0:80", "-h", "/srv/page")
"""Says who asked and who answers; the box has the page."""


def lives(tasks: list[Task]) -> dict[str, tuple[int, str]]:
    """What changes if a container is restarted: task id → (pid, start)."""
    return {task["id"]: (task["pid"], task["started_at"]) for task in tasks}


def inside(testbed: Testbed, task: Task, *command: str, ok: bool = True) -> str:
    """Run a program of the image in a task's container; what it said."""
    pid = str(task["pid"])
    enter = ("nsenter", "-t", pid, "-n", "-m", "--", "/bin/busybox", *command)
    return testbed.on(task["node"], *enter, ok=ok).stdout


def group(testbed: Testbed, task: Task, name: str) -> str:
    """What a file of a task's cgroup says."""
    script = f"cat $(find /sys/fs/cgroup -type d -name {task['id']})/{name}"
    return testbed.on(task["node"], "sh", "-c", script).stdout


def asked(address: str, path: str = "/cgi-bin/index.cgi") -> list[str]:
    """Words of the page at ADDRESS[:PORT]: who asked, and which node answered. Empty: none."""
    argv = ["busybox", "wget", "-q", "-T", "20", "-O-", f"http://{address}{path}"]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()


def pinged(testbed: Testbed, one: Task, two: Task) -> tuple[float, float]:
    """Of 50 packets from a container to another: per cent that were lost, milliseconds of the
    fastest."""
    enter = ("nsenter", "-t", str(one["pid"]), "-n")
    ping = ("ping", "-c", "50", "-i", "0.2", "-q", two["addresses"]["red"])
    told = testbed.on(one["node"], *enter, *ping, ok=False).stdout
    lost, fastest = re.search(r"([\d.]+)% packet loss", told), re.search(r"= ([\d.]+)/", told)
    assert lost, told
    assert fastest, told
    return float(lost[1]), float(fastest[1])


def create(cluster: Cluster, name: str, *flags: str, runs: Sequence[str] = PAGE_SERVER) -> None:
    """Make a service of programs that the machines have."""
    grace = ("--stop-grace-period", "100ms")
    argv = ("service", "create", "-d", "--name", name, *grace, *flags, "--rootfs", "host", *runs)
    cluster.orc(*argv, within=SOON)


def on(task: Task) -> tuple[str, str]:
    return task["node"], task["id"]


@pytest.fixture(scope="module")
def page(cluster: Cluster) -> list[Task]:
    """A service with a task on each machine and a published port; its tasks as they were first."""
    cluster.orc("network", "create", "red", within=SOON)
    # An agent that hangs is silent for longer than the manager has patience with its node.
    keep = ("--on-disconnect", "keep")
    create(cluster, "page", "--mode", "global", "--network", "red", "-p", "8080:80", *keep)
    return sorted(cluster.await_running("page", 3, within=LATER), key=on)


def test_the_nodes_are_ready(cluster: Cluster) -> None:
    cluster.await_ready(*ADDRESSES, within=LATER)
    assert {name: node["address"] for name, node in cluster.nodes().items()} == ADDRESSES
    for name in ADDRESSES:
        # The services here run programs of the machines.
        cluster.orc("node", "update", "--allow", "host-files", name, within=SOON)
        (node,) = cluster.json("node", "inspect", name)
        assert node["cgroup"] == "v2"


def test_package_enables_its_units(testbed: Testbed, cluster: Cluster) -> None:
    units = {name: ["orc-agent"] for name in ADDRESSES}
    units["manager1"].append("orc-manager")
    for machine, names in units.items():
        for unit in names:
            assert testbed.shows(machine, unit, "ActiveState") == "active"
            assert testbed.shows(machine, unit, "UnitFileState") == "enabled"
            assert testbed.shows(machine, unit, "NRestarts") == "0"
            assert testbed.shows(machine, unit, "WatchdogUSec") == "1min"
        assert testbed.on(machine, "orc", "system", "check").returncode == 0
    # What the operator had written stayed.
    assert cluster.json("cluster", "info")["node_timeout"] == 60
    # Whoever logs in uses the cluster.
    told = testbed.on("manager1", "-u", "vagrant", "-i", "orc", "node", "ls", "-q").stdout
    assert len(told.split()) == 3


def test_a_service_over_all_three(testbed: Testbed, page: list[Task]) -> None:
    assert [task["node"] for task in page] == sorted(ADDRESSES)
    kernels = {testbed.boot_id(task["node"]) for task in page}
    assert len(kernels) == 3


def test_from_each_container_to_each(testbed: Testbed, page: list[Task]) -> None:
    for asker in page:
        for other in page:
            url = f"http://{other['addresses']['red']}/cgi-bin/index.cgi"
            told = inside(testbed, asker, "wget", "-q", "-T", "20", "-O-", url).split()
            assert told == [asker["addresses"]["red"], other["node"]]


def test_names_and_the_address_of_the_service(
    testbed: Testbed, cluster: Cluster, page: list[Task]
) -> None:
    (network,) = cluster.json("network", "inspect", "red")
    (vip,) = [service["vip"] for service in network["services"] if service["name"] == "page"]
    for asker in page:
        assert vip in inside(testbed, asker, "nslookup", "page", ok=False)
        every = inside(testbed, asker, "nslookup", "tasks.page", ok=False)
        assert all(task["addresses"]["red"] in every for task in page)

    seen: set[str] = set()

    def each_answered() -> bool:
        url = "http://page/cgi-bin/index.cgi"
        seen.add(inside(testbed, page[0], "wget", "-q", "-T", "20", "-O-", url).split()[1])
        return seen == set(ADDRESSES)

    eventually(each_answered, within=SOON)


def test_any_node_answers_and_the_client_keeps_its_address(cluster: Cluster) -> None:
    create(cluster, "one", "--constraint", "node.hostname==worker1", "-p", "8081:80")
    cluster.await_running("one", 1, within=SOON)
    for address in ADDRESSES.values():
        eventually(lambda: asked(f"{address}:8081") == [CLIENT, "worker1"], within=SOON)  # noqa: B023
    cluster.orc("service", "rm", "-d", "one", within=SOON)


def test_shares_and_limits_are_the_kernels(testbed: Testbed, cluster: Cluster) -> None:
    there = ("--constraint", "node.hostname==worker2")
    loop = ("busybox", "sh", "-c", "while :; do :; done")
    weights = {"light": "512", "heavy": "1024"}
    for name, shares in weights.items():
        create(cluster, name, "--cpu-shares", shares, "--cpuset-cpus", "0", *there, runs=loop)
    create(cluster, "capped", "--limit-cpu", "0.125", "--limit-memory", "48m", *there, runs=loop)
    (light,), (heavy,) = (cluster.await_running(name, 1, within=SOON) for name in weights)
    (capped,) = cluster.await_running("capped", 1, within=SOON)
    assert group(testbed, capped, "cpu.max").split() == ["12500", "100000"]
    assert group(testbed, capped, "memory.max").strip() == str(48 << 20)

    def used(task: Task) -> int:
        (line,) = [x for x in group(testbed, task, "cpu.stat").splitlines() if "usage_usec" in x]
        return int(line.split()[1])

    before = used(light), used(heavy)

    def shared() -> bool:
        little, much = used(light) - before[0], used(heavy) - before[1]
        assert little > 5_000_000
        assert 1.6 < much / little < 2.5, (little, much)
        return True

    eventually(shared, within=SOON, every=5)
    assert "nr_throttled 0\n" not in group(testbed, capped, "cpu.stat")
    cluster.orc("service", "rm", "-d", "light", "heavy", "capped", within=SOON)
    greedy = ("busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M")
    once = ("--limit-memory", "32m", "--restart-condition", "none")
    create(cluster, "eater", *once, *there, runs=greedy)
    eventually(lambda: [t["state"] for t in cluster.tasks("eater")] == ["failed"], within=SOON)
    (task,) = cluster.tasks("eater")
    assert task["error"] == "out of memory (limit 32MiB)"
    cluster.orc("service", "rm", "-d", "eater", within=SOON)


def test_an_encrypted_network(testbed: Testbed, cluster: Cluster) -> None:
    made = cluster.orc("network", "create", "--opt", "encrypted", "secret", within=SOON)
    assert made.stderr == "", "every node can encrypt"
    create(cluster, "spy", "--mode", "global", "--network", "secret")
    one, two, _ = sorted(cluster.await_running("spy", 3, within=SOON), key=on)
    url = f"http://{two['addresses']['secret']}/cgi-bin/index.cgi"
    told = lambda: inside(testbed, one, "wget", "-q", "-T", "9", "-O-", url, ok=False)  # noqa: E731
    eventually(lambda: told().split() == [one["addresses"]["secret"], two["node"]], within=SOON)
    links = testbed.on(one["node"], "ip", "-j", "link", "show", "type", "wireguard").stdout
    assert [link["ifname"] for link in json.loads(links) if link] == ["orcwg0"]
    cluster.orc("service", "rm", "-d", "spy", within=SOON)
    eventually(
        lambda: cluster.orc("network", "rm", "secret", ok=False).returncode == 0, within=SOON
    )


def test_an_image_is_built_on_a_machine_and_runs_on_all(cluster: Cluster) -> None:
    subprocess.run([CHARTS / "hello/prepare"], check=True)
    cluster.orc("build", "-t", "hello:1", str(CHARTS / "hello"), within=LATER)
    flags = ("--name", "built", "--mode", "global", "-p", "8082:80")
    cluster.orc("service", "create", "-d", *flags, "hello:1", within=SOON)
    cluster.await_running("built", 3, within=SOON)
    for address in ADDRESSES.values():
        eventually(lambda: asked(f"{address}:8082", "/"), within=SOON)  # noqa: B023
    cluster.orc("service", "rm", "-d", "built", within=SOON)


def test_the_monitoring_chart_sees_all_machines(cluster: Cluster) -> None:
    subprocess.run([CHARTS / "monitoring/prepare"], check=True)
    files = [f"-c{CHARTS / 'monitoring' / name}" for name in ("compose.yaml", "debian.yaml")]
    cluster.orc("stack", "deploy", "-d", *files, "monitoring", within=LATER)
    cluster.await_running("monitoring_prometheus", 1, within=LATER)

    def answer(query: str) -> list[tuple[str, float]]:
        url = f"http://{ADDRESSES['worker1']}:9090/api/v1/query?query={quote(query)}"
        with urllib.request.urlopen(url, timeout=20) as told:
            result = json.load(told)["data"]["result"]
        return sorted((each["metric"].get("node", ""), float(each["value"][1])) for each in result)

    def all_seen() -> bool:
        with suppress(OSError):  # until it listens
            assert answer('up{job="orc-agents"}') == [(name, 1.0) for name in sorted(ADDRESSES)]
            assert answer('sum(orc_nodes{state="ready"})') == [("", 3.0)]
            return True
        return False

    eventually(all_seen, within=SOON, every=5)
    cluster.orc("stack", "rm", "monitoring", within=SOON)
    cluster.orc("volume", "rm", *MONITORED, within=SOON)


def test_delay_and_loss_between_machines(
    testbed: Testbed, cluster: Cluster, page: list[Task]
) -> None:
    """The kernel's netem; what the overlay carries has them, and loses nothing else."""
    one, two = (task for task in page if task["node"].startswith("worker"))
    netem = ("dev", "eth1", "root", "netem", "delay", "100ms", "loss", "10%")
    testbed.on("worker1", "tc", "qdisc", "add", *netem)
    try:
        lost, fastest = pinged(testbed, one, two)
        assert 0 < lost < 50
        assert fastest >= 100
        url = f"http://{two['addresses']['red']}/cgi-bin/index.cgi"
        assert inside(testbed, one, "wget", "-q", "-T", "60", "-O-", url).split()[1] == "worker2"
        cluster.await_ready(within=SOON)
    finally:
        testbed.on("worker1", "tc", "qdisc", "del", "dev", "eth1", "root")
    assert pinged(testbed, one, two)[0] == 0


def test_networkd_leaves_devices_of_orc_alone(
    testbed: Testbed, cluster: Cluster, page: list[Task]
) -> None:
    """The machines have a file of networkd's that matches every interface."""
    for machine in ADDRESSES:
        rules = testbed.on(machine, "ip", "rule").stdout
        routes = testbed.on(machine, "ip", "route").stdout
        testbed.on(machine, "systemctl", "restart", "systemd-networkd")
        assert testbed.on(machine, "ip", "rule").stdout == rules
        assert set(testbed.on(machine, "ip", "route").stdout.splitlines()) >= set(
            line for line in routes.splitlines() if "orc" in line
        )
        links = testbed.on(machine, "networkctl", "list", "--no-legend", "--no-pager").stdout
        ours = [line.split() for line in links.splitlines() if line.split()[1].startswith("orc")]
        assert ours
        assert {words[-1] for words in ours} == {"unmanaged"}


def test_hung_daemon_is_restarted(testbed: Testbed, cluster: Cluster, page: list[Task]) -> None:
    pid = testbed.shows("worker1", "orc-agent", "MainPID")
    testbed.on("worker1", "kill", "-STOP", pid)
    eventually(
        lambda: testbed.shows("worker1", "orc-agent", "NRestarts") == "1", within=SOON, every=5
    )
    eventually(
        lambda: testbed.shows("worker1", "orc-agent", "ActiveState") == "active",
        within=SOON,
        every=2,
    )
    assert testbed.shows("worker1", "orc-agent", "MainPID") != pid
    cluster.await_ready(within=SOON)
    assert lives(cluster.await_running("page", 3, within=SOON)) == lives(page)


def test_newer_packages_replace_these_in_place(
    testbed: Testbed, cluster: Cluster, page: list[Task]
) -> None:
    newer = testbed.newer_packages()
    for machine, names in (("manager1", newer.keys()), ("worker1", newer.keys() - {"orc-manager"})):
        before = testbed.shows(machine, "orc-agent", "MainPID")
        for name in names:
            testbed.send(machine, newer[name], f"/tmp/{name}.deb")
        files = [f"/tmp/{name}.deb" for name in names]
        testbed.on(machine, "apt-get", "-qy", "install", *files, within=LATER)
        version = testbed.on(machine, "dpkg-query", "-W", "-f", "${Version}", "orc").stdout
        assert version.endswith("+newer")
        assert testbed.shows(machine, "orc-agent", "ActiveState") == "active"
        assert testbed.shows(machine, "orc-agent", "MainPID") != before
    assert testbed.shows("manager1", "orc-manager", "ActiveState") == "active"
    cluster.await_ready(within=SOON)
    assert lives(cluster.await_running("page", 3, within=SOON)) == lives(page)


def test_a_machine_without_power_is_replaced_and_comes_back(
    testbed: Testbed, cluster: Cluster, say: Stopwatch
) -> None:
    create(cluster, "moves", "--replicas", "4")
    tasks = cluster.await_running("moves", 4, within=SOON)
    lost = {task["id"] for task in tasks if task["node"] == "worker2"}
    assert lost
    testbed.power_off("worker2")

    def elsewhere() -> bool:
        now = cluster.running("moves")
        return len(now) == 4 and all(task["node"] != "worker2" for task in now)

    eventually(elsewhere, within=LATER, every=1)
    say("what ran on worker2 runs elsewhere")
    assert cluster.nodes()["worker2"]["state"] == "down"
    testbed.power_on("worker2")
    cluster.await_ready(within=LATER)
    say("worker2 is back")
    cluster.await_running("page", 3, within=LATER)
    cluster.orc("service", "rm", "-d", "moves", within=SOON)


def _rebooted(testbed: Testbed, machine: str) -> Callable[[], bool]:
    before = testbed.boot_id(machine)
    testbed.on(machine, "systemctl", "reboot", ok=False)
    return lambda: testbed.boot_id(machine) not in ("", before)


def test_a_rebooted_worker_has_its_containers_back(
    testbed: Testbed, cluster: Cluster, say: Stopwatch
) -> None:
    before = {task["node"]: task for task in cluster.await_running("page", 3, within=SOON)}
    eventually(_rebooted(testbed, "worker1"), within=LATER, every=3)
    say("worker1 has booted")

    def back() -> bool:
        now = {task["node"]: task for task in cluster.running("page")}
        return len(now) == 3 and now["worker1"]["started_at"] > before["worker1"]["started_at"]

    eventually(back, within=LATER, every=2)
    say("its container is back")
    eventually(lambda: asked(f"{ADDRESSES['worker1']}:8080")[:1] == [CLIENT], within=SOON, every=1)


def test_a_rebooted_manager_has_lost_nothing(
    testbed: Testbed, cluster: Cluster, say: Stopwatch
) -> None:
    known = ("node", "service", "network", "volume", "secret", "images")
    names = lambda what: {  # noqa: E731
        each.get("name") or each.get("hostname") or each.get("id") for each in cluster.json(*what)
    }
    listings = [(each, "ls") if each != "images" else (each,) for each in known]
    cluster.orc("volume", "create", "kept", within=SOON)
    before = [names(each) for each in listings]
    tasks = {task["node"]: task for task in cluster.await_running("page", 3, within=SOON)}
    eventually(_rebooted(testbed, "manager1"), within=LATER, every=3)
    say("manager1 has booted")
    eventually(lambda: cluster.orc("node", "ls", ok=False).returncode == 0, within=LATER, every=2)
    cluster.await_ready(within=LATER)
    say("its manager serves, and the nodes are ready")
    assert [names(each) for each in listings] == before
    now = {task["node"]: task for task in cluster.await_running("page", 3, within=LATER)}
    # Meanwhile the workers' containers ran on.
    for worker in ("worker1", "worker2"):
        assert lives([now[worker]]) == lives([tasks[worker]])
