# SPDX-License-Identifier: Apache-2.0
"""What a container's processes do not inherit from the agent, however that was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import oddagent
import pytest
from runtimehost import remove_leftovers

from orchestrator.agent.runtime.spec.node_facts import own_capabilities

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=[("-5", "realtime"), ("7", "idle")], ids=["up", "down"])
def found(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, dict[str, Any]]:
    """What processes have of an agent that has a higher or lower priority than others."""
    remove_leftovers()
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, oddagent.__file__, str(tmp_path_factory.mktemp("node")), *request.param],
        env=os.environ | {"PYTHONPATH": f"{here}:{here.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("which", ["first", "executed"])
def test_containers_inherit_nothing_from_the_agent(
    found: dict[str, dict[str, Any]], which: str
) -> None:
    process = found[which]
    raisable = "CAP_SYS_RESOURCE" in own_capabilities()
    assert process["oom"] == 1000
    assert (process["nice"], process["policy"]) == (0, os.SCHED_OTHER)
    assert process["default io"]
    assert process["umask"] == "0022"
    assert (process["blocked"], process["ignored"]) == (0, 0)
    assert process["descriptors"] == [0, 1, 2]
    assert oddagent.NAME not in process["environment"]
    assert process["own cgroup"]
    assert process["nofile"] == ["1024", "524288" if raisable else str(oddagent.NOFILE)]
    assert process["core"] == ["unlimited", "unlimited"]
    assert process["stack"] == [str(8 << 20), "unlimited"]


def test_monitor_inherits_only_needed_descriptors(found: dict[str, dict[str, Any]]) -> None:
    """It outlives what a container does, where the agent may protect it, and has nothing of the
    agent's environment."""
    monitor = found["monitor"]
    assert oddagent.NAME not in monitor["environment"]
    assert (monitor["nice"], monitor["policy"]) == (0, os.SCHED_OTHER)
    assert monitor["default io"]
    # It protects itself, as far as this kernel lets it.
    raisable = "CAP_SYS_RESOURCE" in own_capabilities()
    assert monitor["oom"] == (-1000 if raisable else 400)
