"""How much of our nftables tables is in the kernel: rules of each chain, elements of each set.

Read by netlink (include/uapi/linux/netfilter/nf_tables.h), since listing a table as text takes
longer than making it. Nobody edits an element, so numbers tell whether a hand was there.
"""

from __future__ import annotations

import errno
import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from orchestrator.cni.conntrack import NETLINK_NETFILTER
from orchestrator.cni.rtnetlink import ATTRIBUTE, NetlinkSocket, Request, attributes, text

SUBSYSTEM = 10 << 8
GETCHAIN, GETRULE, GETSET, GETSETELEM, GETOBJ = (SUBSYSTEM | kind for kind in (4, 7, 10, 13, 19))
TABLE, SECOND, THIRD = 1, 2, 3  # attributes: of all four the table; then the name, mostly
NFT_SET_ANONYMOUS = 1
FAMILIES = {"inet": 1, "arp": 3, "netdev": 5, "bridge": 7}
HEAD = 4


def counts(tables: Iterable[str]) -> dict[str, int]:
    """By qualified name: `inet orc_balance output` has 1, for example."""
    found: Counter[str] = Counter()
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        for table in tables:
            family, _, name = table.partition(" ")
            head = struct.pack("=BBH", FAMILIES[family], 0, 0)
            for chain in _answers(sock, GETCHAIN, head):
                if _string(chain[TABLE]) == name:
                    found[f"{table} {_string(chain[THIRD])}"] += 0
            for rule in _answers(sock, GETRULE, head + text(TABLE, name)):
                found[f"{table} {_string(rule[SECOND])}"] += 1
            for kept in _answers(sock, GETSET, head + text(TABLE, name)):
                if int.from_bytes(kept.get(THIRD, b""), "big") & NFT_SET_ANONYMOUS:
                    continue
                label = _string(kept[SECOND])
                found[f"{table} {label}"] += 0
                body = head + text(TABLE, name) + text(SECOND, label)
                for elements in _answers(sock, GETSETELEM, body):
                    found[f"{table} {label}"] += _length(elements.get(THIRD, b""))
    return dict(found)


def filled(sets: Iterable[str]) -> list[str]:
    """Those of these sets that have elements, without the cost of listing them."""
    found = []
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        for qualified in sets:
            family, table, name = qualified.split()
            head = struct.pack("=BBH", FAMILIES[family], 0, 0)
            body = head + text(TABLE, table) + text(SECOND, name)
            if any(each.get(THIRD) for each in _answers(sock, GETSETELEM, body)):
                found.append(qualified)
    return found


def names(table: str) -> set[str]:
    """The names of a table's chains and stateful objects (counters)."""
    family, _, name = table.partition(" ")
    head = struct.pack("=BBH", FAMILIES[family], 0, 0)
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        chains = [
            _string(chain[THIRD])
            for chain in _answers(sock, GETCHAIN, head)
            if _string(chain[TABLE]) == name
        ]
        body = head + text(TABLE, name)
        return {*chains, *(_string(each[SECOND]) for each in _answers(sock, GETOBJ, body))}


def deviations(found: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """What there is not in the right number, in words; pure."""
    return [
        f"nftables: {name} has {found[name]} entries instead of {number}"
        if name in found
        else f"nftables: {name} is gone"
        for name, number in sorted(wanted.items())
        if found.get(name) != number
    ]


def _answers(sock: NetlinkSocket, kind: int, body: bytes) -> list[dict[int, bytes]]:
    try:
        return [attributes(answer, HEAD) for answer in sock.dump(Request(kind, body))]
    except OSError as error:
        if error.errno == errno.ENOENT:  # no such table, or not any more
            return []
        raise


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _length(elements: bytes) -> int:
    """How many attributes there are, one after the other."""
    count = offset = 0
    while offset + ATTRIBUTE.size <= len(elements):
        length, _ = ATTRIBUTE.unpack_from(elements, offset)
        if length < ATTRIBUTE.size:
            break
        count += 1
        offset += (length + 3) & ~3
    return count
