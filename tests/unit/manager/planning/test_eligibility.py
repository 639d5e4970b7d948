"""Placement rules: what they mean and how a bad one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import node

from orchestrator.manager.planning.eligibility import satisfies, satisfies_rule
from orchestrator.model.constraints import RuleError, check_agreement, parse_rule

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


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("zone", "is not of the form KEY==VALUE"),
        ("node.zone==a", "asks for 'node.zone'; known are node.id"),
        ("node.labels.==a", "asks for 'node.labels.'"),
        ("==a", "is not of the form"),
        ("node.id==", "is not of the form"),
        ("node.id in a,,b", "has an empty value"),
        ("service==db", "asks for 'service'"),
    ],
)
def test_bad_rules_say_what_is_wrong(rule: str, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        parse_rule(rule)


@pytest.mark.parametrize(
    "rules",
    [
        ("node.labels.zone==a", "node.labels.zone==b"),
        ("node.labels.zone==a", "node.labels.zone!=a"),
        ("node.labels.zone in a,b", "node.labels.zone in c,d"),
        ("node.labels.zone!=a", "node.labels.zone in a,b", "node.labels.zone!=b"),
    ],
)
def test_rules_that_no_node_can_ever_meet_are_refused(rules: tuple[str, ...]) -> None:
    with pytest.raises(RuleError, match="contradict each other: no node can ever meet both"):
        check_agreement(rules)


def test_rules_that_narrow_each_other_are_fine() -> None:
    check_agreement(("node.labels.zone in a,b", "node.labels.zone!=a", "node.labels.disk!=ssd"))
