"""Which nodes a service's rules allow, whatever else is there."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.model.affinities import Affinity
from orchestrator.model.constraints import ENGINE_LABELS, NODE_LABELS, Rule, RuleError, parse_rule
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.services import Service


def satisfies_rule(rule: Rule, node: Node) -> bool:
    """Whether the node satisfies the rule. A label that a node lacks equals nothing."""
    return rule.accepts(read(node, rule.attribute))


def satisfies(node: Node, constraints: Iterable[str], affinities: Iterable[Affinity] = ()) -> bool:
    """Whether the node satisfies every constraint, and all that its likings of nodes insist on.
    What cannot be read is met by no node."""
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


def read(node: Node, attribute: str) -> str | None:
    """An attribute of a node, None where it has no such label. `node.labels` are what operators
    set: what an agent reports of itself must not attract tasks that ask for these."""
    if attribute.startswith(NODE_LABELS):
        return node.labels.get(attribute.removeprefix(NODE_LABELS))
    if attribute.startswith(ENGINE_LABELS):
        return node.description.labels.get(attribute.removeprefix(ENGINE_LABELS))
    match attribute:
        case "node.id":
            return node.id
        case "node.hostname":
            return node.description.hostname
        case "node.role":
            return node.role
        case "node.platform.os":
            return node.description.os
        case _:
            return node.description.arch
