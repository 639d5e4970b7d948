# SPDX-License-Identifier: Apache-2.0
"""Fields of decoded JSON: type checks with messages for the user; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import TYPE_CHECKING
from orchestrator.cni.netlink.links import NAME_LIMIT, Address

if TYPE_CHECKING:
    from typing import Any

IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
INTERFACE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.\-]{0,14}")
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def invalid(message: str) -> CniError:
    """The error for an invalid configuration."""
    return CniError(Code.INVALID_CONFIG, message)


def text(raw: Mapping[str, Any], key: str) -> str:
    """A non-empty string."""
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise invalid(f"{key} is missing")
    return value


def mapping(value: object, key: str) -> Mapping[str, Any]:
    """An object; empty if absent."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise invalid(f"{key} is not an object")
    return value


def mappings(value: object, key: str) -> list[Mapping[str, Any]]:
    """A list of objects; empty if absent."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise invalid(f"{key} is not a list of objects")
    return value


def listed(value: object, key: str) -> list[Any]:
    """A list; empty if absent."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(f"{key} is not a list")
    return value


def integer(value: object, key: str, low: int, high: int) -> int:
    """An integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(f"{key} {value!r}: give a whole number from {low} to {high}")
    return value


def network4(value: object, key: str) -> IPv4Network:
    """An IPv4 network."""
    try:
        return IPv4Network(str(value))
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IPv4 network: {error}") from error


def network6(value: object, key: str) -> IPv6Network:
    """An IPv6 network."""
    try:
        return IPv6Network(str(value))
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IPv6 network: {error}") from error


def networks(value: object, key: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """A list of networks of both families; empty if absent."""
    return tuple(
        network6(one, key) if ":" in str(one) else network4(one, key) for one in listed(value, key)
    )


def address4(value: object, key: str) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(str(value))
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IPv4 address") from error


def address6(value: object, key: str) -> IPv6Address:
    """An IPv6 address."""
    try:
        return IPv6Address(str(value))
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IPv6 address") from error


def address(value: object, key: str) -> Address:
    """An address of either family; a prefix length is ignored."""
    try:
        return ip_address(str(value).partition("/")[0])
    except ValueError as error:
        raise invalid(f"{key} {value!r} is not an IP address") from error


def interface(value: object, key: str) -> str:
    """The name of an interface."""
    name = str(value)
    if not INTERFACE.fullmatch(name):
        raise invalid(f"{key} {name!r} is not an interface name of at most {NAME_LIMIT} characters")
    return name


def mac(value: object, key: str) -> str:
    """A hardware address of one interface, in lower case."""
    found = str(value).lower()
    if not MAC.fullmatch(found) or int(found[:2], 16) & 1:
        raise invalid(f"{key} {value!r} is not a hardware address such as 02:42:0a:00:00:02")
    return found
