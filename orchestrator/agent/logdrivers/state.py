"""What is recorded of a container's log driver: its options, and how far lines were sent."""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.agent.logdrivers.source import BEGINNING, Place
from orchestrator.model.specs import LogConfig


@dataclass(frozen=True, slots=True)
class State:
    """One record."""

    config: LogConfig
    """With the node's defaults filled in."""
    image_id: str = ""
    place: Place = BEGINNING
    target: Mapping[str, Any] = field(default_factory=dict)
    """See `Target.record`."""


def read(path: Path) -> State | None:
    """The record at `path`; None when there is none that can be used. Raises OSError."""
    try:
        found = json.loads(path.read_bytes())
        inode, head, offset, parts = found["place"]
        return State(
            LogConfig(found["driver"], found["options"]),
            found["image"],
            Place(inode, head, offset, tuple((key, b64decode(part)) for key, part in parts)),
            found["target"],
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return None


def write(path: Path, state: State) -> None:
    """Replace the record. It survives the agent, not a loss of power. Raises OSError."""
    place = state.place
    record = {
        "driver": state.config.driver,
        "options": state.config.options,
        "image": state.image_id,
        "place": [
            place.inode,
            place.head,
            place.offset,
            [(stream, b64encode(part).decode()) for stream, part in place.parts],
        ],
        "target": state.target,
    }
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(record, file)
    draft.replace(path)


def at(state: State, place: Place, target: Mapping[str, Any]) -> State:
    """The record of a later place."""
    return replace(state, place=place, target=target)
