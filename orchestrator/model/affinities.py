"""What a service likes to be near to, or far from: nodes, and other services.

As a user writes it: a rule, such as `node.labels.disk==ssd`, `service==db` or
`service.labels.tier==cache`, and behind it `,weight=N` and `,within=ATTRIBUTE`. Without a weight it
must hold. With one it is a wish, and the weight is what it is worth: as much as N tasks of the
service on a node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.model.constraints import Rule, RuleError, check_node_attribute, parse_rule
from orchestrator.model.extensible import Extensible

MOST_WEIGHT = 100
MOST_AFFINITIES = 32

_OPTIONS = re.compile(r"(.*?)((?:,\s*(?:weight|within)\s*=[^,]*)*)")


@dataclass(frozen=True, slots=True)
class Affinity(Extensible):
    """A liking, or a dislike."""

    rule: str = ""
    """Of nodes or services, such as `service==db`."""
    anti: bool = False
    """Away from it, not near to it."""
    weight: int = 0
    """What it is worth, in tasks of the service on a node, 1 to 100; 0: it must hold."""
    within: str = ""
    """An attribute such as `node.labels.zone`: near is where it has the same value. Empty: on the
    same node. Of rules about services."""

    @property
    def hard(self) -> bool:
        """Whether it must hold."""
        return not self.weight

    @property
    def parsed(self) -> Rule:
        """Its rule. Raises RuleError."""
        return parse_rule(self.rule, self.word, services=True)

    @property
    def word(self) -> str:
        return "anti-affinity" if self.anti else "affinity"

    def __str__(self) -> str:
        weight = f",weight={self.weight}" if self.weight else ""
        return f"{self.rule}{weight}" + (f",within={self.within}" if self.within else "")


def parse_affinity(text: str, *, anti: bool = False) -> Affinity:
    """From `RULE[,weight=N][,within=ATTRIBUTE]`. Raises ValueError in the user's words."""
    match = _OPTIONS.fullmatch(text)
    rule, options = match.groups() if match else (text, "")
    weight, within = 0, ""
    what = f"{'anti-affinity' if anti else 'affinity'} {text!r}"
    for option in options.split(",")[1:]:
        key, _, value = (part.strip() for part in option.partition("="))
        if key == "within":
            within = value
        elif not value.isdecimal() or not 1 <= int(value) <= MOST_WEIGHT:
            raise RuleError(f"{what}: weight {value!r} is not a number from 1 to {MOST_WEIGHT}")
        else:
            weight = int(value)
    made = Affinity(rule.strip(), anti, weight, within)
    check_affinities([made])
    return made


def check_affinities(affinities: Iterable[Affinity]) -> None:
    """Raise ValueError for the first that makes no sense."""
    listed = list(affinities)
    if len(listed) > MOST_AFFINITIES:
        raise RuleError(f"{len(listed)} affinities are more than {MOST_AFFINITIES}, the most")
    for each in listed:
        rule, what = each.parsed, f"{each.word} {str(each)!r}"
        if rule.of_services and rule.negated:
            raise RuleError(
                f"{what}: with services only == and in; --{_OTHER[each.anti]} is the opposite"
            )
        if not 0 <= each.weight <= MOST_WEIGHT:
            raise RuleError(f"{what}: weight {each.weight} is not from 1 to {MOST_WEIGHT}")
        if each.within and not rule.of_services:
            raise RuleError(f"{what}: within= says how near a service is; leave it out for nodes")
        if each.within:
            check_node_attribute(each.within, what)


_OTHER = {False: "anti-affinity", True: "affinity"}
