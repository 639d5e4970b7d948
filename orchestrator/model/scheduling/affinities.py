# SPDX-License-Identifier: Apache-2.0
"""Affinities and anti-affinities to nodes and to services.

The syntax is a rule such as `node.labels.disk==ssd`, `service==db` or `service.labels.tier==cache`,
followed by `,weight=N` and `,within=ATTRIBUTE`. Without a weight an affinity is hard: it must hold.
With a weight it is soft: it counts as much as N tasks of the service on a node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.model.extensible import Extensible
from orchestrator.model.scheduling.constraints import (
    Rule,
    RuleError,
    check_node_attribute,
    parse_rule,
)

MAX_WEIGHT = 100
MAX_AFFINITIES = 32

_OPTIONS = re.compile(r"(.*?)((?:,\s*(?:weight|within)\s*=[^,]*)*)")


@dataclass(frozen=True, slots=True)
class Affinity(Extensible):
    """An affinity or anti-affinity."""

    rule: str = ""
    """A rule on nodes or services, such as `service==db`."""
    anti: bool = False
    """Whether it is an anti-affinity."""
    weight: int = 0
    """Weight of a soft affinity, in tasks of the service on a node, 1 to 100; 0: it is hard."""
    within: str = ""
    """Of rules on services, an attribute such as `node.labels.zone`: nodes with the same value are
    near. Empty: only the same node."""

    @property
    def hard(self) -> bool:
        """Whether it must hold (a filter, not a score)."""
        return not self.weight

    @property
    def parsed(self) -> Rule:
        """The parsed rule. Raises RuleError."""
        return parse_rule(self.rule, self.word, services=True)

    @property
    def word(self) -> str:
        return "anti-affinity" if self.anti else "affinity"

    def __str__(self) -> str:
        weight = f",weight={self.weight}" if self.weight else ""
        return f"{self.rule}{weight}" + (f",within={self.within}" if self.within else "")


def parse_affinity(text: str, *, anti: bool = False) -> Affinity:
    """From `RULE[,weight=N][,within=ATTRIBUTE]`. Raises ValueError."""
    match = _OPTIONS.fullmatch(text)
    rule, options = match.groups() if match else (text, "")
    weight, within = 0, ""
    what = f"{'anti-affinity' if anti else 'affinity'} {text!r}"
    for option in options.split(",")[1:]:
        key, _, value = (part.strip() for part in option.partition("="))
        if key == "within":
            within = value
        elif not value.isdecimal() or not 1 <= int(value) <= MAX_WEIGHT:
            raise RuleError(f"{what}: weight {value!r} is not a number from 1 to {MAX_WEIGHT}")
        else:
            weight = int(value)
    made = Affinity(rule.strip(), anti, weight, within)
    check_affinities([made])
    return made


def check_affinities(affinities: Iterable[Affinity]) -> None:
    """Raise ValueError for the first invalid one."""
    listed = list(affinities)
    if len(listed) > MAX_AFFINITIES:
        raise RuleError(f"{len(listed)} affinities are more than {MAX_AFFINITIES}, the most")
    for each in listed:
        rule, what = each.parsed, f"{each.word} {str(each)!r}"
        if rule.of_services and rule.negated:
            raise RuleError(
                f"{what}: with services only == and in; --{_OTHER[each.anti]} is the opposite"
            )
        if not 0 <= each.weight <= MAX_WEIGHT:
            raise RuleError(f"{what}: weight {each.weight} is not from 1 to {MAX_WEIGHT}")
        if each.within and not rule.of_services:
            raise RuleError(f"{what}: within= says how near a service is; leave it out for nodes")
        if each.within:
            check_node_attribute(each.within, what)


_OTHER = {False: "anti-affinity", True: "affinity"}
