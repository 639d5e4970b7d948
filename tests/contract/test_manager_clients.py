# SPDX-License-Identifier: Apache-2.0
"""Commands that go on when the manager in use is killed: see `managerclients`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_commands_go_on_at_another_manager(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("managerclients.py"), tmp_path)
