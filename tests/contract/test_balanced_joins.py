# SPDX-License-Identifier: Apache-2.0
"""Hosts join through a load balancer in front of the managers: see `balancedjoins`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_hosts_join_through_a_load_balancer(tmp_path: Path) -> None:
    program = Path(__file__).with_name("balancedjoins.py")
    run_enclosed(program, tmp_path, namespaces=("--net", "--uts"))
