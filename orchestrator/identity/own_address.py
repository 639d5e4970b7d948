# SPDX-License-Identifier: Apache-2.0
"""The address of a manager or a node after its host got another one, as by DHCP.

A daemon that runs records the interface of its address. If it starts and the host does not have the
address any more, the only address of that interface takes its place. An operator decides if there
is another number of them, or if the daemon never ran at the address: 'orc cluster advertise' may
have set one that the host gets later.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.identity.host_identity import NodeIdentity, write_identity
from orchestrator.linux.atomicfile import write_file
from orchestrator.linux.host_addresses import (
    HostAddress,
    host_addresses,
    interfaces,
    is_bindable,
)
from orchestrator.model.administration.managers import host_port

log = logging.getLogger(__name__)

RECORD = "address.json"
"""The address at which the daemon last ran, and its interface."""


class AddressLost(Exception):
    """The host does not have the address, and none takes its place.

    The text names the addresses that it has. `candidate` is one that could be chosen; may be empty.
    """

    def __init__(self, text: str, candidate: str) -> None:
        super().__init__(text)
        self.candidate = candidate


def record_address(data_dir: Path, address: str, found: Sequence[HostAddress]) -> None:
    """Record that a daemon runs at an address. No-op if no interface has it, as with addresses
    of loopback. Raises OSError."""
    for each in found:
        if each.address == address:
            text = json.dumps({"address": address, "interface": each.interface}) + "\n"
            path = data_dir / RECORD
            if not path.exists() or path.read_text() != text:
                write_file(path, text)
            return


def recorded_interface(data_dir: Path, address: str) -> str:
    """The interface of an address at which the daemon ran; empty if it never ran there. Raises
    OSError."""
    try:
        record = json.loads((data_dir / RECORD).read_text())
    except (FileNotFoundError, ValueError):
        return ""
    known = isinstance(record, dict) and record.get("address") == address
    return str(record.get("interface", "")) if known else ""


def current_address(data_dir: Path, address: str) -> str:
    """The address, or the one that took its place on this host. Raises AddressLost, OSError."""
    if is_bindable(address):
        return address
    interface = recorded_interface(data_dir, address)
    return replacement(address, interface, host_addresses(), interfaces())


def follow_host(data_dir: Path, identity: NodeIdentity) -> NodeIdentity:
    """The node's identity with an address of this host. A manager that had the node's former
    address is sought at the new one, too. Raises AddressLost, OSError."""
    new = current_address(data_dir, identity.address)
    if new == identity.address:
        return identity
    log.warning(
        "the host has another address; the node has it from now on",
        extra={"was": identity.address, "address": new},
    )
    moved = [
        host_port(new, int(port))
        for host, _, port in (each.rpartition(":") for each in identity.managers)
        if host.strip("[]") == identity.address
    ]
    after = replace(
        identity, address=new, managers=tuple(dict.fromkeys((*moved, *identity.managers)))
    )
    write_identity(data_dir / "node.json", after)
    return after


def replacement(
    address: str, interface: str, found: Sequence[HostAddress], interfaces: Collection[str]
) -> str:
    """The address that takes the place of one that the host has lost.

    `interface` had it, empty if unknown; `interfaces` and `found` are those of the host now. If the
    interface is gone, as on other hardware, the addresses of all others count. Raises AddressLost.
    """
    version = ipaddress.ip_address(address).version
    fitting = [each for each in found if ipaddress.ip_address(each.address).version == version]
    if interface in interfaces:
        fitting = [each for each in fitting if each.interface == interface]
    if interface and len(fitting) == 1:
        return fitting[0].address
    have = ", ".join(f"{each.address} ({each.interface})" for each in found) or "none"
    raise AddressLost(
        f"this host does not have the address {address} any more (it has: {have})",
        fitting[0].address if fitting else "",
    )
