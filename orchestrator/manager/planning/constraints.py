"""Placement rules such as `node.labels.zone==a`, in Docker's syntax."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from orchestrator.model.objects import Availability, Node, Service

_LABELS = "node.labels."
_ATTRIBUTES = ("node.id", "node.hostname", "node.role", "node.platform.os", "node.platform.arch")


class ConstraintError(ValueError):
    """A rule that cannot be read; the text says why and gives an example."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One rule: the node's `attribute` equals `value`, or (`negated`) does not."""

    attribute: str
    negated: bool
    value: str

    def met_by(self, node: Node) -> bool:
        """Whether the node satisfies the rule. A label that a node lacks equals nothing."""
        return (read(node, self.attribute) == self.value) is not self.negated


@lru_cache(maxsize=1024)
def parse_constraint(text: str) -> Constraint:
    """The rule written as `ATTRIBUTE==VALUE` or `ATTRIBUTE!=VALUE`.

    Raises `ConstraintError` for another operator or an attribute that nodes do not have.
    """
    for operator in ("==", "!="):
        attribute, found, value = text.partition(operator)
        if found:
            break
    else:
        raise ConstraintError(
            f"constraint {text!r} has neither == nor !=; write it like node.labels.zone==a"
        )
    attribute, value = attribute.strip(), value.strip()
    label = attribute.removeprefix(_LABELS) if attribute.startswith(_LABELS) else ""
    if not label and attribute not in _ATTRIBUTES:
        known = ", ".join((*_ATTRIBUTES, _LABELS + "NAME"))
        raise ConstraintError(
            f"constraint {text!r}: nodes have no {attribute or 'empty name'}; they have {known}"
        )
    if not value:
        raise ConstraintError(f"constraint {text!r} has no value after {operator}")
    return Constraint(attribute, operator == "!=", value)


def meets(node: Node, constraints: tuple[str, ...]) -> bool:
    """Whether the node satisfies every rule. One that cannot be read is met by no node."""
    try:
        return all(parse_constraint(text).met_by(node) for text in constraints)
    except ConstraintError:
        return False


def welcome(node: Node, service: Service) -> bool:
    """Whether tasks of the service may stay on the node."""
    return node.availability is not Availability.DRAIN and meets(node, service.spec.constraints)


def read(node: Node, attribute: str) -> str | None:
    """An attribute of a node, None where it has no such label."""
    if attribute.startswith(_LABELS):
        label = attribute.removeprefix(_LABELS)
        return node.labels.get(label, node.description.labels.get(label))
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
