# SPDX-License-Identifier: Apache-2.0
"""Flags of the networks of a container or service, and its addresses and aliases there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.flags.flag_types import pairs
from orchestrator.model.names import near_miss
from orchestrator.model.networks import stands_alone
from orchestrator.model.specs import NetworkAttachment

F = TypeVar("F", bound=Callable[..., Any])

_KEYS = ("name", "alias", "ip", "ip6", "mac-address", "driver-opt")


def network_options(function: F) -> F:
    """The network flags of `service create`, `run` and `create`."""
    for option in reversed(
        (
            click.option(
                "--network",
                "--net",
                multiple=True,
                metavar="NAME|name=NAME[,alias=NAME][,ip=IP][,driver-opt=KEY=VALUE]",
                help="Network to attach to; repeatable. none, host and container:NAME stand alone.",
                shell_complete=completes("networks"),
            ),
            click.option(
                "--network-alias",
                "--net-alias",
                multiple=True,
                metavar="NAME",
                help="DNS alias on the network; repeatable.",
            ),
            click.option(
                "--ip",
                metavar="IP[,IP...]",
                help="Fixed IPv4 address; for a service, one per replica.",
            ),
            click.option(
                "--ip6",
                metavar="IP[,IP...]",
                help="Fixed IPv6 address; for a service, one per replica.",
            ),
            click.option("--mac-address", metavar="MAC", help="Fixed MAC address."),
        )
    ):
        function = option(function)
    return function


def attachments(values: Mapping[str, Any]) -> tuple[NetworkAttachment, ...]:
    """The networks that the flags of `network_options` name. Raises a usage error.

    As in Docker, `--network-alias` and addresses are about the one network that is named.
    """
    found = _read(values["network"])
    names, ip, ip6 = values["network_alias"], _split(values["ip"]), _split(values["ip6"])
    mac = (values["mac_address"] or "").lower()
    if not (names or ip or ip6 or mac):
        return found
    if len(found) != 1 or stands_alone(found[0].network):
        raise click.UsageError(
            "--network-alias, --ip, --ip6 and --mac-address apply to one --network; "
            "for several write --network name=NAME,alias=NAME,ip=IP"
        )
    (one,) = found
    return (
        replace(
            one,
            aliases=(*one.aliases, *names),
            ip=one.ip or ip,
            ip6=one.ip6 or ip6,
            mac=one.mac or mac,
        ),
    )


def edited_attachments(
    current: tuple[NetworkAttachment, ...], add: Iterable[str], remove: Iterable[str]
) -> tuple[NetworkAttachment, ...]:
    """The networks after an update's `--network-add` and `--network-rm`. An added one replaces one
    of the same name."""
    gone = set(remove)
    kept = {each.network: each for each in current if each.network not in gone}
    for each in _read(add):
        kept[each.network] = each
    return tuple(kept.values())


def attachment_text(attachment: Mapping[str, Any]) -> str:
    """An attachment in the syntax of the flag, such as `name=back,alias=db`."""
    parts = [f"alias={alias}" for alias in attachment["aliases"]]
    parts += [f"ip={ip}" for ip in attachment["ip"]]
    parts += [f"ip6={ip}" for ip in attachment["ip6"]]
    if attachment["mac"]:
        parts.append(f"mac-address={attachment['mac']}")
    parts += [f"driver-opt={key}={each}" for key, each in sorted(attachment["options"].items())]
    name: str = attachment["network"]
    return ",".join((f"name={name}", *parts)) if parts else name


def _read(texts: Iterable[str]) -> tuple[NetworkAttachment, ...]:
    found: dict[str, NetworkAttachment] = {}
    for text in texts:
        one = _attachment(text)
        found[one.network] = one
    return tuple(found.values())


def _attachment(text: str) -> NetworkAttachment:
    if "=" not in text:
        return NetworkAttachment(text)
    lists: dict[str, list[str]] = {key: [] for key in _KEYS}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key not in lists:
            meant = near_miss(key, _KEYS)
            hint = f"did you mean {meant}?" if meant else f"there are {', '.join(_KEYS)}"
            raise click.BadParameter(f"network {text!r} has an unknown key {key!r}; {hint}")
        lists[key].append(value)
    if len(lists["name"]) != 1 or not lists["name"][0]:
        raise click.BadParameter(f"network {text!r} has no name; write name=NAME,alias=NAME")
    return NetworkAttachment(
        lists["name"][0],
        tuple(lists["alias"]),
        tuple(lists["ip"]),
        tuple(lists["ip6"]),
        lists["mac-address"][-1].lower() if lists["mac-address"] else "",
        pairs("driver option", lists["driver-opt"]),
    )


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, text.split(","))) if text else ()
