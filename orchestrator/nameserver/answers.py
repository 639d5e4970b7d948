# SPDX-License-Identifier: Apache-2.0
"""The answer to a question, by the client's networks. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from orchestrator.nameserver.dnswire import (
    Question,
    Record,
    ResponseCode,
    Service,
    Type,
    service_data,
    write_answer,
    write_name,
)
from orchestrator.nameserver.zones import Name, Records

TTL = 1
"""Seconds for which an answer may be cached."""
_MAX_ROTATIONS = 16
"""Rotations of a name's addresses, given in turn (round robin)."""
_OF_A_SERVICE = re.compile(
    r"(?:tasks|\d+|_[^.]+\._(?:tcp|udp)(?:\.tasks)?)\.(?P<below>.+)|(?P<slot>.+)\.\d+"
)
"""Names of a service: `tasks.web`, `3.web`, `_80._tcp.web` and `web.3`."""

Range = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Scope:
    """What a client may resolve: its networks, in the order in which they are searched."""

    networks: tuple[str, ...]
    ranges: tuple[Range, ...]
    """The addresses of these networks."""
    forwards: bool
    """Whether other names may be forwarded."""
    servers: tuple[str, ...] = ()
    """The upstream servers; empty: the host's."""


def answer(records: Records, scope: Scope, question: Question, limit: int) -> tuple[bytes, ...]:
    """The answers, to be given in turn, without the id (the first two bytes); empty if the question
    is to be forwarded. `limit` in bytes."""
    name = records.find(scope.networks, question.name)
    if name is None:
        if scope.forwards and not _is_authoritative_for(records, scope, question.name):
            return ()
        return (write_answer(question, ResponseCode.NXDOMAIN, ttl=TTL, limit=limit),)
    found = list(_answers(name, question.type))
    more = list(_targets(records, scope, name)) if question.type == Type.SRV else []
    orders = min(len(found), _MAX_ROTATIONS) or 1
    step = len(found) / orders
    return tuple(
        write_answer(
            question, ResponseCode.NOERROR, found[cut:] + found[:cut], more, ttl=TTL, limit=limit
        )
        for cut in (int(number * step) for number in range(orders))
    )


def failure(question: Question) -> bytes:
    """The answer if no upstream server replies (SERVFAIL), without the id."""
    return write_answer(
        question, ResponseCode.SERVFAIL, ttl=TTL, limit=question.size, authoritative=False
    )


def _answers(name: Name, asked: int) -> Iterator[Record]:
    if asked in (Type.A, Type.ANY):
        yield from (Record(Type.A, address) for address in name.addresses)
    if asked in (Type.AAAA, Type.ANY):
        yield from (Record(Type.AAAA, address) for address in name.addresses6)
    if asked in (Type.SRV, Type.ANY):
        for port, target in name.services:
            yield Record(Type.SRV, service_data(Service(port, target)))
    if asked in (Type.PTR, Type.ANY):
        yield from (Record(Type.PTR, write_name(target)) for target in name.pointers)


def _targets(records: Records, scope: Scope, name: Name) -> Iterator[Record]:
    """The addresses of SRV targets, which save the client a query."""
    for target in dict.fromkeys(target for _, target in name.services):
        found = records.find(scope.networks, target.lower())
        if found is not None:
            yield from (Record(Type.A, each, target) for each in found.addresses)
            yield from (Record(Type.AAAA, each, target) for each in found.addresses6)


def _is_authoritative_for(records: Records, scope: Scope, text: str) -> bool:
    """Whether a name is never forwarded: it belongs to a service of the client's networks, is a
    name without a dot in another network, or of an address in the client's networks."""
    match = _OF_A_SERVICE.fullmatch(text)
    service = (match["below"] or match["slot"]) if match else ""
    if service and records.find(scope.networks, service) is not None:
        return True
    bare = service or text
    if "." not in bare and records.has(bare):
        return True
    address = _address_of(text)
    return address is not None and any(address in each for each in scope.ranges)


def _address_of(text: str) -> IPv4Address | IPv6Address | None:
    """The address of a name for reverse look-up, or None."""
    labels = text.split(".")[::-1]
    try:
        if labels[:2] == ["arpa", "in-addr"] and len(labels) == 6:
            return IPv4Address(".".join(labels[2:]))
        if labels[:2] == ["arpa", "ip6"] and len(labels) == 34:
            return IPv6Address(int("".join(labels[2:]), 16))
    except ValueError:
        pass
    return None
