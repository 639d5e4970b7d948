# SPDX-License-Identifier: Apache-2.0
"""This host's WireGuard tunnels in the kernel: devices, peers, routes.

Level-triggered. Private keys are in a file that only root can read, and are given to the kernel
only; other hosts get the public keys. Only the time since an old key was last used is kept in
memory: a new process measures it again.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address, IPv6Interface
from pathlib import Path
from typing import Any

from orchestrator.cni import jsonfields
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import tunnelguard
from orchestrator.cni.firewall.networkfirewall import GONE
from orchestrator.cni.firewall.nftables import TABLE, Nftables, NftError, failed
from orchestrator.cni.firewall.tunnelguard import DEVICES, PREFIX
from orchestrator.cni.jsonfields import invalid
from orchestrator.cni.netlink import devices, routing, wireguard
from orchestrator.cni.netlink import links as netlink
from orchestrator.cni.netlink.links import Link
from orchestrator.cni.netlink.netlinksocket import NetlinkError, RouteSocket
from orchestrator.cni.netlink.routing import RouteEntry
from orchestrator.cni.netlink.wireguard import Device, Session, WireGuard
from orchestrator.cni.overlay import tunnelkeys, vxlan
from orchestrator.cni.overlay.tunnelkeys import Host, OwnKey, RemoteKey, address_of
from orchestrator.linux.atomicfile import write_file

IPV6 = Path("/proc/sys/net/ipv6/conf")
FILE = "tunnel.json"
RULES = "rules of encrypted networks"
NO_WIREGUARD = (
    "this kernel has no WireGuard: load the module wireguard, or use a kernel built with"
    " CONFIG_WIREGUARD"
)
NO_IPV6 = "this kernel has no IPv6 (ipv6.disable=1), which tunnels between nodes need"


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """The desired tunnels of this host.

    `rotation` is the number of the newest rotation order, `max_age` the seconds after which a key
    is replaced anyway (0: never).
    """

    address: IPv4Address
    rotation: int
    max_age: float
    hosts: tuple[Host, ...]


def parse(raw: Mapping[str, Any]) -> TunnelConfig:
    """Validate the agent's request; raises `CniError`."""
    return TunnelConfig(
        address=jsonfields.address4(raw.get("address"), "address"),
        rotation=jsonfields.integer(raw.get("rotation", 0), "rotation", 0, 1 << 62),
        max_age=float(raw.get("mostAge", 0)),
        hosts=tuple(
            Host(
                jsonfields.address4(entry.get("address"), "hosts.address"),
                tuple(_key(key) for key in jsonfields.mappings(entry.get("keys"), "hosts.keys")),
            )
            for entry in jsonfields.mappings(raw.get("hosts"), "hosts")
        ),
    )


def _key(raw: Mapping[str, Any]) -> RemoteKey:
    public = jsonfields.text(raw, "public")
    try:
        wireguard.decode_key(public)
    except ValueError as error:
        raise invalid(f"hosts.keys: {error}") from error
    return RemoteKey(public, jsonfields.integer(raw.get("port"), "hosts.keys.port", 1, 65535))


def unsupported_reason() -> str:
    """Why this kernel does not support tunnels, for the user; empty if it does."""
    if not WireGuard().present:
        return NO_WIREGUARD
    return "" if IPV6.exists() else NO_IPV6


class WireGuardTunnels:
    """This host's end of all its tunnels."""

    def __init__(self, data_dir: Path, sock: RouteSocket, nft: Nftables) -> None:
        self._file = data_dir / FILE
        self._sock = sock
        self._nft = nft
        self._wireguard: WireGuard | None = None
        self._received: tuple[int, float] = 0, 0.0
        """Bytes received on the older key's device, and the time of the last increase."""

    def _kernel(self) -> WireGuard:
        """Raises `CniError` without support for tunnels."""
        if self._wireguard is None:
            if why := unsupported_reason():
                raise CniError(Code.KERNEL_LACKS, why)
            self._wireguard = WireGuard()
        return self._wireguard

    def keys(self) -> list[dict[str, Any]]:
        """The public keys of this host's devices, the oldest first."""
        kept = self._keys()
        return _public_keys(
            [key for key in kept if netlink.get_link(self._sock, key.device) is not None]
        )

    def apply(self, wanted: TunnelConfig) -> dict[str, Any]:
        """Ensure these tunnels exist, and report them: the keys of this host, the oldest first;
        each other host's address inside the tunnels; the state of each tunnel. Raises
        `CniError`."""
        self._kernel()
        try:
            hosts = [str(host.address) for host in wanted.hosts]
            known = ", ".join(sorted({str(wanted.address), *hosts}))
            self._nft.ensure(RULES, f"{tunnelguard.BASE}add element {TABLE} hosts {{ {known} }}\n")
        except NftError as error:
            raise failed(RULES, error) from error
        mtu = vxlan.underlay(self._sock, wanted.address).mtu - wireguard.OVERHEAD
        keys = self._keys()
        if tunnelkeys.rotation_due(keys, wanted.rotation, wanted.max_age, time.time()):
            keys = self._add_key(keys, wanted.rotation, mtu)
        links = {key.slot: self._ensure_device(key, mtu) for key in keys}
        devices = self._connect(keys, wanted.hosts)
        self._ensure_routes(keys, wanted.hosts, devices, links)
        if tunnelkeys.can_retire(keys, self._silence(keys, devices), time.time()):
            keys = keys[1:]
            self._save(keys)
        self._remove_all_but({key.device for key in keys})
        return _report(keys, wanted.hosts, devices)

    def remove(self) -> None:
        """Remove all tunnels; the keys are kept."""
        self._remove_all_but(frozenset())
        self._nft.doubt(RULES)
        for script in tunnelguard.REMOVAL:
            try:
                self._nft.run(script)
            except NftError as error:
                if GONE not in str(error):
                    raise failed(RULES, error) from error

    def _remove_all_but(self, kept: frozenset[str] | set[str]) -> None:
        for name in DEVICES:
            if name not in kept and (link := netlink.get_link(self._sock, name)) is not None:
                netlink.delete_link(self._sock, link.index)

    # -- keys ------------------------------------------------------------------------------------

    def _keys(self) -> tuple[OwnKey, ...]:
        try:
            return tuple(OwnKey(**entry) for entry in json.loads(self._file.read_text())["keys"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CniError(
                Code.IO_FAILURE,
                f"the keys of this node's tunnels cannot be read: remove {self._file} to create"
                " new ones",
                repr(error),
            ) from error

    def _save(self, keys: Sequence[OwnKey]) -> None:
        write_file(self._file, json.dumps({"keys": [asdict(key) for key in keys]}))

    def _add_key(self, keys: tuple[OwnKey, ...], rotation: int, mtu: int) -> tuple[OwnKey, ...]:
        """Create a key, in the kernel and on disk; return all keys."""
        private = wireguard.encode_key(os.urandom(32))
        key = OwnKey(tunnelkeys.free_slot(keys), "", private, time.time(), rotation)
        link = self._ensure_link(key.device, mtu)
        self._set_key(key, link)
        device = self._kernel().device(key.device)
        if device is None or not device.public:
            raise CniError(Code.TRY_AGAIN_LATER, f"{key.device} vanished while being created")
        keys = (*keys, replace(key, public=device.public))
        self._save(keys)
        self._received = 0, time.monotonic()
        return keys

    # -- devices ---------------------------------------------------------------------------------

    def _ensure_device(self, key: OwnKey, mtu: int) -> Link:
        link = self._ensure_link(key.device, mtu)
        device = self._kernel().device(key.device)
        if device is None or (device.public, device.port) != (key.public, key.port):
            self._set_key(key, link)
        if not link.up or link.mtu != mtu:
            try:
                self._sock.execute(netlink.link_request(link.index, mtu=mtu))
            except NetlinkError as error:
                raise _refused(key, error) from error
        setting = IPV6 / key.device / "disable_ipv6"
        if setting.read_text().strip() != "0":
            setting.write_text("0")
        address = IPv6Interface((address_of(key.public), 128))
        netlink.ensure_addresses(self._sock, link.index, {address}, no_prefix_route=True)
        return link

    def _ensure_link(self, name: str, mtu: int) -> Link:
        link = netlink.get_link(self._sock, name)
        if link is not None and link.kind != "wireguard":
            netlink.delete_link(self._sock, link.index)
            link = None
        if link is None:
            devices.create_wireguard(self._sock, name, mtu)
            link = netlink.get_link(self._sock, name)
        if link is None:
            raise CniError(Code.TRY_AGAIN_LATER, f"{name} vanished while being created")
        return link

    def _set_key(self, key: OwnKey, link: Link) -> None:
        try:
            self._kernel().set_key(link.name, base64.b64decode(key.private), key.port)
        except NetlinkError as error:
            raise _refused(key, error) from error

    # -- peers and routes ------------------------------------------------------------------------

    def _connect(self, keys: Sequence[OwnKey], hosts: Sequence[Host]) -> dict[int, Device]:
        """Ensure the devices' peers; return the devices by slot, as they were before."""
        found = {key.slot: self._kernel().device(key.device) for key in keys}
        devices = {slot: device for slot, device in found.items() if device is not None}
        now = time.time()
        wanted = tunnelkeys.peers(keys, hosts, _handshakes(devices), now)
        for slot, device in devices.items():
            put, drop = tunnelkeys.difference(wanted[slot], device, now)
            self._kernel().put(DEVICES[slot], put)
            self._kernel().drop(DEVICES[slot], drop)
        return devices

    def _ensure_routes(
        self,
        keys: Sequence[OwnKey],
        hosts: Sequence[Host],
        devices: Mapping[int, Device],
        links: Mapping[int, Link],
    ) -> None:
        wanted: dict[int, set[RouteEntry]] = {link.index: set() for link in links.values()}
        for public, key in tunnelkeys.egress_keys(
            keys, hosts, _handshakes(devices), time.time()
        ).items():
            network = netlink.with_prefix(address_of(public), 128).network
            wanted[links[key.slot].index].add(RouteEntry(network, None, address_of(key.public)))
        for index, entries in wanted.items():
            missing = entries - set(routing.routes(self._sock, index))
            # Replaces a route via the other device.
            self._sock.execute(*[routing.route_request(index, entry) for entry in missing])
        for index, entries in wanted.items():
            for entry in set(routing.routes(self._sock, index)) - entries:
                if entry.destination.subnet_of(PREFIX):  # type: ignore[arg-type]
                    stale = routing.route_request(index, entry, remove=True)
                    for outcome in self._sock.attempt([stale]):
                        if outcome is not None and outcome.errno not in vxlan.GONE:
                            raise outcome

    def _silence(self, keys: Sequence[OwnKey], devices: Mapping[int, Device]) -> float:
        """Seconds since the older key's device last received anything."""
        device = devices.get(keys[0].slot)
        received = sum(session.received for session in device.sessions) if device else 0
        if received != self._received[0] or not self._received[1]:
            self._received = received, time.monotonic()
        return time.monotonic() - self._received[1]


def _refused(key: OwnKey, error: NetlinkError) -> CniError:
    if error.errno == errno.EADDRINUSE:
        return CniError(
            Code.PORT_IN_USE,
            f"UDP port {key.port} of this host, which its tunnel needs, is in use (see 'ss -ulnp')",
            str(error),
        )
    return CniError(Code.IO_FAILURE, f"{key.device}: {error.strerror}", str(error))


def _handshakes(devices: Mapping[int, Device]) -> dict[tuple[int, str], float]:
    return {
        (slot, session.peer.public): session.handshake
        for slot, device in devices.items()
        for session in device.sessions
        if session.handshake
    }


def _public_keys(keys: Sequence[OwnKey]) -> list[dict[str, Any]]:
    return [{"public": key.public, "port": key.port} for key in keys]


def _report(
    keys: Sequence[OwnKey], hosts: Sequence[Host], devices: Mapping[int, Device]
) -> dict[str, Any]:
    handshakes, now = _handshakes(devices), time.time()
    reached = {
        str(host.address): str(
            address_of(tunnelkeys.active_tunnel(keys, host, handshakes, now)[1].public)
        )
        for host in hosts
        if host.keys
    }
    whose = {key.public: str(host.address) for host in hosts for key in host.keys}
    return {
        "keys": _public_keys(keys),
        "hosts": reached,
        "sessions": [
            _session(key, session, whose[session.peer.public])
            for key in keys
            if key.slot in devices
            for session in devices[key.slot].sessions
            if session.peer.public in whose
        ],
    }


def _session(key: OwnKey, session: Session, address: str) -> dict[str, Any]:
    return {
        "address": address,
        "device": key.device,
        "handshake": session.handshake,
        "received": session.received,
        "sent": session.sent,
    }
