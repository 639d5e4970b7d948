# SPDX-License-Identifier: Apache-2.0
"""Managers that start with locked key files: see `lockedmanagers`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_managers_wait_for_the_unlock_key_and_serve_with_it(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("lockedmanagers.py"), tmp_path)
