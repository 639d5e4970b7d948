# SPDX-License-Identifier: Apache-2.0
"""Several managers on an external etcd: `externaletcd`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.enclosure import run_enclosed


@pytest.mark.root
@pytest.mark.timeout(600)
def test_managers_on_an_external_etcd_are_stateless(tmp_path: Path) -> None:
    run_enclosed(Path(__file__).with_name("externaletcd.py"), tmp_path)
