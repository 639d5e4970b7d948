"""Placement rules: what they mean and how a bad one is refused."""

from __future__ import annotations

import pytest
from builders import node

from orchestrator.manager.planning.constraints import ConstraintError, meets, parse_constraint

HOST = node("n1", labels={"zone": "a"}, role="worker")


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
    ],
)
def test_rules(rule: str, met: bool) -> None:
    assert parse_constraint(rule).met_by(HOST) is met


def test_all_rules_must_hold() -> None:
    assert meets(HOST, ("node.id==n1", "node.labels.zone==a"))
    assert not meets(HOST, ("node.id==n1", "node.labels.zone==b"))
    assert not meets(HOST, ("nonsense",))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("zone", "neither == nor !="),
        ("node.zone==a", "nodes have no node.zone"),
        ("node.labels.==a", "nodes have no node.labels."),
        ("==a", "nodes have no empty name"),
        ("node.id==", "has no value"),
    ],
)
def test_bad_rules_say_what_is_wrong(rule: str, words: str) -> None:
    with pytest.raises(ConstraintError, match=words):
        parse_constraint(rule)
