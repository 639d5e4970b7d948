# SPDX-License-Identifier: Apache-2.0
"""The manager that answers a joining one is killed at each step: see `answeringmanager`."""

from __future__ import annotations

from pathlib import Path

import pytest
from answeringmanager import STEPS, UNDONE

from tests.enclosure import run_enclosed

PROGRAM = Path(__file__).with_name("answeringmanager.py")


@pytest.mark.root
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", STEPS)
def test_a_join_whose_manager_is_killed_is_repeated(step: str, tmp_path: Path) -> None:
    run_enclosed(PROGRAM, tmp_path, step, "repeated")


@pytest.mark.root
@pytest.mark.timeout(900)
@pytest.mark.parametrize("step", UNDONE)
def test_a_join_whose_manager_is_killed_is_undone(step: str, tmp_path: Path) -> None:
    run_enclosed(PROGRAM, tmp_path, step, "undone")
