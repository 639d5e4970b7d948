# SPDX-License-Identifier: Apache-2.0
"""IP address management: the choice of an address (pure) and this host's leases, in SQLite.

Addresses are allocated in turn, so that a released one is reused only after all others. It is also
quarantined for a while, unless no other is free: late packets for its former owner should not reach
another container.

Leases are in one SQLite file, with a transaction per change: no address is allocated twice, whether
fifty processes ask at once or one is killed half-way. The file is written before the kernel on ADD
and after it on DEL, so it never lacks an attachment that exists; `attachment.collect` removes
surplus leases. WAL mode needs no fsync per change: a power failure may lose the last changes, but
then the containers are gone too, and the file is consistent.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.fastrecord import TYPE_CHECKING, record
from orchestrator.cni.netconf import NetConf, PortMapping
from orchestrator.cni.netlink import links
from orchestrator.cni.netlink.links import Address

if TYPE_CHECKING:
    from typing import Any, Self


@record
class Pool:
    """The addresses that this host allocates in a network, as numbers.

    An IPv6 address counts as the IPv4 address at the same offset of the host's subnet, so that a
    pair is free only if both are.
    """

    first: int
    last: int
    reserved: frozenset[int]
    base: int
    size: int
    subnet6: IPv6Network | None

    def number(self, address: Address) -> int | None:
        """The number of an address in this host's subnet; None outside."""
        if isinstance(address, IPv6Address):
            if self.subnet6 is None or address not in self.subnet6:
                return None
            offset = int(address) - int(self.subnet6.network_address)
        else:
            offset = int(address) - self.base
        return self.base + offset if 0 <= offset < self.size else None

    def numbers(self, addresses: Collection[Address]) -> set[int]:
        """The numbers of several addresses."""
        return {found for one in addresses if (found := self.number(one)) is not None}

    def available(self, taken: Collection[int]) -> int:
        """The number of addresses that are not `taken`."""
        return self.last - self.first + 1 - sum(self.first <= one <= self.last for one in taken)

    def choose(
        self, taken: Collection[int], quarantined: Mapping[int, float], cursor: int
    ) -> int | None:
        """The next free address after `cursor`, else the longest quarantined; None if all are
        taken.

        `quarantined` has the time of each release, in seconds.
        """
        occupied = self.reserved.union(taken)
        for number in self._round(cursor):
            if number not in occupied and number not in quarantined:
                return number
        released = [
            one for one in quarantined if self.first <= one <= self.last and one not in occupied
        ]
        return min(released, key=lambda one: (quarantined[one], one), default=None)

    def _round(self, cursor: int) -> Iterator[int]:
        start = cursor + 1 if self.first <= cursor < self.last else self.first
        yield from range(start, self.last + 1)
        yield from range(self.first, start)


def pool(conf: NetConf) -> Pool:
    """The pool of this host in a network."""
    base = int(conf.subnet.network_address)
    first = max(int(conf.range.network_address), base + 1)
    last = min(int(conf.range.broadcast_address), int(conf.subnet.broadcast_address) - 1)
    found = Pool(
        first=first,
        last=last,
        reserved=frozenset(),
        base=base,
        size=conf.subnet.num_addresses,
        subnet6=conf.ipv6.subnet if conf.ipv6 else None,
    )
    reserved = found.numbers({conf.gateway, *conf.reserved})
    if conf.ipv6 is not None:
        reserved |= found.numbers({conf.ipv6.gateway})
    return Pool(first, last, frozenset(reserved), base, found.size, found.subnet6)


def exhausted(conf: NetConf) -> CniError:
    """The error for an exhausted pool."""
    count = (whole := pool(conf)).available(whole.reserved)
    return CniError(
        Code.TRY_AGAIN_LATER,
        f"all {count} addresses of {conf.range} are in use on this host: remove containers, or"
        " give the network larger subnets",
    )


def refuse_reserved(conf: NetConf, address: Address) -> None:
    """Raise `CniError` if the address is reserved for hosts."""
    hosts: set[Address] = {
        conf.gateway,
        conf.subnet.network_address,
        conf.subnet.broadcast_address,
        conf.cluster.network_address,
        conf.cluster.broadcast_address,
    }
    if conf.ipv6 is not None:
        hosts |= {conf.ipv6.gateway, conf.ipv6.subnet.network_address}
    if address in hosts:
        raise CniError(Code.INVALID_CONFIG, f"address {address} is reserved in {conf.subnet}")


def as_address(number: int) -> IPv4Address:
    """The reverse of `Pool.number`."""
    return IPv4Address(number)


SCHEMA = """
CREATE TABLE lease (
    network TEXT NOT NULL, address INTEGER NOT NULL, address6 BLOB,
    container TEXT NOT NULL, ifname TEXT NOT NULL,
    mac TEXT NOT NULL, netns TEXT NOT NULL, default_route INTEGER NOT NULL,
    PRIMARY KEY (network, address), UNIQUE (network, container, ifname)
) WITHOUT ROWID;
CREATE UNIQUE INDEX lease6 ON lease (network, address6);
CREATE TABLE released (
    network TEXT NOT NULL, address BLOB NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (network, address)
) WITHOUT ROWID;
CREATE TABLE cursor (
    network TEXT PRIMARY KEY, address INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE port (
    host_port INTEGER NOT NULL, protocol TEXT NOT NULL, host_ip BLOB NOT NULL,
    container_port INTEGER NOT NULL,
    network TEXT NOT NULL, container TEXT NOT NULL, ifname TEXT NOT NULL,
    PRIMARY KEY (host_port, protocol, host_ip)
) WITHOUT ROWID;
CREATE INDEX port_owner ON port (network, container, ifname);
CREATE TABLE network (
    name TEXT PRIMARY KEY, conf TEXT NOT NULL
) WITHOUT ROWID;
"""
FILE = "ipam.db"
BUSY_SECONDS = 30.0
OWNER = "network = ? AND container = ? AND ifname = ?"
ANY = bytes(4)


@record
class Key:
    """One attachment: an interface of a container in a network."""

    network: str
    container: str
    ifname: str


@record
class Lease:
    """The lease of an attachment; `netns` is the path of the container's namespace."""

    key: Key
    address: IPv4Address
    address6: IPv6Address | None
    mac: str
    netns: str
    default_route: bool
    ports: tuple[PortMapping, ...]

    @property
    def addresses(self) -> list[Address]:
        """The IPv4 address, and the IPv6 address if there is one."""
        return [self.address, *([self.address6] if self.address6 else [])]


def since_boot() -> float:
    """Seconds since boot: never set by hand, and the same for all processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ipam:
    """The host's leases, in `directory`; open while the context lasts."""

    def __init__(self, directory: Path, now: Callable[[], float] = since_boot) -> None:
        self._path = directory / FILE
        self._now = now
        self._changes = 0
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._open(directory)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _open(self, directory: Path) -> sqlite3.Connection:
        # Switching a new file to WAL does not wait for processes that do the same: take a lock.
        lock = os.open(directory / "ipam.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                db = self._connect()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_IOERR_SHMSIZE:
                    raise
                db = self._connect(exclusive=True)
            db.execute("PRAGMA synchronous = NORMAL")
            if not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            return db
        finally:
            os.close(lock)

    def _connect(self, *, exclusive: bool = False) -> sqlite3.Connection:
        """Open the file in WAL mode. `exclusive`: until it is closed, no other process can; but it
        needs no memory that processes share (ipam.db-shm), for which a full disk has no room. So
        leases can be read there, and released once there is room."""
        db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            if exclusive:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
        except BaseException:
            db.close()
            raise
        return db

    def _unusable(self, error: Exception) -> CniError:
        return CniError(Code.IO_FAILURE, f"addresses in {self._path}: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        finally:
            self._changes += 1

    def version(self) -> tuple[int, int]:
        """A version that changes with every change by any process."""
        try:
            (others,) = self._db.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return others, self._changes

    # -- addresses and ports ---------------------------------------------------------------------

    def reserve(self, key: Key, conf: NetConf, netns: str = "") -> Lease:
        """Allocate addresses and ports for the attachment as in `conf.runtime_config`, atomically.

        An attachment that has an address in this host's subnet keeps it unless another is
        requested. Raises `CniError`: TRY_AGAIN_LATER if all addresses are taken, ADDRESS_IN_USE,
        PORT_IN_USE.
        """
        runtime_config = conf.runtime_config
        with self._transaction() as db:
            before = self.lease(key)
            db.execute(f"DELETE FROM lease WHERE {OWNER}", _owner(key))
            address, address6 = self._addresses(key, conf, before)
            db.execute(
                "INSERT INTO lease (network, address, address6, container, ifname, mac, netns,"
                " default_route) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.network,
                    int(address),
                    address6.packed if address6 else None,
                    key.container,
                    key.ifname,
                    runtime_config.mac,
                    netns,
                    runtime_config.default_route,
                ),
            )
            db.execute(f"DELETE FROM port WHERE {OWNER}", _owner(key))
            for port in runtime_config.ports:
                self._claim(key, port)
        return Lease(
            key,
            address,
            address6,
            runtime_config.mac,
            netns,
            runtime_config.default_route,
            runtime_config.ports,
        )

    def _addresses(
        self, key: Key, conf: NetConf, before: Lease | None
    ) -> tuple[IPv4Address, IPv6Address | None]:
        runtime_config = conf.runtime_config
        address = runtime_config.address
        if address is None and before is not None and before.address in conf.subnet:
            address = before.address
        if address is None:
            address = self._choose(key, conf)
        address6 = runtime_config.address6
        if address6 is None and before is not None and before.address == address:
            address6 = before.address6
        if conf.ipv6 is None:
            address6 = None
        elif address6 is None or address6 not in conf.ipv6.cluster:
            address6 = conf.twin(address)
        for one in (address, address6):
            if one is not None:
                refuse_reserved(conf, one)
                self._refuse_taken(key, one)
        return address, address6

    def _refuse_taken(self, key: Key, address: Address) -> None:
        column, value = ("address", int(address)) if address.version == 4 else (
            "address6", address.packed
        )  # fmt: skip
        taken = self._db.execute(
            f"SELECT container FROM lease WHERE network = ? AND {column} = ?", (key.network, value)
        ).fetchone()
        if taken:
            raise CniError(
                Code.ADDRESS_IN_USE, f"address {address} is in use by container {taken[0]}"
            )

    def _choose(self, key: Key, conf: NetConf) -> IPv4Address:
        whole = pool(conf)
        horizon = self._now() - conf.quarantine
        self._db.execute(
            "DELETE FROM released WHERE network = ? AND NOT at BETWEEN ? AND ?",
            (key.network, horizon, self._now()),
        )
        quarantined: dict[int, float] = {}
        for packed, at in self._db.execute(
            "SELECT address, at FROM released WHERE network = ?", (key.network,)
        ):
            address = links.address(packed)
            number = whole.number(address) if address is not None else None
            if number is not None:
                quarantined[number] = at
        row = self._db.execute(
            "SELECT address FROM cursor WHERE network = ?", (key.network,)
        ).fetchone()
        taken = whole.numbers(self._held(key.network))
        free = whole.choose(taken, quarantined, row[0] if row else 0)
        if free is None:
            raise exhausted(conf)
        self._db.execute(
            "INSERT INTO cursor (network, address) VALUES (?, ?)"
            " ON CONFLICT (network) DO UPDATE SET address = excluded.address",
            (key.network, free),
        )
        return as_address(free)

    def _held(self, network: str) -> set[Address]:
        held: set[Address] = set()
        for four, six in self._db.execute(
            "SELECT address, address6 FROM lease WHERE network = ?", (network,)
        ):
            held.add(IPv4Address(four))
            if six is not None:
                held.add(IPv6Address(six))
        return held

    def _claim(self, key: Key, port: PortMapping) -> None:
        asked = port.host_ip.packed
        taken = self._db.execute(
            "SELECT container FROM port WHERE host_port = ? AND protocol = ?"
            f" AND (host_ip = ? OR host_ip = ? OR ? = ?) AND NOT ({OWNER})",
            (port.host_port, port.protocol, asked, ANY, asked, ANY, *_owner(key)),
        ).fetchone()
        if taken:
            raise CniError(
                Code.PORT_IN_USE,
                f"port {port} of this host is already published by container {taken[0]}",
            )
        self._db.execute(
            "INSERT INTO port (host_port, protocol, host_ip, container_port, network, container,"
            " ifname) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (port.host_port, port.protocol, asked, port.container_port, *_owner(key)),
        )

    def release(self, key: Key) -> None:
        """Release the attachment's lease, if any. Its addresses are quarantined for a while."""
        with self._transaction() as db:
            for lease in self._select(OWNER, _owner(key)):
                for address in lease.addresses:
                    db.execute(
                        "INSERT OR REPLACE INTO released (network, address, at) VALUES (?, ?, ?)",
                        (key.network, address.packed, self._now()),
                    )
            db.execute(f"DELETE FROM port WHERE {OWNER}", _owner(key))
            db.execute(f"DELETE FROM lease WHERE {OWNER}", _owner(key))

    def lease(self, key: Key) -> Lease | None:
        """The attachment's lease, or None."""
        for lease in self._select(OWNER, _owner(key)):
            return lease
        return None

    def leases(self, network: str | None = None, container: str | None = None) -> list[Lease]:
        """All leases, or those of a network or a container."""
        if network is not None:
            return self._select("network = ?", (network,))
        if container is not None:
            return self._select("container = ?", (container,))
        return self._select("1", ())

    def _select(self, where: str, values: tuple[str, ...]) -> list[Lease]:
        try:
            leases = self._db.execute(
                "SELECT network, container, ifname, address, address6, mac, netns, default_route"
                f" FROM lease WHERE {where}",
                values,
            ).fetchall()
            published = self._db.execute(
                "SELECT network, container, ifname, host_port, container_port, protocol, host_ip"
                f" FROM port WHERE {where}",
                values,
            ).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        ports: dict[Key, list[PortMapping]] = {}
        for network, container, ifname, host_port, container_port, protocol, packed in published:
            host_ip = links.address(packed)
            assert host_ip is not None
            port = PortMapping(host_port, container_port, protocol, host_ip)
            ports.setdefault(Key(network, container, ifname), []).append(port)
        return [_lease(row, ports) for row in leases]

    def free(self, conf: NetConf) -> int:
        """The number of addresses of the network that this host can still allocate."""
        whole = pool(conf)
        return whole.available(whole.reserved | whole.numbers(self._held(conf.name)))

    # -- networks --------------------------------------------------------------------------------

    def networks(self) -> dict[str, str]:
        """The recorded networks of this host: name → configuration as JSON."""
        try:
            return dict(self._db.execute("SELECT name, conf FROM network").fetchall())
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def remember(self, name: str, conf: str | None) -> None:
        """Record a network's configuration; None removes it."""
        try:
            row = self._db.execute("SELECT conf FROM network WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        if (row[0] if row else None) == conf:
            return
        with self._transaction() as db:
            if conf is None:
                db.execute("DELETE FROM network WHERE name = ?", (name,))
                for table in ("released", "cursor"):
                    db.execute(f"DELETE FROM {table} WHERE network = ?", (name,))
            else:
                db.execute(
                    "INSERT OR REPLACE INTO network (name, conf) VALUES (?, ?)", (name, conf)
                )


def _owner(key: Key) -> tuple[str, str, str]:
    return key.network, key.container, key.ifname


def _lease(row: tuple[Any, ...], ports: dict[Key, list[PortMapping]]) -> Lease:
    network, container, ifname, address, address6, mac, netns, default_route = row
    key = Key(network, container, ifname)
    return Lease(
        key=key,
        address=IPv4Address(address),
        address6=IPv6Address(address6) if address6 is not None else None,
        mac=mac,
        netns=netns,
        default_route=bool(default_route),
        ports=tuple(sorted(ports.get(key, []), key=lambda port: port.order)),
    )
