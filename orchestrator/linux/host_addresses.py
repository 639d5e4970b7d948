# SPDX-License-Identifier: Apache-2.0
"""The IP addresses of this host's network namespace, and which of them a socket can be bound to.

Read without netlink sockets, which the unit of the manager does not allow. Sources: netdevice(7);
`net/ipv6/addrconf.c` of Linux for `/proc/net/if_inet6`.
"""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

SIOCGIFCONF = 0x8912
_REQUEST = struct.Struct("16sHH4s16x")
"""`struct ifreq` with a `sockaddr_in`: label, family, port, address."""
_CONFIGURATION = struct.Struct("iP")
"""`struct ifconf`: length and place of the requests."""

IFA_F_TEMPORARY, IFA_F_DEPRECATED, IFA_F_TENTATIVE = 0x01, 0x20, 0x40
_UNSTEADY = IFA_F_TEMPORARY | IFA_F_DEPRECATED | IFA_F_TENTATIVE

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of this host."""

    interface: str
    address: str


def is_bindable(address: str) -> bool:
    """Whether a daemon can listen at an address: it is one of this host's."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def interfaces() -> set[str]:
    """Names of the network interfaces."""
    return {name for _, name in socket.if_nameindex()}


def host_addresses() -> list[HostAddress]:
    """The addresses that other hosts can reach: none of loopback or of one link only, and no
    temporary ones. Raises OSError."""
    found = [*_ipv4(), *_ipv6(Path("/proc/net/if_inet6"))]
    return [each for each in found if _reachable(ipaddress.ip_address(each.address))]


def _reachable(address: Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def _ipv4() -> list[HostAddress]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        size = 64 * _REQUEST.size
        while True:
            buffer = array.array("B", bytes(size))
            asked = _CONFIGURATION.pack(size, buffer.buffer_info()[0])
            filled, _ = _CONFIGURATION.unpack(fcntl.ioctl(probe, SIOCGIFCONF, asked))
            if filled < size:
                break
            size *= 2  # there may be more than fit
    return [
        # A label may be the interface's name with a suffix.
        HostAddress(label.rstrip(b"\0").decode().partition(":")[0], socket.inet_ntoa(address))
        for label, _, _, address in _REQUEST.iter_unpack(buffer.tobytes()[:filled])
    ]


def _ipv6(listing: Path) -> list[HostAddress]:
    try:
        lines = listing.read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []
    found = []
    for line in lines:
        digits, _, _, _, flags, interface = line.split()
        if not int(flags, 16) & _UNSTEADY:
            address = str(ipaddress.IPv6Address(bytes.fromhex(digits)))
            found.append(HostAddress(interface, address))
    return found
