# SPDX-License-Identifier: Apache-2.0
"""A cluster is restored on another host, or recovered: see `backuphosts`, `recoveryhosts`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_a_lost_cluster_is_restored_elsewhere(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("backuphosts.py"), tmp_path)


@pytest.mark.root
@pytest.mark.timeout(600)
def test_a_lost_quorum_is_recovered_by_the_survivor(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("recoveryhosts.py"), tmp_path)
