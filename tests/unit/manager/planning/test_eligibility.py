# SPDX-License-Identifier: Apache-2.0
"""Which nodes satisfy constraints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import node

from orchestrator.manager.planning.eligibility import satisfies, satisfies_rule
from orchestrator.model.scheduling.constraints import parse_rule

_PLAIN = node("n1", labels={"zone": "a"}, role="worker")
HOST = replace(_PLAIN, description=replace(_PLAIN.description, labels={"disk": "ssd", "zone": "b"}))


@pytest.mark.parametrize(
    ("rule", "met"),
    [
        ("node.id==n1", True),
        ("node.id!=n1", False),
        ("node.hostname == host-n1", True),
        ("node.role==manager", False),
        ("node.role!=manager", True),
        ("node.labels.zone==a", True),
        ("node.labels.zone==b", False),
        ("node.labels.disk==ssd", False),
        ("node.labels.disk!=ssd", True),
        ("node.platform.os==linux", True),
        ("node.platform.arch!=x86_64", False),
        ("node.labels.zone in a,b", True),
        ("node.labels.zone in b, c", False),
        ("node.labels.disk in ssd,nvme", False),
        # What the agent reports is apart from what operators set.
        ("engine.labels.disk==ssd", True),
        ("engine.labels.zone==b", True),
        ("engine.labels.zone==a", False),
        ("engine.labels.none!=x", True),
    ],
)
def test_rules(rule: str, met: bool) -> None:
    assert satisfies_rule(parse_rule(rule), HOST) is met


def test_all_rules_must_hold() -> None:
    assert satisfies(HOST, ("node.id==n1", "node.labels.zone==a"))
    assert not satisfies(HOST, ("node.id==n1", "node.labels.zone==b"))
    assert not satisfies(HOST, ("nonsense",))
