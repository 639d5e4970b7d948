# SPDX-License-Identifier: Apache-2.0
"""When a manager counts as removed."""

from __future__ import annotations

import pytest

from orchestrator.manager.cluster.registration import was_removed
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.administration.access import Revocation
from orchestrator.model.administration.managers import Manager
from orchestrator.model.objects import Object

OBJECT = Manager(id="m1")
REVOKED = Revocation(id="manager.m1", role="manager", name="m1")


@pytest.mark.parametrize(
    ("objects", "removed"),
    [
        ((OBJECT,), False),
        ((), False),  # it cannot be decoded
        ((OBJECT, REVOKED), False),
        ((REVOKED,), True),
        ((Revocation(id="manager.m2"),), False),
    ],
)
def test_removed_is_without_object_and_revoked(objects: tuple[Object, ...], removed: bool) -> None:
    assert was_removed(ClusterView.of(objects), "m1") is removed
