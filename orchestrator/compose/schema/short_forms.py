# SPDX-License-Identifier: Apache-2.0
"""Expansion of short forms of ports, mounts, file references, devices and env files.

Each function takes the text, its position, its key path and the read context, and raises
ComposeError.
"""

from __future__ import annotations

import re

from orchestrator.compose.schema.value_kinds import ReadContext, check_text, context_path, number_of
from orchestrator.compose.tree import ComposeError, List, Map, Node, Place, Scalar
from orchestrator.model.formats.cdi_names import is_cdi

PROPAGATIONS = ("rprivate", "private", "rslave", "slave", "rshared", "shared")

_PORT = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:.]+\]|[0-9.]+|):)?(?:(?P<published>\d*(?:-\d+)?):)?"
    r"(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>\w+))?",
    re.ASCII,
)


def _map(place: Place, **entries: Node | str | bool | None) -> Map:
    """A map of these entries: strings, True as a boolean; None and False are left out."""
    made: dict[str, Node] = {}
    for key, value in entries.items():
        if value is True:
            made[key] = Scalar("true", place)
        elif isinstance(value, str):
            made[key] = Scalar(value, place, False)
        elif isinstance(value, Scalar | List | Map):
            made[key] = value
    return Map(made, place)


def ports(text: str, place: Place, at: str, reading: ReadContext) -> list[Map]:
    """`[[IP:][PUBLISHED]:]TARGET[/PROTOCOL]`; PUBLISHED and TARGET are ports or ranges."""
    # With one colon, a port precedes it, not an address.
    match = _PORT.fullmatch(text if text.count(":") != 1 else f":{text}")
    if match is None:
        raise ComposeError(place, at, f"port {text!r} is not of the form 8080:80[/udp]")
    protocol = (match["protocol"] or "tcp").lower()
    if protocol not in ("tcp", "udp"):
        raise ComposeError(place, at, f"protocol {protocol} is not supported; use tcp or udp")
    targets = _range(match["target"], place, at)
    published = _range(match["published"], place, at) if match["published"] else None
    if published is not None and len(published) != len(targets):
        raise ComposeError(place, at, f"port ranges in {text!r} differ in length")
    return [
        _map(
            place,
            mode="ingress",
            host_ip=(match["ip"] or "").strip("[]") or None,
            target=Scalar(str(target), place),
            published=str(published[index]) if published else None,
            protocol=protocol,
        )
        for index, target in enumerate(targets)
    ]


def _range(text: str, place: Place, at: str) -> range:
    first, _, last = text.partition("-")
    found = range(int(first or 0), int(last or first) + 1)
    if not found or not 1 <= found[0] <= found[-1] <= 65535:
        raise ComposeError(place, at, f"port {text} is not in 1-65535")
    return found


def volumes(text: str, place: Place, at: str, reading: ReadContext) -> list[Map]:
    """`[SOURCE:]TARGET[:MODE]`; a SOURCE that begins with `/`, `.` or `~` is a path."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise ComposeError(place, at, f"volume {text!r} is not of the form SOURCE:TARGET[:ro]")
    source, target, modes = parts[0], parts[-1], ""
    if len(parts) == 3:
        source, target, modes = parts
    if len(parts) == 1:
        return [_map(place, type="volume", target=target, volume=Map({}, place))]
    bind = source.startswith(("/", ".", "~"))
    if bind:
        note_relative(source, place, at, reading)
    read_only, options = False, {}
    for mode in filter(None, modes.split(",")):
        if mode in ("ro", "rw"):
            read_only = mode == "ro"
        elif mode in ("z", "Z") and bind:
            options["selinux"] = mode
            reading.note(place, at, f"{mode} is ignored: Orc does not use SELinux labels")
        elif mode == "nocopy" and not bind:
            options["nocopy"] = "true"
        elif mode in PROPAGATIONS and bind:
            options["propagation"] = mode
        elif mode not in ("cached", "delegated", "consistent"):
            known = ", ".join(("ro", "rw", *(PROPAGATIONS if bind else ("nocopy",))))
            raise ComposeError(
                place, at, f"volume {text!r}: mode {mode!r} is unknown; use one of {known}"
            )
    more: dict[str, Node] = {
        key: Scalar(value, place, key == "nocopy") for key, value in options.items()
    }
    if bind:
        more["create_host_path"] = Scalar("true", place)
    return [
        _map(
            place,
            type="bind" if bind else "volume",
            source=reading.path(source) if bind else source,
            target=target,
            read_only=read_only,
            bind=Map(more, place) if bind else None,
            volume=None if bind else Map(more, place),
        )
    ]


def note_relative(source: str, place: Place, at: str, reading: ReadContext) -> None:
    """Note that a relative source of a bind mount is a path on the task's node."""
    if not source.startswith("/"):
        message = f"refers to {reading.path(source)} on the task's node, not on this machine"
        reading.note(place, at, message)


def grants(text: str, place: Place, at: str, reading: ReadContext) -> list[Map]:
    """The name of a secret or config."""
    return [_map(place, source=text)]


def devices(text: str, place: Place, at: str, reading: ReadContext) -> list[Map]:
    """`SOURCE[:TARGET[:PERMISSIONS]]`, or `VENDOR/CLASS=DEVICE`."""
    parts = [text] if is_cdi(text) else text.split(":")
    if len(parts) > 3 or not (text.startswith("/dev/") or is_cdi(text)):
        message = f"device {text!r} is not of the form /dev/NAME[:/dev/NAME][:rwm]"
        raise ComposeError(place, at, message)
    source, target, permissions = (*parts, "", "")[:3]
    return [_map(place, source=source, target=target or source, permissions=permissions or "rwm")]


def env_files(text: str, place: Place, at: str, reading: ReadContext) -> list[Map]:
    """A file's path."""
    return [_map(place, path=reading.path(text), required=True)]


def include(node: Scalar, at: str, reading: ReadContext) -> Map:
    """`include: [FILE]`."""
    path = Scalar(reading.path(node.text), node.place, False)
    return _map(node.place, path=List((path,), node.place))


def build(node: Scalar, at: str, reading: ReadContext) -> Map:
    """`build: FOLDER`."""
    check_text(node, at)
    try:
        return _map(node.place, context=context_path(node.text, reading))
    except ValueError as error:
        raise ComposeError(node.place, at, str(error)) from None


def extends(node: Scalar, at: str, reading: ReadContext) -> Map:
    """`extends: SERVICE`."""
    check_text(node, at)
    return _map(node.place, service=node.text)


def ulimit(node: Scalar, at: str, reading: ReadContext) -> Map:
    """One number for the soft and the hard limit."""
    number = number_of(node)
    if number is None or number != int(number):
        message = f"{node.text!r} is not a whole number; use -1 for no limit"
        raise ComposeError(node.place, at, message)
    one = Scalar(str(int(number)), node.place)
    return _map(node.place, soft=one, hard=one)
