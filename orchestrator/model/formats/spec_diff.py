# SPDX-License-Identifier: Apache-2.0
"""Differences between two specs, as users read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import IntEnum
from typing import Any

from orchestrator.model.extensible import known_fields

_LEFT_OUT = ("task", "container")
"""Steps of a path that mean nothing to a user."""

_LONGEST = 60
"""Maximum characters of a shown value."""


def differences(old: Any, new: Any) -> list[str]:
    """The fields that differ, such as `image` and `update.delay`."""
    return [path for path, _, _ in _differing(old, new, ())]


def describe_differences(old: Any, new: Any) -> str:
    """The differences with old and new values: `image web:1 -> web:2, env -A=1 +A=2`."""
    return ", ".join(f"{path} {_change(was, now)}" for path, was, now in _differing(old, new, ()))


def _differing(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    if old == new:
        return
    if not is_dataclass(old) or type(old) is not type(new):
        yield ".".join(step for step in path if step not in _LEFT_OUT), old, new
        return
    for each in known_fields(old):
        one, other = getattr(old, each.name), getattr(new, each.name)
        yield from _differing(one, other, (*path, each.name))


def _change(was: Any, now: Any) -> str:
    if isinstance(was, dict):
        was, now = (tuple(f"{k}={v}" for k, v in each.items()) for each in (was, now))
    if isinstance(was, tuple):
        gone = [f"-{_text(each)}" for each in was if each not in now]
        come = [f"+{_text(each)}" for each in now if each not in was]
        return " ".join([*gone, *come]) or "in another order"
    return f"{_text(was)} -> {_text(now)}"


def _text(value: Any) -> str:
    if isinstance(value, IntEnum):
        text = value.name.lower().replace("_", "-")
    elif isinstance(value, float):
        text = f"{value:g}"
    elif is_dataclass(value) and type(value).__str__ is object.__str__:
        parts = (getattr(value, each.name) for each in known_fields(value))
        text = ":".join(_text(part) for part in parts if part)
    else:
        text = str(value) or "nothing"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
