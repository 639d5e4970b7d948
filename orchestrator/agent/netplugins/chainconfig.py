"""What the plugins of a chain are told of a container. Pure.

Source: CNI specification 1.1, section 3, and CONVENTIONS.md for `runtimeConfig`.
"""

from __future__ import annotations

from typing import Any

from orchestrator.agent.netplugins.program import Call
from orchestrator.agent.netplugins.records import Record
from orchestrator.agent.network.values import Interface
from orchestrator.model.formats.conflist import Conflist, bandwidth


def asked_of(interface: Interface) -> dict[str, Any]:
    """What a container asks for, by capability."""
    return {
        "portMappings": [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                **({"hostIP": port.host_ip} if port.host_ip else {}),
            }
            for port in interface.ports
        ],
        "ips": [address for address in (interface.ip, interface.ip6) if address],
        "mac": interface.mac,
        "aliases": list(interface.aliases),
        "bandwidth": bandwidth(interface.options),
    }


def configs(chain: Conflist, record: Record) -> list[dict[str, Any]]:
    """The configuration that each plugin gets, but for `prevResult`."""
    found = []
    for plugin in chain.plugins:
        config = {**plugin.config, "name": chain.name, "cniVersion": record.body["version"]}
        asked = record.body["asked"]
        told = {key: asked[key] for key in plugin.capabilities & asked.keys() if asked[key]}
        if told:
            config["runtimeConfig"] = told
        found.append(config)
    return found


def call_of(command: str, record: Record) -> Call:
    """A call about a container."""
    return Call(command, record.container, record.netns, record.ifname)


def same(known: Record, wanted: Record) -> bool:
    """Whether what is on record is what is wanted, in the very namespace."""
    return (
        bool(known.body.get("result"))
        and (known.ifname, known.stamp) == (wanted.ifname, wanted.stamp)
        and all(known.body.get(key) == value for key, value in wanted.body.items())
    )


def before(version: str, other: str) -> bool:
    """Whether a version is older than another."""
    return numbers(version) < numbers(other)


def numbers(version: str) -> tuple[int, ...]:
    """Of a version, to be compared."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
