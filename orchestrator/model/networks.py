"""What a network and an attachment to one may be. Pure, and the words for what they may not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from orchestrator.model.names import check_hostname, check_name
from orchestrator.model.specs import (
    CONTAINER_NETWORK,
    HOST_NETWORK,
    NO_NETWORK,
    NetworkAttachment,
    TaskSpec,
)

_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def stands_alone(network: str) -> bool:
    """Whether it is no network to be attached to, but a namespace to be in."""
    return network in (NO_NETWORK, HOST_NETWORK) or network.startswith(CONTAINER_NETWORK)


def own_addresses(attachment: NetworkAttachment, slot: int) -> tuple[str, str]:
    """The fixed IPv4 and IPv6 address of a slot; empty where it has none. Slots begin with 1, a
    container of no service and a task on each node (slot 0) have the first."""
    index = max(slot - 1, 0)
    ip, ip6 = attachment.ip, attachment.ip6
    return ip[index] if index < len(ip) else "", ip6[index] if index < len(ip6) else ""


def check_attachments(spec: TaskSpec) -> None:
    """Raise ValueError for the first thing in the networks of a task that cannot be."""
    names = [each.network for each in spec.networks]
    if len(set(names)) < len(names):
        raise ValueError("a network is named twice")
    for each in spec.networks:
        _check(each)
        if not stands_alone(each.network):
            continue
        if len(names) > 1:
            raise ValueError(f"with network {each.network} there can be no other network")
        if spec.ports:
            raise ValueError(f"with network {each.network} no port can be published{_why(each)}")


def _why(attachment: NetworkAttachment) -> str:
    if attachment.network == HOST_NETWORK:
        return ": its ports are the node's own"
    return ""


def _check(attachment: NetworkAttachment) -> None:
    name = attachment.network
    if name.startswith(CONTAINER_NETWORK):
        if name == CONTAINER_NETWORK:
            raise ValueError("network 'container:' names no container; write container:NAME")
    else:
        check_name(name, "network name")
    if stands_alone(name) and (attachment.aliases or attachment.ip or attachment.ip6):
        raise ValueError(f"on network {name} a container has no alias and no address of its own")
    for alias in attachment.aliases:
        check_hostname(alias)
    _check_addresses(attachment.ip, IPv4Address, "an IPv4 address")
    _check_addresses(attachment.ip6, IPv6Address, "an IPv6 address")
    if attachment.mac and not _MAC.fullmatch(attachment.mac):
        raise ValueError(f"{attachment.mac!r} is not a hardware address such as 02:42:0a:00:00:02")


def _check_addresses(
    texts: Sequence[str], kind: type[IPv4Address] | type[IPv6Address], what: str
) -> None:
    for text in texts:
        try:
            kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {what}") from None
    if len(set(texts)) < len(texts):
        raise ValueError("an address is given twice")
