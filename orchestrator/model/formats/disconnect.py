# SPDX-License-Identifier: Apache-2.0
"""The `--on-disconnect` policy as text: parsing, validation, formatting."""

from __future__ import annotations

from orchestrator.model.placement import Disconnect, DisconnectAction
from orchestrator.model.units import format_duration, parse_duration

MAX_AFTER = 30 * 86400.0
"""Seconds."""


def parse_disconnect(text: str) -> Disconnect:
    """From `replace`, `replace-after=30s`, `keep` or `stop-after=30s`. Raises ValueError."""
    word, equals, value = text.partition("=")
    actions = {"replace-after": DisconnectAction.REPLACE, "stop-after": DisconnectAction.STOP}
    if not equals and word in ("replace", "keep"):
        return Disconnect(DisconnectAction[word.upper()])
    if not equals or word not in actions:
        raise ValueError(f"{text!r} is none of replace, replace-after=30s, keep, stop-after=30s")
    made = Disconnect(actions[word], parse_duration(value))
    check_disconnect(made)
    return made


def check_disconnect(disconnect: Disconnect) -> None:
    """Raise ValueError for an invalid policy."""
    if not 0 <= disconnect.after <= MAX_AFTER:
        raise ValueError(f"on-disconnect: {disconnect.after:g} s is not from 0s to 30 days")
    if disconnect.action is DisconnectAction.STOP and disconnect.after < 1:
        raise ValueError("on-disconnect: a node cannot tell so soon; stop-after=1s is the least")


def disconnect_text(disconnect: Disconnect) -> str:
    """As a user writes it."""
    if disconnect.action is DisconnectAction.KEEP:
        return "keep"
    word = disconnect.action.name.lower()
    return f"{word}-after={format_duration(disconnect.after)}" if disconnect.after else word
