# SPDX-License-Identifier: Apache-2.0
"""No address or port is given twice at once: addresses of tasks, VIPs, published ports."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from tests.chaos.history import History, Violation
from tests.chaos.rules.timeline import TERMINAL, Fields, replay

RULE = "addresses"

INGRESS = 0
"""`PUBLISH_MODE_INGRESS`: a port of all nodes, of one service."""


def check(history: History) -> Iterator[Violation]:
    """In the store, at every revision."""
    holders: dict[Hashable, dict[str, int]] = {}
    """Address or port → its holders → the line of the commit."""
    held: dict[tuple[str, str], set[Hashable]] = {}
    reported: set[Hashable] = set()
    last, changed = -1, set[Hashable]()

    def doubles() -> Iterator[Violation]:
        for thing in changed - reported:
            if len(owners := holders.get(thing, {})) > 1:
                reported.add(thing)
                text = f"{_text(thing)} is given to {' and '.join(sorted(owners))} at once"
                yield Violation(RULE, text, tuple(sorted(owners.values())))
        changed.clear()

    for commit, change, _, _ in replay(history):
        if commit.revision != last:
            yield from doubles()
            last = commit.revision
        if change.kind not in ("tasks", "services"):
            continue
        key = (change.kind, change.id)
        for thing in held.pop(key, set()):
            holders[thing].pop(change.id, None)
        things = set() if change.deleted else set(_held(change.kind, change.id, change.fields))
        held[key] = things
        for thing in things:
            holders.setdefault(thing, {})[change.id] = commit.line
        changed |= things
    yield from doubles()


def _held(kind: str, identity: str, fields: Fields) -> Iterator[Hashable]:
    """What a task or service holds."""
    if kind == "services":
        if not fields["removed"]:
            yield from (("address", address) for address in fields["vips"].values())
            for port, protocol, mode in fields["ports"]:
                if mode == INGRESS:
                    yield ("port", port, protocol)
    elif fields["state"] not in TERMINAL:
        yield from (("address", address) for address in fields["addresses"].values())
        for port, protocol, mode in fields["ports"]:
            if mode != INGRESS and fields["node"]:
                yield ("port of node", fields["node"], port, protocol)


def _text(thing: Hashable) -> str:
    assert isinstance(thing, tuple)
    return " ".join(map(str, thing))
