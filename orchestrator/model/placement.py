# SPDX-License-Identifier: Apache-2.0
"""Amounts of resources, scheduling strategies, and policies for disconnected nodes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from orchestrator.model.extensible import Extensible
from orchestrator.model.units import format_duration, parse_duration


@dataclass(frozen=True, slots=True)
class Resources(Extensible):
    """An amount of CPU (shares) and memory (bytes); 0: not set."""

    shares: int = 0
    memory: int = 0


class Strategy(IntEnum):
    """How the scheduler chooses among the nodes that can take a task."""

    DEFAULT = 0
    """Of a service: the cluster's strategy; of the cluster: SPREAD."""
    SPREAD = 1
    """The node with the fewest tasks of the service, then the least load."""
    BINPACK = 2
    """The fullest node, so that others stay empty."""


@dataclass(frozen=True, slots=True)
class GenericResource(Extensible):
    """A number of generic resources of one kind (`model.formats.generic_resources`)."""

    kind: str = ""
    count: int = 0
    names: tuple[str, ...] = ()
    """These names, as many as `count`; empty: any."""
    every: bool = False
    """All of the node's, at least `count`."""

    def __str__(self) -> str:
        if self.names:
            return f"{self.kind}=device={','.join(self.names)}"
        return f"{self.kind}={'all' if self.every else self.count}"


class DisconnectAction(IntEnum):
    """What to do with tasks whose node is down."""

    REPLACE = 0
    """Reschedule them; if the node comes back, it stops them."""
    KEEP = 1
    """Keep them for when the node comes back."""
    STOP = 2
    """Their node stops them itself; then they are rescheduled, so that two never run at a time."""


@dataclass(frozen=True, slots=True)
class Disconnect(Extensible):
    """What to do with tasks whose node is down, and when."""

    action: DisconnectAction = DisconnectAction.REPLACE
    after: float = 0.0
    """Seconds for which the node has been down, or disconnected from managers."""


KEPT = "kept on "
"""Prefix of the message of a task that waits for its node, which is down."""

MAX_DISCONNECTED = 30 * 86400.0
"""Seconds."""


def parse_disconnect(text: str) -> Disconnect:
    """From `replace`, `replace-after=30s`, `keep` or `stop-after=30s`. Raises ValueError."""
    word, equals, value = text.partition("=")
    actions = {"replace-after": DisconnectAction.REPLACE, "stop-after": DisconnectAction.STOP}
    if not equals and word in ("replace", "keep"):
        return Disconnect(DisconnectAction[word.upper()])
    if not equals or word not in actions:
        raise ValueError(f"{text!r} is not one of replace, replace-after=30s, keep, stop-after=30s")
    made = Disconnect(actions[word], parse_duration(value))
    check_disconnect(made)
    return made


def check_disconnect(disconnect: Disconnect) -> None:
    """Raise ValueError for an invalid policy."""
    if not 0 <= disconnect.after <= MAX_DISCONNECTED:
        raise ValueError(f"on-disconnect: {disconnect.after:g} s is not from 0s to 30 days")
    if disconnect.action is DisconnectAction.STOP and disconnect.after < 1:
        raise ValueError("on-disconnect: stop-after must be at least 1s")


def disconnect_text(disconnect: Disconnect) -> str:
    """The policy as users write it."""
    if disconnect.action is DisconnectAction.KEEP:
        return "keep"
    word = disconnect.action.name.lower()
    return f"{word}-after={format_duration(disconnect.after)}" if disconnect.after else word
