# SPDX-License-Identifier: Apache-2.0
"""Eligibility: which nodes a service's tasks may be on, regardless of their load.

Constraints, hard affinities to nodes, and drain. Reconciling asks whether a task may stay,
scheduling where it may go.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.model.nodes import Availability, Node
from orchestrator.model.scheduling.affinities import Affinity
from orchestrator.model.scheduling.constraints import Rule, RuleError, parse_rule, read_attribute
from orchestrator.model.services import Service


def satisfies_rule(rule: Rule, node: Node) -> bool:
    """Whether the node satisfies the rule. A missing label equals no value."""
    return rule.accepts(read_attribute(node, rule.attribute))


def satisfies(node: Node, constraints: Iterable[str], affinities: Iterable[Affinity] = ()) -> bool:
    """Whether the node satisfies every constraint and every hard affinity to nodes. No node
    satisfies a rule that cannot be parsed."""
    try:
        if not all(satisfies_rule(parse_rule(text), node) for text in constraints):
            return False
        return all(
            satisfies_rule(each.parsed, node) is not each.anti
            for each in affinities
            if each.hard and not each.parsed.of_services
        )
    except RuleError:
        return False


def is_eligible(node: Node, service: Service) -> bool:
    """Whether tasks of the service may stay on the node."""
    spec = service.spec
    return node.availability is not Availability.DRAIN and satisfies(
        node, spec.constraints, spec.affinities
    )
