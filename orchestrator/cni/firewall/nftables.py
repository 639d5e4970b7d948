# SPDX-License-Identifier: Apache-2.0
"""nftables: changes through libnftables (ctypes), counts of rules and elements through netlink.

libnftables (Debian: libnftables1) is the library behind the `nft` command and takes the same
language. A change takes 0.04 ms; starting `nft` takes 2 ms. Every script is one transaction. The
kernel numbers transactions (generation id), so a process that made all of them since knows, in 0.01
ms, that a script is still in force.

Tables are counted, not listed: listing a table as text takes longer than creating it
(include/uapi/linux/netfilter/nf_tables.h). No element is edited in place, so the number of elements
tells whether a table was changed by hand.
"""

from __future__ import annotations

import ctypes
import errno
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping

from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import TYPE_CHECKING
from orchestrator.cni.netlink.conntrack import NETLINK_NETFILTER
from orchestrator.cni.netlink.netlinksocket import (
    ATTRIBUTE,
    NetlinkSocket,
    Request,
    attributes,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable


LIBRARY = "libnftables.so.1"
GET_GENERATION = 10 << 8 | 16  # include/uapi/linux/netfilter/nf_tables.h
NFTA_GEN_ID = 1
HEAD = struct.pack("=BBH", 0, 0, 0)
TABLE = "inet orc"
"""The name of our table for networks in all scripts."""
ARP_TABLE = "arp orc"
BRIDGE_TABLE = "bridge orc"
"""Our tables for frames that are not IP; see `antispoofing`."""
TABLES = (TABLE, ARP_TABLE, BRIDGE_TABLE)
NAMED = re.compile(r"\b(inet|arp|bridge) orc\b")


class NftError(Exception):
    """A script failed; the message is that of libnftables."""


def failed(what: str, error: NftError) -> CniError:
    """The error for a failed script; the message begins with `what` it configures."""
    if "not supported" in str(error):
        return CniError(
            Code.KERNEL_LACKS,
            f"{what}: this kernel lacks nftables modules (nf_tables, nft_nat, nft_masq, nft_fib)",
            str(error),
        )
    first = str(error).partition("\n")[0]
    return CniError(Code.IO_FAILURE, f"{what}: {first}", str(error))


class Nftables:
    """A libnftables context, for the network namespace of the process.

    `table` replaces `TABLE` in scripts, and its name that of the tables of other families: the
    agent and the CNI command have separate leases and rules, so that neither removes the other's.
    """

    def __init__(self, table: str = TABLE) -> None:
        self._table = table
        self._name = table.split()[1]
        try:
            self._lib = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CniError(
                Code.IO_FAILURE,
                f"{LIBRARY} is missing: install nftables (Debian package libnftables1)",
                str(error),
            ) from error
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        self._lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for name in ("output", "error"):
            getattr(self._lib, f"nft_ctx_buffer_{name}").argtypes = [ctypes.c_void_p]
            getter = getattr(self._lib, f"nft_ctx_get_{name}_buffer")
            getter.argtypes = [ctypes.c_void_p]
            getter.restype = ctypes.c_char_p
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise CniError(Code.IO_FAILURE, "libnftables could not be initialised")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._generations = NetlinkSocket(NETLINK_NETFILTER)
        self._trusted = -1
        self._in_force: dict[str, str] = {}

    def ensure(self, subject: str, script: str, elements: Callable[[], str] | None = None) -> None:
        """Run a script with the desired state of a subject, unless it is in force: it was the last
        one for the subject, and only this object has changed anything since.

        `elements` returns more of the script, which later changes keep up to date: it runs in the
        same transaction, but is not compared. Raises `NftError`.
        """
        if self._in_force.get(subject) == script and self._generation() == self._trusted:
            return
        self.run(script + (elements() if elements is not None else ""))
        self._in_force[subject] = script

    def holds(self, subject: str) -> bool:
        """Whether the last script of a subject is in force; see `ensure`."""
        return subject in self._in_force and self._generation() == self._trusted

    def doubt(self, subject: str) -> None:
        """Other scripts change a subject: its next `ensure` runs again."""
        self._in_force.pop(subject, None)

    def doubt_all(self) -> None:
        """A script affects all subjects: `ensure` runs again for each."""
        self._in_force.clear()

    def run(self, script: str) -> str:
        """Run a script as one transaction; return what it prints; raises `NftError`."""
        before = self._generation()
        if before != self._trusted:
            self._in_force.clear()
        try:
            return self._run(script)
        finally:
            after = self._generation()
            if after - before > 1:
                self._in_force.clear()  # another process changed something meanwhile
            self._trusted = after

    def qualified(self, script: str) -> str:
        """A script or name with the actual names of our tables."""
        return script if self._table == TABLE else NAMED.sub(rf"\1 {self._name}", script)

    def _generation(self) -> int:
        answer = attributes(self._generations.get(Request(GET_GENERATION, HEAD)), len(HEAD))
        return int.from_bytes(answer[NFTA_GEN_ID], "big")

    def _run(self, script: str) -> str:
        text = self.qualified(script).encode()
        status = self._lib.nft_run_cmd_from_buffer(self._context, text)
        printed: bytes = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        error: bytes = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            raise NftError(error.decode(errors="replace").strip())
        return printed.decode(errors="replace")


SUBSYSTEM = 10 << 8
GETCHAIN, GETRULE, GETSET, GETSETELEM, GETOBJ = (SUBSYSTEM | kind for kind in (4, 7, 10, 13, 19))
ATTRIBUTE_TABLE, ATTRIBUTE_SECOND, ATTRIBUTE_THIRD = (
    1,
    2,
    3,
)  # attributes: of all four the table; then the name, mostly
NFT_SET_ANONYMOUS = 1
FAMILIES = {"inet": 1, "arp": 3, "netdev": 5, "bridge": 7}
NFGENMSG_SIZE = 4


def counts(tables: Iterable[str]) -> dict[str, int]:
    """Rules of chains and elements of named sets, by qualified name (`inet orc_balance output`)."""
    found: Counter[str] = Counter()
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        for table in tables:
            family, _, name = table.partition(" ")
            head = struct.pack("=BBH", FAMILIES[family], 0, 0)
            for chain in _answers(sock, GETCHAIN, head):
                if _string(chain[ATTRIBUTE_TABLE]) == name:
                    found[f"{table} {_string(chain[ATTRIBUTE_THIRD])}"] += 0
            for rule in _answers(sock, GETRULE, head + text(ATTRIBUTE_TABLE, name)):
                found[f"{table} {_string(rule[ATTRIBUTE_SECOND])}"] += 1
            for kept in _answers(sock, GETSET, head + text(ATTRIBUTE_TABLE, name)):
                if int.from_bytes(kept.get(ATTRIBUTE_THIRD, b""), "big") & NFT_SET_ANONYMOUS:
                    continue
                label = _string(kept[ATTRIBUTE_SECOND])
                found[f"{table} {label}"] += 0
                body = head + text(ATTRIBUTE_TABLE, name) + text(ATTRIBUTE_SECOND, label)
                for elements in _answers(sock, GETSETELEM, body):
                    found[f"{table} {label}"] += _length(elements.get(ATTRIBUTE_THIRD, b""))
    return dict(found)


def filled(sets: Iterable[str]) -> list[str]:
    """The sets that have elements, without the cost of listing them."""
    found = []
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        for qualified in sets:
            family, table, name = qualified.split()
            head = struct.pack("=BBH", FAMILIES[family], 0, 0)
            body = head + text(ATTRIBUTE_TABLE, table) + text(ATTRIBUTE_SECOND, name)
            if any(each.get(ATTRIBUTE_THIRD) for each in _answers(sock, GETSETELEM, body)):
                found.append(qualified)
    return found


def names(table: str) -> set[str]:
    """The names of a table's chains and stateful objects (counters)."""
    family, _, name = table.partition(" ")
    head = struct.pack("=BBH", FAMILIES[family], 0, 0)
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        chains = [
            _string(chain[ATTRIBUTE_THIRD])
            for chain in _answers(sock, GETCHAIN, head)
            if _string(chain[ATTRIBUTE_TABLE]) == name
        ]
        body = head + text(ATTRIBUTE_TABLE, name)
        return {
            *chains,
            *(_string(each[ATTRIBUTE_SECOND]) for each in _answers(sock, GETOBJ, body)),
        }


def deviations(found: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """Chains and sets with a wrong number of entries, for the user; pure."""
    return [
        f"nftables: {name} has {found[name]} entries instead of {number}"
        if name in found
        else f"nftables: {name} is gone"
        for name, number in sorted(wanted.items())
        if found.get(name) != number
    ]


def _answers(sock: NetlinkSocket, kind: int, body: bytes) -> list[dict[int, bytes]]:
    try:
        return [attributes(answer, NFGENMSG_SIZE) for answer in sock.dump(Request(kind, body))]
    except OSError as error:
        if error.errno == errno.ENOENT:  # no such table
            return []
        raise


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _length(elements: bytes) -> int:
    """The number of attributes in a sequence."""
    count = offset = 0
    while offset + ATTRIBUTE.size <= len(elements):
        length, _ = ATTRIBUTE.unpack_from(elements, offset)
        if length < ATTRIBUTE.size:
            break
        count += 1
        offset += (length + 3) & ~3
    return count
