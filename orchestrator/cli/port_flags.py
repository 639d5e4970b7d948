"""`-p`, `-P` and `--expose` of a container: ports of its node that lead to its own.

`-p 80` and `-P` leave it to the manager which port of the node leads to port 80 of the container;
it stays the same for the container's life.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import click

from orchestrator.cli.spec_flags import ports
from orchestrator.model.specs import PortSpec


def split_publish(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """The texts of `-p` that name a port of the node, and those that only name the container's.
    Raises a usage error for what has an address, unless that is all addresses."""
    named: list[str] = []
    targets: list[str] = []
    for text in texts:
        text = text.removeprefix("0.0.0.0:").removeprefix("[::]:")
        outside, _, inside = text.rpartition(":")
        if "=" not in text and ":" in outside:
            raise click.BadParameter(
                f"port {text!r} is for one address; a port is published on all addresses of its "
                "node, so write such as 8080:80"
            )
        (named if "=" in text or outside else targets).append(text if outside else inside)
    return named, targets


def unnumbered(targets: Iterable[str], but: Sequence[PortSpec] = ()) -> tuple[PortSpec, ...]:
    """Ports of a container, such as `80` or `8000-8002/udp`, for which the manager chooses one of
    the node; without those that are published already."""
    taken = {(port.target, port.protocol) for port in but}
    found: dict[tuple[int, int], PortSpec] = {}
    for text in targets:
        numbers, slash, protocol = text.partition("/")
        for port in ports([f"{numbers}:{numbers}{slash}{protocol}"]):
            if (key := (port.target, port.protocol)) not in taken:
                found[key] = replace(port, published=0)
    return tuple(found.values())
