# SPDX-License-Identifier: Apache-2.0
"""The machines are up, and the cluster is formed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
sys.path[:0] = [str(REPOSITORY)]

from devcluster import Cluster  # noqa: E402

from tests.vm.testbed.hypervisor import FOLDER  # noqa: E402
from tests.vm.testbed.machines import ADDRESSES, Stopwatch, Testbed  # noqa: E402

CONTEXT = "/root/.config/orc/contexts/default.json"
LOG_LINES = "40"


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Stopwatch:
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    return Stopwatch(capture.global_and_fixture_disabled)


@pytest.fixture(scope="session")
def testbed(say: Stopwatch, request: pytest.FixtureRequest) -> Iterator[Testbed]:
    """Three machines, up and provisioned. Those that an earlier run left are taken as they are."""
    testbed = Testbed(Path(os.environ[FOLDER]))
    try:
        testbed.vagrant("up", within=3600)
        say("the machines are up and provisioned")
        yield testbed
    finally:
        if request.session.testsfailed:
            _show_logs(testbed, say)


@pytest.fixture(scope="session")
def cluster(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """This machine's `orc`, with the context that `orc cluster init` made."""
    config = tmp_path_factory.mktemp("config")
    contexts = config / "orc" / "contexts"
    contexts.mkdir(parents=True)
    (contexts / "default.json").write_text(testbed.on("manager1", "cat", CONTEXT).stdout)
    env = {
        **os.environ,
        "XDG_CONFIG_HOME": str(config),
        "HOME": str(config),
        "COLUMNS": "200",
        "ORC_CONTEXT": "default",
    }
    return Cluster("testbed", env)


def _show_logs(testbed: Testbed, say: Stopwatch) -> None:
    for machine in ADDRESSES:
        try:
            log = testbed.on(
                machine, "journalctl", "-q", "-n", LOG_LINES, "-u", "orc-manager", "-u",
                "orc-agent", "-o", "cat", ok=False,
            ).stdout  # fmt: skip
        except subprocess.TimeoutExpired:
            log = "does not answer"
        say(f"{machine}:\n{log}")
