# SPDX-License-Identifier: Apache-2.0
"""Rotation of the CA of managers with etcd members, also when they lose power: `carotation`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(900)
def test_ca_rotation_survives_failures(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("carotation.py"), tmp_path)
