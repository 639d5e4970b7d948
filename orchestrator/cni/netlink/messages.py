# SPDX-License-Identifier: Apache-2.0
"""Netlink messages by pyroute2, whose only importer this is: requests to send, answers to read.

The message classes know the kernel's formats; `netlinksocket` sends what they encode. pyroute2's
own sockets are not used: they run an event loop for each call, and give one outcome for a batch,
where callers here need the outcome of each request and the kernel's explanation of it.

The import takes 0.2 s and 19 MB of memory. The agent's helper does it once, when it starts; the
server of `orc-cni` does it for the first network that it sets up. To connect a container it does
not need it: see `links` for what is encoded by hand, and why.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from pyroute2.netlink import ctrlmsg
from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.generic.wireguard import wgmsg
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from orchestrator.cni.netlink.netlinksocket import HEADER, NetlinkError, Request

__all__ = ["CONTROL", "LINK", "NAMESPACE", "ROUTE", "RULE", "WIREGUARD", "parsed", "request"]

LINK, ROUTE, RULE, NAMESPACE = ifinfmsg, rtmsg, fibmsg, nsidmsg
CONTROL, WIREGUARD = ctrlmsg, wgmsg
Attributes = Iterable[tuple[str, Any]]


def request(
    message: Any,
    kind: int,
    fields: Mapping[str, Any],
    attributes: Attributes = (),
    flags: int = 0,
) -> Request:
    """A request of a type (`kind`), with a message's fixed fields and attributes, by their names in
    pyroute2."""
    made = message()
    for name, value in fields.items():
        made[name] = value
    made["attrs"] = list(attributes)
    made.encode()
    return Request(kind, bytes(made.data[HEADER.size :]), flags)


def parsed(message: Any, body: bytes) -> Any:
    """An answer: fields by index, attributes by `get_attr`. Raises NetlinkError."""
    found = message(HEADER.pack(HEADER.size + len(body), 0, 0, 0, 0) + body)
    try:
        found.decode()
    except (NetlinkDecodeError, struct.error) as error:
        raise NetlinkError(
            errno.EBADMSG, f"the kernel's answer is not understood: {error}"
        ) from error
    return found
