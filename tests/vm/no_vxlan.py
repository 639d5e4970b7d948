# SPDX-License-Identifier: Apache-2.0
"""What a user is told by a cluster whose kernels have no VXLAN.

Started as `pytest tests/vm/no_vxlan.py`, inside a virtual machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster import Cluster, eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(1500)]

LINE = "this kernel has no VXLAN: load the module vxlan, or use a kernel built with CONFIG_VXLAN"


def test_task_and_log_have_the_reason_in_one_line(cluster: Cluster, hello: str) -> None:
    cluster.orc(
        "service", "create", "-d", "--name", "web", "--restart-condition", "none", hello
    )  # fmt: skip
    ended = ("failed", "rejected")
    eventually(
        lambda: [task["state"] in ended for task in cluster.tasks("web")] == [True],
        within=120,
        every=1,
    )
    (task,) = cluster.tasks("web")
    assert task["error"] == LINE
    assert LINE in cluster.orc("service", "ps", "web").stdout
    log = Path(cluster.status()[task["node"]]["log"]).read_text()
    # At each pass it is found anew, and said once.
    assert sum(LINE in line for line in log.splitlines() if "cannot be applied" in line) == 1
    assert "Traceback" not in log


def test_the_waiting_command_shows_the_error(cluster: Cluster, hello: str) -> None:
    done = cluster.orc(
        "service", "create", "--name", "waited", "--restart-condition", "none", hello,
        ok=False, within=180,
    )  # fmt: skip
    assert done.returncode != 0
    assert LINE in done.stderr
    assert "Traceback" not in done.stderr
