# SPDX-License-Identifier: Apache-2.0
"""Fields of a newer version survive every write of this one: a simulated cluster in which each
object has some, at several levels, lives through faults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from simcluster import SimCluster
from simseeds import live_through

from orchestrator.manager.planning.plan import Change
from orchestrator.model.convert import decode, encode
from orchestrator.model.services import Service
from orchestrator.model.states import Owner
from orchestrator.model.tasks import Task

NEWER = b"\x92\xbf\x7a\x05newer"
"""Field 250482, of bytes: no message has it."""


class UpgradingCluster(SimCluster):
    """As if a manager of a newer version had written every object first."""

    def write(self, *changes: Change, owner: Owner = Owner.MANAGER) -> None:
        for change in changes:
            self._check(change)
        super().write(*(_by_newer(change) for change in changes), owner=owner)

    def _check(self, change: Change) -> None:
        before, after = change.before, change.after
        if after is None:
            return
        if before is not None:
            assert after.unknown_fields == before.unknown_fields, f"lost in a change of {after}"
        if isinstance(after, Service) and before is not None:
            assert after.spec.unknown_fields == NEWER, f"lost in the spec of {after}"
            assert after.spec.task.unknown_fields == NEWER
        if isinstance(after, Task):
            # Also that of a new task, which comes from its service.
            assert after.spec.unknown_fields == NEWER, f"lost in the spec of {after}"
            assert after.spec.container.unknown_fields == NEWER
        assert decode(type(after), encode(after), after.revision) == after


def _by_newer(change: Change) -> Change:
    """The change with fields of a newer version in an object that it creates."""
    created: Any = change.after
    if change.before is not None or created is None:
        return change
    created = replace(created, unknown_fields=NEWER)
    if isinstance(created, Service):
        task = created.spec.task
        container = replace(task.container, unknown_fields=NEWER)
        task = replace(task, container=container, unknown_fields=NEWER)
        spec = replace(created.spec, task=task, unknown_fields=NEWER)
        created = replace(created, spec=spec)
    return Change(None, created)


@pytest.mark.parametrize("seed", range(8))
def test_fields_of_a_newer_version_survive(seed: int) -> None:
    live_through(UpgradingCluster(seed), seed)
