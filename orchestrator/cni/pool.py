"""Which address an attachment gets; pure.

Addresses go round, so that a freed one is given again only after all others. It also rests for a
while, unless no other is left: whoever still sends to its former owner is not to meet a stranger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from orchestrator.cni.config import NetConf
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.netlink import Address
from orchestrator.cni.records import record


@record
class Pool:
    """The addresses that this host gives out in a network, as numbers.

    An IPv6 address counts as the IPv4 address at the same place of the host's part, so that a pair
    is free only if both are.
    """

    first: int
    last: int
    kept: frozenset[int]
    base: int
    size: int
    subnet6: IPv6Network | None

    def number(self, address: Address) -> int | None:
        """The number of an address of this host's part; None if it is not of it."""
        if isinstance(address, IPv6Address):
            if self.subnet6 is None or address not in self.subnet6:
                return None
            place = int(address) - int(self.subnet6.network_address)
        else:
            place = int(address) - self.base
        return self.base + place if 0 <= place < self.size else None

    def numbers(self, addresses: Collection[Address]) -> set[int]:
        """Those of several."""
        return {found for one in addresses if (found := self.number(one)) is not None}

    def left(self, taken: Collection[int]) -> int:
        """How many addresses there are to give."""
        return self.last - self.first + 1 - sum(self.first <= one <= self.last for one in taken)

    def choose(
        self, taken: Collection[int], resting: Mapping[int, float], cursor: int
    ) -> int | None:
        """The next address after `cursor`; else the one that rests longest; None if all are taken.

        `resting` tells since when, in seconds.
        """
        occupied = self.kept.union(taken)
        for number in self._round(cursor):
            if number not in occupied and number not in resting:
                return number
        rested = [one for one in resting if self.first <= one <= self.last and one not in occupied]
        return min(rested, key=lambda one: (resting[one], one), default=None)

    def _round(self, cursor: int) -> Iterator[int]:
        start = cursor + 1 if self.first <= cursor < self.last else self.first
        yield from range(start, self.last + 1)
        yield from range(self.first, start)


def pool(conf: NetConf) -> Pool:
    """What this host gives out in a network."""
    base = int(conf.subnet.network_address)
    first = max(int(conf.range.network_address), base + 1)
    last = min(int(conf.range.broadcast_address), int(conf.subnet.broadcast_address) - 1)
    found = Pool(
        first=first,
        last=last,
        kept=frozenset(),
        base=base,
        size=conf.subnet.num_addresses,
        subnet6=conf.ipv6.subnet if conf.ipv6 else None,
    )
    kept = found.numbers({conf.gateway, *conf.reserved})
    if conf.ipv6 is not None:
        kept |= found.numbers({conf.ipv6.gateway})
    return Pool(first, last, frozenset(kept), base, found.size, found.subnet6)


def full(conf: NetConf) -> CniError:
    """No address is left, in the user's words."""
    count = (whole := pool(conf)).left(whole.kept)
    return CniError(
        Code.TRY_AGAIN_LATER,
        f"all {count} addresses of {conf.range} are in use on this host: remove containers, or"
        " give the network larger subnets",
    )


def refuse_reserved(conf: NetConf, address: Address) -> None:
    """Raise `CniError` if no container can have this address, whoever asks."""
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
