# SPDX-License-Identifier: Apache-2.0
"""Platforms of images: OS/ARCHITECTURE[/VARIANT], with Go's names."""

from __future__ import annotations

import re

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}
_PLATFORM = re.compile(r"(?:linux/)?([a-z0-9_]+)(?:/v[0-9]+)?")


def architecture(machine: str) -> str:
    """Go's name of an architecture, given that of `uname -m`."""
    return _ARCHITECTURES.get(machine, machine)


def wanted_architecture(platform: str) -> str:
    """The architecture of a platform that a user names, such as `linux/arm64` or `amd64`.

    Raises ValueError for several at once, and for an invalid one.
    """
    if "," in platform:
        raise ValueError("an image is built for one platform at a time; name one")
    match = _PLATFORM.fullmatch(platform)
    if match is None:
        raise ValueError(f"{platform!r} is no platform; write such as linux/amd64")
    return architecture(match[1])


_MACHINES = {name: machine for machine, name in _ARCHITECTURES.items()}
"""Architectures as images name them → as nodes report them."""


def platform_constraint(text: str) -> str:
    """The constraint for a platform such as `linux/arm64`, since a node runs only its own. Raises
    ValueError."""
    architecture = wanted_architecture(text)
    return f"node.platform.arch=={_MACHINES.get(architecture, architecture)}"
