# SPDX-License-Identifier: Apache-2.0
"""The agent's process on a disk that a container fills: see `fullnode.py`, which is the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
def test_agent_and_containers_survive_a_full_disk(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("fullnode.py"), tmp_path)
