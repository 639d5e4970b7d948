# SPDX-License-Identifier: Apache-2.0
"""The managers' etcd when its database is full, fragmented or short of members: `storeupkeep`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_a_full_store_has_a_way_out(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("storeupkeep.py"), tmp_path)
