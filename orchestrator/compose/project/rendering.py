# SPDX-License-Identifier: Apache-2.0
"""Rendering of a project as one file that Orc and Compose interpret alike."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from orchestrator.compose.tree import List, Map, Node, Scalar


def rendered(document: Map, name: str) -> Map:
    """A project's document: its name first, and values in forms that Compose accepts."""
    entries = {key: node for key, node in document.entries.items() if key != "version"}
    if name:
        entries = {**entries, "name": Scalar(name, document.place, False)}
        entries = {"name": entries.pop("name"), **entries}
    services = document.section("services")
    if services.entries:
        shown: dict[str, Node] = {
            key: _service(cast(Map, each)) for key, each in services.entries.items()
        }
        entries["services"] = replace(services, entries=shown)
    return replace(document, entries=entries)


def _service(service: Map) -> Map:
    for section in ("networks", "build"):
        if not isinstance(service.get(section), Map):
            continue
        part = service.section(section)
        part = _networks(part) if section == "networks" else _hosts(part)
        service = service.with_entries(**{section: part})
    return _hosts(service)


def _networks(networks: Map) -> Map:
    """Networks without options become null."""
    entries = {
        name: each if not isinstance(each, Map) or each.entries else Scalar("", each.place)
        for name, each in networks.entries.items()
    }
    return replace(networks, entries={**entries})


def _hosts(section: Map) -> Map:
    """`extra_hosts` as a list, which allows several addresses per name."""
    hosts = section.get("extra_hosts")
    if not isinstance(hosts, Map):
        return section
    lines = (
        Scalar(f"{name}={address}", value.place, False)
        for name, value in hosts.entries.items()
        if isinstance(value, Scalar)
        for address in value.text.split(",")
    )
    return section.with_entries(extra_hosts=List(tuple(lines), hosts.place))


def escaped(node: Node) -> Node:
    """The tree with dollar signs escaped, so that it can be read again."""
    if isinstance(node, Map):
        return replace(node, entries={key: escaped(each) for key, each in node.entries.items()})
    if isinstance(node, List):
        return replace(node, items=tuple(map(escaped, node.items)))
    return replace(node, text=node.text.replace("$", "$$")) if "$" in node.text else node
