# SPDX-License-Identifier: Apache-2.0
"""This host's endpoint table: applied to the kernel, repaired, changed by differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from orchestrator.cni.balancing import ingress, policyrules, servicerules, staleflows
from orchestrator.cni.balancing.endpointtable import Key, Network, Policy, Service, Table
from orchestrator.cni.balancing.ingress import RemoteNodes
from orchestrator.cni.balancing.staleflows import Obsolete
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import nftables, ruleset
from orchestrator.cni.firewall.nftables import Nftables, NftError, failed
from orchestrator.cni.firewall.ruleset import NOTHING, Part, Ruleset
from orchestrator.cni.netlink import conntrack, links
from orchestrator.cni.netlink.netlinksocket import RouteSocket

WHAT = "balanced services"


@dataclass(slots=True)
class _State:
    """What was applied."""

    revision: int = 0
    services: dict[Key, Service] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    devices: frozenset[str] = frozenset()
    abroad: dict[str, RemoteNodes] = field(default_factory=dict)
    answering: dict[str, set[Key]] = field(default_factory=lambda: defaultdict(set))
    """Network → those of its services to which a published port of another node may lead here."""
    rules: Ruleset = field(default_factory=Ruleset)


class Balancer:
    """Owns our tables for services in the kernel of this host, while the process lives.

    What it remembers is only to find what a change changes: after a failure it knows nothing, asks
    for the whole table, and replaces what is there in one transaction.
    """

    def __init__(self) -> None:
        self._state: _State | None = None

    def apply(self, sock: RouteSocket, nft: Nftables, table: Table) -> None:
        """Bring the kernel to the table.

        Raises `CniError`: TRY_AGAIN_LATER if the table is a difference to one that is not here.
        """
        state = self._state
        asked = table
        if table.base is None:
            table = _difference(state or _State(), table)
        elif state is None or state.revision != table.base:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"the endpoint table of revision {table.base} is not here"
            )
        known, self._state = state is not None, None
        state = state or _State()
        before = list(_named(state, table))
        script = _advance(sock, state, table)
        try:
            if not known or not state.networks:
                nft.run(state.rules.script())
            else:
                _run(nft, script, state.rules, check=asked.base in (None, asked.revision))
        except NftError as error:
            raise failed(WHAT, error) from error
        answering = {id_ for id_, services in state.answering.items() if services}
        ingress.ensure(sock, state.abroad.values(), answering)
        _forget(state, before if known else None, table)
        self._state = state

    def deviations(self) -> list[str]:
        """What of the rules is not in the kernel as it was put there; none if nothing was."""
        if self._state is None:
            return []
        return nftables.deviations(nftables.counts(ruleset.TABLES), self._state.rules.counts())


def _run(nft: Nftables, script: str, rules: Ruleset, *, check: bool) -> None:
    """Run a script; replace everything if the kernel does not have what it stands on."""
    try:
        if script:
            nft.run(script)
        repaired = not check or nftables.counts(ruleset.TABLES) == rules.counts()
    except NftError:
        repaired = False  # our tables were changed by hand
    if not repaired:
        nft.run(rules.script())


def _difference(state: _State, table: Table) -> Table:
    """A whole table as a change of the state; pure."""
    wanted = {service.key for service in table.services}
    return Table(
        revision=table.revision,
        base=state.revision,
        services=tuple(
            service for service in table.services if state.services.get(service.key) != service
        ),
        removed=tuple(state.services.keys() - wanted),
        networks=table.networks or (),
        policies=table.policies or (),
    )


def _named(state: _State, table: Table) -> Iterable[Service]:
    """The services that the table is about, as they are now."""
    for key in (*(service.key for service in table.services), *table.removed):
        if (service := state.services.get(key)) is not None:
            yield service


def _advance(sock: RouteSocket, state: _State, table: Table) -> str:
    """Change the state; return the script that takes the kernel along."""
    networks = state.networks
    if table.networks is not None:
        networks = {network.id: network for network in table.networks}
    policies = state.policies if table.policies is None else table.policies
    devices = frozenset(
        network.device
        for network in networks.values()
        if network.device and links.get_link(sock, network.device) is not None
    )
    dirty = {service.key for service in table.services} | set(table.removed)
    for service in table.services:
        state.services[service.key] = service
    for key in table.removed:
        state.services.pop(key, None)

    abroad = {
        network.id: others
        for network in networks.values()
        if (others := RemoteNodes.of(sock, network, state.abroad.get(network.id))) is not None
    }
    moved = {
        id_
        for id_ in state.networks.keys() | networks.keys()
        if state.networks.get(id_) != networks.get(id_)
        or state.abroad.get(id_) is not abroad.get(id_)
    }
    if moved:
        dirty |= {key for key in state.services if key.network in moved}
    for key in dirty:
        state.answering[key.network].discard(key)
        changed, others = state.services.get(key), abroad.get(key.network)
        if changed is not None and others is not None and others.answers(changed):
            state.answering[key.network].add(key)

    changes: dict[str, Part] = {
        "base/balance": servicerules.BASE if networks else NOTHING,
        "base/ingress": ingress.BASE if networks else NOTHING,
        "base/answers": ingress.ANSWERS if any(state.answering.values()) else NOTHING,
    }
    for id_ in networks.keys() | state.networks.keys():
        network = networks.get(id_)
        changes[f"network/{id_}"] = (
            ingress.part(network, network.device in devices, bool(state.answering[id_]))
            if network
            else NOTHING
        )
    guarded, named = policyrules.destinations(policies), policyrules.sources(policies)
    if policies != state.policies or moved:
        changes["policies"] = policyrules.part(policies, networks)
        affected = guarded | named
        affected |= policyrules.destinations(state.policies) | policyrules.sources(state.policies)
        dirty |= {key for key, one in state.services.items() if one.label in affected}
    state.networks, state.policies, state.devices = networks, policies, devices
    state.abroad = abroad
    state.revision = table.revision
    for key in dirty:
        found, home = state.services.get(key), networks.get(key.network)
        owner = f"{key.id}/{key.network}"
        if found is None or home is None:
            changes[f"service/{owner}"] = changes[f"members/{owner}"] = NOTHING
        else:
            changes[f"service/{owner}"] = servicerules.part(found, home.bridge)
            label = found.label
            changes[f"members/{owner}"] = policyrules.members(
                found, label in guarded, label in named
            )
    return state.rules.update(changes)


def _forget(state: _State, before: Collection[Service] | None, table: Table) -> None:
    """End the flows that the change of the table ends; `before` are the services that it is about,
    as they were, if that is known."""
    if before is None:
        ranges = ((one.cluster, one.cluster6) for one in state.networks.values())
        found: Obsolete | None = staleflows.stranded(
            state.services.values(), [one for pair in ranges for one in pair if one is not None]
        )
    else:
        found = staleflows.obsolete(before, list(_named(state, table)))
    if found is not None:
        conntrack.forget(found.doomed, translated=found.translated)
