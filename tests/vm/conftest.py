# SPDX-License-Identifier: Apache-2.0
"""A dev cluster inside a virtual machine, where all takes many times as long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "e2e"))

from devcluster import ORC, Cluster, eventually  # noqa: E402

HELLO = TESTS.parent / "charts" / "hello"


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """One manager and two nodes, up."""
    config = str(tmp_path_factory.mktemp("config"))
    env = {**os.environ, "XDG_CONFIG_HOME": config, "HOME": config, "COLUMNS": "200"}
    cluster = Cluster("vm", env)
    try:
        eventually(lambda: _up(cluster), within=600)
        _be_patient(cluster)
        yield cluster
    finally:
        if request.session.testsfailed:
            _show_logs(cluster, request)
        cluster.orc("dev", "down", "--name", cluster.name, within=300)


def _show_logs(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """Print what the daemons said last: nothing of it outlives the virtual machine."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        for log in sorted(Path("/var/lib/orc-dev", cluster.name).glob("*/log/*.log")):
            print(f"\n{log}:", *log.read_text().splitlines()[-40:], sep="\n  ")


def _up(cluster: Cluster) -> bool:
    """Bring up what is not yet. It may give up after a minute, and goes on when told again."""
    up = cluster.orc("dev", "up", "--name", cluster.name, "--nodes", "2", ok=False, within=300)
    assert up.returncode == 0, up.stderr
    return True


def _be_patient(cluster: Cluster) -> None:
    """Let no node be down only because an agent takes half a minute to start.

    A manager that is told so once stores it for all later ones.
    """
    data = Path("/var/lib/orc-dev", cluster.name, "manager1", "data")
    manager = ["orc", "manager", "--data-dir", str(data), "--node-timeout", "180"]
    cluster.stop("manager1")
    with subprocess.Popen(
        [ORC, "dev", "exec", "--name", cluster.name, "manager1", *manager], env=cluster.env
    ):
        eventually(lambda: _node_timeout(cluster) == 180.0, within=120, every=1)
        cluster.exec("manager1", "pkill", "-TERM", "-f", "--", "--node-timeout 180")
    cluster.start("manager1")
    cluster.await_ready(within=180)


def _node_timeout(cluster: Cluster) -> float | None:
    """Seconds; None while no manager answers."""
    told = cluster.orc("cluster", "info", "--format", "json", ok=False)
    return float(json.loads(told.stdout)["node_timeout"]) if told.returncode == 0 else None


@pytest.fixture(scope="module")
def hello(cluster: Cluster) -> str:
    """The demo's web image, built in the cluster; its name."""
    subprocess.run([HELLO / "prepare"], check=True)

    def built() -> bool:
        done = cluster.orc("build", "-t", "hello:1", str(HELLO), ok=False, within=300)
        # Peers give up a connection after 4 s of silence, and a starved emulator may be silent for
        # longer: that alone is worth another attempt.
        if done.returncode != 0 and " broke" not in done.stderr:
            pytest.fail(done.stderr)
        return done.returncode == 0

    eventually(built, within=600)
    return "hello:1"
