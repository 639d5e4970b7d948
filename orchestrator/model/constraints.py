"""Rules on nodes and services, such as `node.labels.zone==a`, in Docker's syntax and a little more.

KEY==VALUE    it is that
KEY!=VALUE    it is not; what has no such label is not, either
KEY in A,B    it is one of these
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

NODE_LABELS, ENGINE_LABELS = "node.labels.", "engine.labels."
"""Labels that operators gave a node, and labels that its own agent reports."""
NODE_ATTRIBUTES = (
    "node.id",
    "node.hostname",
    "node.role",
    "node.platform.os",
    "node.platform.arch",
)
SERVICE, SERVICE_LABELS = "service", "service.labels."

_RULE = re.compile(r"\s*([\w./-]+)(?:\s*(==|!=)\s*(\S.*?)|\s+(in)\s+(\S.*?))\s*", re.ASCII)


class RuleError(ValueError):
    """A rule that cannot be read; the text says why and gives an example."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What an attribute must be, or (`negated`) must not."""

    attribute: str
    values: frozenset[str]
    negated: bool = False

    @property
    def of_services(self) -> bool:
        """Whether it is about services, not nodes."""
        return not self.attribute.startswith(("node.", ENGINE_LABELS))

    def accepts(self, value: str | None) -> bool:
        """Whether an attribute may be that; None is a label that is not there."""
        return (value in self.values) is not self.negated


@lru_cache(maxsize=4096)
def parse_rule(text: str, what: str = "constraint", *, services: bool = False) -> Rule:
    """The rule that is written so; about services only where that makes sense.

    Raises `RuleError` for another form, or an attribute that there is not.
    """
    match = _RULE.fullmatch(text)
    if match is None:
        raise RuleError(
            f"{what} {text!r} is not of the form KEY==VALUE, KEY!=VALUE or 'KEY in A,B', "
            "such as node.labels.zone==a"
        )
    key, operator, value, _, several = match.groups()
    check_attribute(key, f"{what} {text!r}", services=services)
    values = frozenset(part.strip() for part in several.split(",")) if several else {value}
    if "" in values:
        raise RuleError(f"{what} {text!r} has an empty value among those of its list")
    return Rule(key, frozenset(values), operator == "!=")


def check_attribute(key: str, what: str, *, services: bool = False) -> None:
    """Raise `RuleError` unless nodes (or `services`) have an attribute of that name."""
    known = [*NODE_ATTRIBUTES, f"{NODE_LABELS}NAME", f"{ENGINE_LABELS}NAME"]
    prefixes = [NODE_LABELS, ENGINE_LABELS]
    if services:
        known += [SERVICE, f"{SERVICE_LABELS}NAME"]
        prefixes.append(SERVICE_LABELS)
    if key in known[:-1] and not key.endswith(".NAME"):
        return
    if not any(key.startswith(prefix) and len(key) > len(prefix) for prefix in prefixes):
        raise RuleError(f"{what} asks for {key!r}; known are {', '.join(known)}")


def check_agreement(texts: Iterable[str]) -> None:
    """Refuse rules of which no node can ever meet all. Raises `RuleError`, naming two of them or
    the one that leaves nothing."""
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
