# SPDX-License-Identifier: Apache-2.0
"""Seeded runs of real terms over a store with faults; see `simterm`."""

from __future__ import annotations

import pytest
from simterm import Kind, live_of_terms


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
@pytest.mark.parametrize("seed", range(8))
def test_faults_stay_where_they_are(kind: Kind, seed: int) -> None:
    live_of_terms(seed, kind)
