"""Which container has which address and which published ports on this host.

One SQLite file, a transaction per change: no address is given out twice, whether fifty processes
ask at once or one is killed half-way. It is written ahead of the kernel's state on ADD and behind
it on DEL, so it never lacks something that exists; `attachment.collect` removes what it has too
much. WAL mode costs no fsync per change: a power failure may lose the last changes, but then the
containers are gone too, and the file is whole.

Addresses go round: a freed one is given again only after all others of the subnet were.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Self

from . import peers
from .config import ANY_ADDRESS, PortMapping
from .errors import CniError, Code

SCHEMA = """
CREATE TABLE IF NOT EXISTS lease (
    network TEXT NOT NULL, address INTEGER NOT NULL, container TEXT NOT NULL, ifname TEXT NOT NULL,
    PRIMARY KEY (network, address), UNIQUE (network, container, ifname)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursor (
    network TEXT PRIMARY KEY, address INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS port (
    host_port INTEGER NOT NULL, protocol TEXT NOT NULL, host_ip INTEGER NOT NULL,
    container_port INTEGER NOT NULL,
    network TEXT NOT NULL, container TEXT NOT NULL, ifname TEXT NOT NULL,
    PRIMARY KEY (host_port, protocol, host_ip)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS port_owner ON port (network, container, ifname);
"""
BUSY_SECONDS = 30.0
OWNER = "network = ? AND container = ? AND ifname = ?"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """One attachment: an interface of a container in a network."""

    network: str
    container: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Lease:
    """What an attachment holds."""

    key: Key
    address: IPv4Address
    ports: tuple[PortMapping, ...]


class Ipam:
    """The host's leases, in `directory`; open while the context lasts."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ipam.db"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = self._open(directory)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _open(self, directory: Path) -> sqlite3.Connection:
        # Turning a new file to WAL does not wait for others who do the same: take turns.
        lock = os.open(directory / "ipam.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            if not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            return db
        finally:
            os.close(lock)

    def _unusable(self, error: Exception) -> CniError:
        return CniError(Code.IO_FAILURE, f"addresses in {self._path}: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def reserve(
        self,
        key: Key,
        subnet: IPv4Network,
        ports: Sequence[PortMapping] = (),
        requested: IPv4Address | None = None,
    ) -> Lease:
        """Give the attachment an address of the subnet and these ports, or nothing at all.

        An attachment that has an address of the subnet keeps it. Raises `CniError`:
        TRY_AGAIN_LATER if all addresses are taken, ADDRESS_IN_USE, PORT_IN_USE.
        """
        owner = (key.network, key.container, key.ifname)
        with self._transaction() as db:
            row = db.execute(f"SELECT address FROM lease WHERE {OWNER}", owner).fetchone()
            address = IPv4Address(row[0]) if row else None
            if address is None or address not in subnet or requested not in (None, address):
                db.execute(f"DELETE FROM lease WHERE {OWNER}", owner)
                address = self._choose(key, subnet, requested)
                db.execute(
                    "INSERT INTO lease (network, address, container, ifname) VALUES (?, ?, ?, ?)",
                    (key.network, int(address), key.container, key.ifname),
                )
            db.execute(f"DELETE FROM port WHERE {OWNER}", owner)
            for port in ports:
                self._claim(key, port)
        return Lease(key, address, tuple(sorted(ports)))

    def _choose(self, key: Key, subnet: IPv4Network, requested: IPv4Address | None) -> IPv4Address:
        first = int(peers.gateway(subnet)) + 1
        last = int(subnet.broadcast_address) - 1
        if requested is not None:
            taken = self._db.execute(
                "SELECT container FROM lease WHERE network = ? AND address = ?",
                (key.network, int(requested)),
            ).fetchone()
            if taken:
                raise CniError(
                    Code.ADDRESS_IN_USE, f"address {requested} is in use by container {taken[0]}"
                )
            if not first <= int(requested) <= last:
                raise CniError(Code.INVALID_CONFIG, f"address {requested} is reserved in {subnet}")
            return requested
        row = self._db.execute(
            "SELECT address FROM cursor WHERE network = ?", (key.network,)
        ).fetchone()
        start = row[0] + 1 if row and first <= row[0] < last else first
        free = self._gap(key.network, start, last)
        if free is None:
            free = self._gap(key.network, first, start - 1)
        if free is None:
            raise CniError(
                Code.TRY_AGAIN_LATER,
                f"all {last - first + 1} addresses of {subnet} are in use on this host: remove"
                " containers, or give the network larger subnets",
            )
        self._db.execute(
            "INSERT INTO cursor (network, address) VALUES (?, ?)"
            " ON CONFLICT (network) DO UPDATE SET address = excluded.address",
            (key.network, free),
        )
        return IPv4Address(free)

    def _gap(self, network: str, low: int, high: int) -> int | None:
        rows = self._db.execute(
            "SELECT address FROM lease WHERE network = ? AND address BETWEEN ? AND ?"
            " ORDER BY address",
            (network, low, high),
        )
        candidate = low
        for (taken,) in rows:
            if taken != candidate:
                break
            candidate += 1
        return candidate if candidate <= high else None

    def _claim(self, key: Key, port: PortMapping) -> None:
        taken = self._db.execute(
            "SELECT container FROM port WHERE host_port = ? AND protocol = ?"
            " AND (host_ip = ? OR host_ip = 0 OR ? = 0) AND NOT (network = ? AND container = ?"
            " AND ifname = ?)",
            (
                port.host_port,
                port.protocol,
                int(port.host_ip),
                int(port.host_ip),
                key.network,
                key.container,
                key.ifname,
            ),
        ).fetchone()
        if taken:
            raise CniError(
                Code.PORT_IN_USE,
                f"port {port} of this host is already published by container {taken[0]}",
            )
        self._db.execute(
            "INSERT INTO port (host_port, protocol, host_ip, container_port, network, container,"
            " ifname) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                port.host_port,
                port.protocol,
                int(port.host_ip),
                port.container_port,
                key.network,
                key.container,
                key.ifname,
            ),
        )

    def release(self, key: Key) -> None:
        """Free what the attachment holds; nothing is fine too."""
        owner = (key.network, key.container, key.ifname)
        with self._transaction() as db:
            db.execute(f"DELETE FROM port WHERE {OWNER}", owner)
            db.execute(f"DELETE FROM lease WHERE {OWNER}", owner)

    def lease(self, key: Key) -> Lease | None:
        """What the attachment holds, or None."""
        for lease in self._select(OWNER, (key.network, key.container, key.ifname)):
            return lease
        return None

    def leases(self, network: str | None = None) -> list[Lease]:
        """What all attachments of a network hold, or of all networks."""
        if network is None:
            return self._select("1", ())
        return self._select("network = ?", (network,))

    def _select(self, where: str, values: tuple[str, ...]) -> list[Lease]:
        try:
            leases = self._db.execute(
                f"SELECT network, container, ifname, address FROM lease WHERE {where}", values
            ).fetchall()
            published = self._db.execute(
                "SELECT network, container, ifname, host_port, container_port, protocol, host_ip"
                f" FROM port WHERE {where}",
                values,
            ).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        ports: dict[Key, list[PortMapping]] = {}
        for network, container, ifname, host_port, container_port, protocol, host_ip in published:
            port = PortMapping(
                host_port,
                container_port,
                protocol,
                IPv4Address(host_ip) if host_ip else ANY_ADDRESS,
            )
            ports.setdefault(Key(network, container, ifname), []).append(port)
        found = []
        for network, container, ifname, address in leases:
            key = Key(network, container, ifname)
            found.append(Lease(key, IPv4Address(address), tuple(sorted(ports.get(key, [])))))
        return found

    def free(self, network: str, subnet: IPv4Network) -> int:
        """How many addresses of the subnet are left."""
        (used,) = self._db.execute(
            "SELECT count(*) FROM lease WHERE network = ? AND address BETWEEN ? AND ?",
            (network, int(subnet.network_address), int(subnet.broadcast_address)),
        ).fetchone()
        return subnet.num_addresses - 3 - int(used)
