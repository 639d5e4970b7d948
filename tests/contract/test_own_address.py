# SPDX-License-Identifier: Apache-2.0
"""The only manager's host gets another address: see `ownaddress`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_the_only_manager_follows_the_address_of_its_host(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("ownaddress.py"), tmp_path)
