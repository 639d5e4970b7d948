# SPDX-License-Identifier: Apache-2.0
"""Constraints: rules on attributes of nodes, in Docker's syntax, with `in` in addition.

KEY==VALUE    the attribute has this value
KEY!=VALUE    it has another value, or there is no such label
KEY in A,B    it has one of these values

Affinities (`affinities`) use the same rules, also on attributes of services. A new attribute of
nodes is one line in `NODE_ATTRIBUTES`: parsing, validation, constraints, affinities, `within=` and
spread preferences all read that table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from orchestrator.model.nodes import Node

NODE_LABELS, ENGINE_LABELS = "node.labels.", "engine.labels."
"""Labels that operators gave a node, and labels that its own agent reports."""
SERVICE, SERVICE_LABELS = "service", "service.labels."

NODE_ATTRIBUTES: Mapping[str, Callable[[Node], str]] = {
    "node.id": lambda node: node.id,
    "node.hostname": lambda node: node.description.hostname,
    "node.role": lambda node: node.role,
    "node.platform.os": lambda node: node.description.os,
    "node.platform.arch": lambda node: node.description.arch,
}
"""Attribute → how it is read from a node."""

_LABELS: Mapping[str, Callable[[Node], Mapping[str, str]]] = {
    NODE_LABELS: lambda node: node.labels,
    # Not among the node's labels: what an agent reports must not attract tasks that ask for those.
    ENGINE_LABELS: lambda node: node.description.labels,
}
"""Prefix of an attribute that is a label → the labels that it is one of."""

_RULE = re.compile(r"\s*([\w./-]+)(?:\s*(==|!=)\s*(\S.*?)|\s+(in)\s+(\S.*?))\s*", re.ASCII)


class RuleError(ValueError):
    """A rule that cannot be parsed; the text says why and gives an example."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that an attribute must have, or (`negated`) must not have."""

    attribute: str
    values: frozenset[str]
    negated: bool = False

    @property
    def of_services(self) -> bool:
        """Whether its attribute is one of services, not of nodes."""
        return not self.attribute.startswith(("node.", ENGINE_LABELS))

    def accepts(self, value: str | None) -> bool:
        """Whether the rule holds for a value of the attribute; None is a missing label."""
        return (value in self.values) is not self.negated


@lru_cache(maxsize=4096)
def parse_rule(text: str, what: str = "constraint", *, services: bool = False) -> Rule:
    """Parse a rule on nodes or, with `services` (affinities), on nodes and services.

    `what` names the rule in errors. Raises `RuleError` for another form or an unknown attribute.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise RuleError(
            f"{what} {text!r} is not of the form KEY==VALUE, KEY!=VALUE or 'KEY in A,B', "
            "such as node.labels.zone==a"
        )
    key, operator, value, _, several = match.groups()
    check = check_affinity_attribute if services else check_node_attribute
    check(key, f"{what} {text!r}")
    values = frozenset(part.strip() for part in several.split(",")) if several else {value}
    if "" in values:
        raise RuleError(f"{what} {text!r} has an empty value among those of its list")
    return Rule(key, frozenset(values), operator == "!=")


def check_node_attribute(key: str, what: str) -> None:
    """Raise `RuleError` unless nodes have an attribute of that name: of a constraint, a spread
    preference or `within=`, which `what` names in the error."""
    if key not in NODE_ATTRIBUTES and not _is_label(key, _LABELS):
        raise RuleError(f"{what} asks for {key!r}; known are {', '.join(_NODE_FORMS)}")


def check_affinity_attribute(key: str, what: str) -> None:
    """Raise `RuleError` unless nodes or services have an attribute of that name."""
    of_nodes = key in NODE_ATTRIBUTES or _is_label(key, _LABELS)
    if not of_nodes and key != SERVICE and not _is_label(key, (SERVICE_LABELS,)):
        known = ", ".join((*_NODE_FORMS, SERVICE, f"{SERVICE_LABELS}NAME"))
        raise RuleError(f"{what} asks for {key!r}; known are {known}")


_NODE_FORMS = (*NODE_ATTRIBUTES, *(f"{prefix}NAME" for prefix in _LABELS))


def _is_label(key: str, prefixes: Iterable[str]) -> bool:
    return any(key.startswith(prefix) and len(key) > len(prefix) for prefix in prefixes)


def read_attribute(node: Node, key: str) -> str | None:
    """The value of a node's attribute; None for a label that it does not have.

    Raises `RuleError` for an attribute that nodes do not have.
    """
    if (read := NODE_ATTRIBUTES.get(key)) is not None:
        return read(node)
    for prefix, labels_of in _LABELS.items():
        if key.startswith(prefix):
            return labels_of(node).get(key.removeprefix(prefix))
    raise RuleError(f"nodes have no attribute {key!r}")


def check_agreement(texts: Iterable[str]) -> None:
    """Raise `RuleError` for contradictory rules; names two of them, or the one that no node can
    meet."""
    allowed: dict[str, tuple[frozenset[str], str]] = {}
    rules = [(parse_rule(text), text) for text in texts]
    for rule, text in sorted(rules, key=lambda item: item[0].negated):
        if not rule.negated:
            before, other = allowed.get(rule.attribute, (rule.values, text))
            left = before & rule.values
        elif rule.attribute in allowed:
            before, other = allowed[rule.attribute]
            left = before - rule.values
        else:
            continue
        if not left:
            raise RuleError(
                f"constraints {other!r} and {text!r} contradict each other: no node can ever "
                "meet both"
            )
        allowed[rule.attribute] = (left, text)
