# SPDX-License-Identifier: Apache-2.0
"""Rules on nodes: attributes, errors and contradictions."""

from __future__ import annotations

import pytest

from orchestrator.model.nodes import Node, NodeDescription
from orchestrator.model.scheduling.constraints import (
    NODE_ATTRIBUTES,
    RuleError,
    check_affinity_attribute,
    check_agreement,
    check_node_attribute,
    parse_rule,
    read_attribute,
)

NODE = Node(
    id="n1",
    labels={"zone": "a"},
    description=NodeDescription(hostname="h1", os="linux", arch="x86_64", labels={"zone": "b"}),
)


def test_each_attribute_is_read_from_its_own_field() -> None:
    found = {key: read_attribute(NODE, key) for key in NODE_ATTRIBUTES}
    assert found == {
        "node.id": "n1",
        "node.hostname": "h1",
        "node.role": NODE.role,
        "node.platform.os": "linux",
        "node.platform.arch": "x86_64",
    }
    assert read_attribute(NODE, "node.labels.zone") == "a"
    assert read_attribute(NODE, "engine.labels.zone") == "b"
    assert read_attribute(NODE, "node.labels.rack") is None


def test_an_unknown_attribute_has_no_value() -> None:
    with pytest.raises(RuleError, match=r"nodes have no attribute 'node\.cpus'"):
        read_attribute(NODE, "node.cpus")


def test_only_affinities_know_attributes_of_services() -> None:
    for key in (*NODE_ATTRIBUTES, "node.labels.zone", "engine.labels.NAME"):
        check_node_attribute(key, "spread")
        check_affinity_attribute(key, "affinity")
    for key in ("service", "service.labels.tier"):
        check_affinity_attribute(key, "affinity")
        with pytest.raises(
            RuleError, match=rf"spread asks for '{key}'; known are node.id, .*NAME$"
        ):
            check_node_attribute(key, "spread")
    with pytest.raises(RuleError, match=r"asks for 'service.labels.'; known are .*, service, "):
        check_affinity_attribute("service.labels.", "affinity")


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
def test_invalid_rules_name_the_mistake(rule: str, words: str) -> None:
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
