# SPDX-License-Identifier: Apache-2.0
"""Whole clusters with real hosts, and a stand-in for `orc`: up, down, and what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from devtraces import STAND_IN, traces, until

from orchestrator.dev import devcommands
from orchestrator.dev.devcluster import DevCluster, list_clusters
from orchestrator.dev.devplan import DevError

pytestmark = pytest.mark.root


def quiet(_: str) -> None: ...


def pids(cluster: DevCluster) -> dict[str, int | None]:
    return {row.host: row.pid for row in cluster.status()}


def context(cluster: DevCluster) -> Path:
    return Path(os.environ["XDG_CONFIG_HOME"], "orc/contexts", f"{cluster.name}.json")


def test_up_creates_hosts_daemons_and_a_context(cluster: DevCluster) -> None:
    said: list[str] = []
    plan = cluster.up(1, 2, said.append)
    rows = cluster.status()
    assert [(r.host, r.role, r.address) for r in rows] == [
        ("manager1", "manager", str(plan.subnet[11])),
        ("node1", "node", str(plan.subnet[21])),
        ("node2", "node", str(plan.subnet[22])),
    ]
    assert {(r.state, r.daemon_state, r.restarts) for r in rows} == {("on", "running", 0)}
    assert f"in /orc-{cluster.name}-node1" in Path(rows[1].log).read_text()
    assert context(cluster).exists()
    assert said[-1] == "2 nodes ready"
    assert f"Docker's API at unix://{cluster.docker_socket}" in said
    until(cluster.docker_socket.is_socket)


def test_second_up_keeps_running_hosts_and_adds_nodes(cluster: DevCluster) -> None:
    cluster.up(1, 1, quiet)
    before = pids(cluster)
    assert cluster.up(1, 1, quiet).nodes == 1
    assert pids(cluster) == before
    assert cluster.up(1, 2, quiet).nodes == 2
    after = pids(cluster)
    assert after.keys() - before.keys() == {"node2"}
    assert before.items() <= after.items()
    assert cluster.up(1, 1, quiet).nodes == 2


def test_up_makes_its_context_current(
    make_cluster: Callable[[], DevCluster],
) -> None:
    one, other = make_cluster(), make_cluster()
    one.up(1, 1, quiet)
    other.up(1, 1, quiet)
    one.up(1, 1, quiet)
    assert (context(one).parent.parent / "current").read_text() == one.name


def test_down_removes_everything_and_is_idempotent(cluster: DevCluster) -> None:
    cluster.up(1, 1, quiet)
    assert traces(cluster.name)
    assert cluster.down()
    assert traces(cluster.name) == []
    assert not context(cluster).exists()
    assert not cluster.down()
    with pytest.raises(DevError, match="is not up: 'orc dev up' starts it"):
        cluster.status()
    with pytest.raises(DevError, match="is not up"):
        cluster.kill("node1")
    assert cluster.name not in list_clusters()


def test_clusters_are_isolated(make_cluster: Callable[[], DevCluster]) -> None:
    one, other = make_cluster(), make_cluster()
    assert not one.up(1, 1, quiet).subnet.overlaps(other.up(1, 1, quiet).subnet)
    before = pids(other)
    one.down()
    assert pids(other) == before


@pytest.mark.parametrize("after", [0.02, 0.08, 0.15, 0.3, 0.6])
def test_interrupted_up_is_completed_by_up_and_removed_by_down(
    cluster: DevCluster, after: float
) -> None:
    script = (
        "import sys; from orchestrator.dev.devcluster import DevCluster;"
        f"c = DevCluster({cluster.name!r}, orc=[sys.executable, '-I', '-S', {str(STAND_IN)!r}]);"
        "print('go', flush=True); c.up(1, 3, lambda _: None)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # The moments are arbitrary on purpose: wherever it dies, what follows must work.
        time.sleep(after)
        process.kill()
    if after in (0.08, 0.3):
        assert len(cluster.up(1, 3, quiet).hosts) == 4
        assert {row.daemon_state for row in cluster.status()} == {"running"}
    cluster.down()
    # An init that was only just begun finds its host gone, and ends by itself.
    until(lambda: not traces(cluster.name))


def test_down_with_a_broken_record_and_a_stopped_init(cluster: DevCluster) -> None:
    cluster.up(1, 1, quiet)
    pid = pids(cluster)["node1"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    (Path("/var/lib/orc-dev") / cluster.name / "cluster.json").write_text("{")
    with pytest.raises(DevError, match="'orc dev down' clears it away"):
        cluster.status()
    assert cluster.down()
    assert traces(cluster.name) == []


def test_killed_host_stays_off_until_started(cluster: DevCluster) -> None:
    cluster.up(1, 2, quiet)
    before = pids(cluster)
    cluster.kill("node1")
    node1 = cluster.status()[1]
    assert (node1.state, node1.pid, node1.daemon_state) == ("off", None, "stopped")
    cluster.start("node1")
    node1 = cluster.status()[1]
    assert (node1.state, node1.daemon_state) == ("on", "running")
    assert node1.pid != before["node1"]
    assert pids(cluster)["node2"] == before["node2"]


def test_stopped_daemon_stays_down_and_containers_keep_running(cluster: DevCluster) -> None:
    cluster.up(1, 1, quiet)
    node = cluster.host("node1")
    before = pids(cluster)
    cluster.stop("node1")
    assert cluster.status()[1].daemon_state == "stopped"
    assert pids(cluster) == before
    ps = subprocess.run(node.enter(["ps", "-eo", "args"]), capture_output=True, text=True)
    assert "/bin/sleep 3600" in ps.stdout.splitlines()
    cluster.start("node1")
    assert cluster.status()[1].daemon_state == "running"


def test_manager_that_does_not_start_is_reported_with_its_log(
    cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = DevCluster(cluster.name, orc=["/bin/true"])
    with pytest.raises(DevError, match=r"the manager does not answer \(.*manager\.log"):
        broken.up(1, 1, quiet, within=0.5)


class TestCommand:
    """What a user types. The stand-in takes the place of `orc` by a patch of the class."""

    @pytest.fixture(autouse=True)
    def _stand_in(self, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = cluster.name
        monkeypatch.setattr(devcommands, "DevCluster", lambda name: cluster)

    def orc(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(devcommands.dev, [*arguments, "--name", self.name])
        return result.exit_code, result.output

    def test_lifecycle_of_a_cluster(self) -> None:
        assert self.orc("up", "--nodes", "2")[0] == 0
        status, output = self.orc("status")
        assert status == 0
        lines = [line.split() for line in output.splitlines()]
        assert lines[0][:4] == ["HOST", "ROLE", "ADDRESS", "STATE"]
        assert [line[0] for line in lines[1:]] == ["manager1", "node1", "node2"]
        assert self.orc("partition", "node1")[0] == 0
        assert "on (partitioned)" in self.orc("status")[1]
        assert self.orc("heal")[0] == 0
        assert self.orc("kill", "node2")[0] == 0
        assert '"state": "off"' in self.orc("status", "--format", "json")[1]
        assert self.orc("start", "node2")[0] == 0
        assert self.orc("stop", "node2")[0] == 0
        assert "keeps its 2 nodes" in self.orc("up", "--nodes", "1")[1]
        assert self.orc("down") == (0, f"dev cluster {self.name!r} removed\n")
        status, text = self.orc("down")
        assert (status, text.partition(";")[0].strip()) == (
            0,
            f"dev cluster {self.name!r} is not up",
        )

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["up", "--managers", "8"], "Error: --managers 8 is out of range"),
            (["up", "--nodes", "0"], "Error: --nodes 0 is out of range"),
            (["status"], "is not up"),
            (["kill", "node1"], "is not up"),
            (["exec", "node1", "true"], "is not up"),
        ],
    )
    def test_refusals_are_one_line(self, arguments: list[str], says: str) -> None:
        if arguments[0] == "exec":
            arguments = ["exec", "--name", self.name, *arguments[1:]]
            result = CliRunner().invoke(devcommands.dev, arguments)
            status, output = result.exit_code, result.output
        else:
            status, output = self.orc(*arguments)
        assert status == 1
        assert says in output
        assert len(output.splitlines()) == 1

    def test_commands_require_root(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        status, output = self.orc("up")
        assert (status, len(output.splitlines())) == (1, 1)
        assert "run this command as root" in output
