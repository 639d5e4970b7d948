# SPDX-License-Identifier: Apache-2.0
"""Netlink messages by pyroute2, whose only importer this is: requests to send, answers to read.

The message classes know the kernel's formats; `netlinksocket` sends what they encode. pyroute2's
own sockets are not used: they run an event loop for each call, and give one outcome for a batch,
where callers here need the outcome of each request and the kernel's explanation of it.

Only its message classes are loaded, which takes 0.04 s and 2.5 MiB. pyroute2's package, when it is
initialised, imports all of its sockets and databases: 0.2 s and 19 MiB. The message class of
WireGuard needs asyncio, 8 MiB more, and is loaded on first use. Connecting a container needs none
of this: see `links` for what is encoded by hand, and why.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec, module_from_spec
from typing import Any

from orchestrator.cni.netlink.netlinksocket import HEADER, NetlinkError, Request

__all__ = ["CONTROL", "LINK", "NAMESPACE", "ROUTE", "RULE", "parsed", "request", "wireguard"]


@contextmanager
def _uninitialised(package: str) -> Iterator[None]:
    """Import modules of a package without the package's own `__init__`.

    A later import of the package runs it as usual.
    """
    spec = find_spec(package)
    if package in sys.modules or spec is None:
        yield
        return
    sys.modules[package] = module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[package]


with _uninitialised("pyroute2"):
    from pyroute2.netlink import ctrlmsg
    from pyroute2.netlink.exceptions import NetlinkDecodeError
    from pyroute2.netlink.rtnl.fibmsg import fibmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.nsidmsg import nsidmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

CONTROL, LINK, ROUTE, RULE, NAMESPACE = ctrlmsg, ifinfmsg, rtmsg, fibmsg, nsidmsg
Attributes = Iterable[tuple[str, Any]]


@cache
def wireguard() -> Any:
    """The message class of WireGuard."""
    with _uninitialised("pyroute2"):
        from pyroute2.netlink.generic.wireguard import wgmsg
    return wgmsg


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
