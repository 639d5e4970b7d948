# SPDX-License-Identifier: Apache-2.0
"""Managers that join, are cut off, are removed, move and leave: see `managerjoins`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_managers_join_move_and_leave(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("managerjoins.py"), tmp_path)
