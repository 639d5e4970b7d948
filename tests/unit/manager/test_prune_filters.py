# SPDX-License-Identifier: Apache-2.0
"""Objects that prune filters select: a table."""

from __future__ import annotations

import pytest

from orchestrator.manager.object_lookup import matches_prune_filters
from orchestrator.pb import images_pb2


@pytest.mark.parametrize(
    ("labels", "without", "until", "held"),
    [
        ({}, [], 0.0, True),
        ({"tier": ""}, [], 0.0, True),
        ({"tier": "db"}, [], 0.0, True),
        ({"tier": "web"}, [], 0.0, False),
        ({"other": ""}, [], 0.0, False),
        ({}, ["tier"], 0.0, False),
        ({}, ["tier=web"], 0.0, True),
        ({}, ["tier=db"], 0.0, False),
        ({}, [], 101.0, True),
        ({}, [], 100.0, False),
        ({"tier": ""}, [], 50.0, False),
    ],
)
def test_prune_filters_select_objects(
    labels: dict[str, str], without: list[str], until: float, held: bool
) -> None:
    request = images_pb2.PruneImagesRequest(labels=labels, without=without, until=until)
    assert matches_prune_filters({"tier": "db"}, 100.0, request) is held
