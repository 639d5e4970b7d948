# SPDX-License-Identifier: Apache-2.0
"""Applies this host's endpoint table and its changes to the kernel, and repairs the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from orchestrator.cni.balancing import ingress, policyrules, servicerules, staleflows
from orchestrator.cni.balancing.endpointtable import Key, Network, Policy, Service, Table
from orchestrator.cni.balancing.ingress import RemoteNodes
from orchestrator.cni.balancing.staleflows import StaleFlows
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import nftables, ruleset
from orchestrator.cni.firewall.nftables import Nftables, NftError, failed
from orchestrator.cni.firewall.ruleset import NO_RULES, RuleFragment, Ruleset
from orchestrator.cni.netlink import conntrack, links
from orchestrator.cni.netlink.netlinksocket import RouteSocket

WHAT = "balanced services"


@dataclass(slots=True)
class _State:
    """The applied state."""

    revision: int = 0
    services: dict[Key, Service] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    devices: frozenset[str] = frozenset()
    remote_nodes: dict[str, RemoteNodes] = field(default_factory=dict)
    return_paths: dict[str, set[Key]] = field(default_factory=lambda: defaultdict(set))
    """Network → its services that need a return path; see `ingress`."""
    rules: Ruleset = field(default_factory=Ruleset)


class Balancer:
    """Owns our nftables tables for services on this host, while the process lives.

    The state in memory serves to compute changes only: after a failure it is discarded, the whole
    table requested, and the kernel's tables replaced in one transaction.
    """

    def __init__(self) -> None:
        self._state: _State | None = None

    def apply(self, sock: RouteSocket, nft: Nftables, table: Table) -> None:
        """Apply the table to the kernel.

        Raises `CniError`: TRY_AGAIN_LATER if it is a change of a table that was not applied.
        """
        state = self._state
        asked = table
        if table.base is None:
            table = _difference(state or _State(), table)
        elif state is None or state.revision != table.base:
            raise CniError(
                Code.TRY_AGAIN_LATER, f"the endpoint table of revision {table.base} is missing"
            )
        known, self._state = state is not None, None
        state = state or _State()
        before = list(_affected(state, table))
        script = _advance(sock, state, table)
        try:
            if not known or not state.networks:
                nft.run(state.rules.script())
            else:
                _run(nft, script, state.rules, check=asked.base in (None, asked.revision))
        except NftError as error:
            raise failed(WHAT, error) from error
        return_paths = {id_ for id_, services in state.return_paths.items() if services}
        ingress.ensure(sock, state.remote_nodes.values(), return_paths)
        _delete_stale_flows(state, before if known else None, table)
        self._state = state

    def deviations(self) -> list[str]:
        """What the next `apply` would repair, for the user; empty if nothing was applied."""
        if self._state is None:
            return []
        return nftables.deviations(nftables.counts(ruleset.TABLES), self._state.rules.counts())


def _run(nft: Nftables, script: str, rules: Ruleset, *, check: bool) -> None:
    """Run a script; replace all rules if the kernel's state differs from the expected one."""
    try:
        if script:
            nft.run(script)
        repaired = not check or nftables.counts(ruleset.TABLES) == rules.counts()
    except NftError:
        repaired = False  # our tables were changed by hand
    if not repaired:
        nft.run(rules.script())


def _difference(state: _State, table: Table) -> Table:
    """Convert a whole table to a change of the state; pure."""
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


def _affected(state: _State, table: Table) -> Iterable[Service]:
    """The services that the table changes, in their current state."""
    for key in (*(service.key for service in table.services), *table.removed):
        if (service := state.services.get(key)) is not None:
            yield service


def _advance(sock: RouteSocket, state: _State, table: Table) -> str:
    """Change the state; return the script with the same change for the kernel."""
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

    remote_nodes = {
        network.id: others
        for network in networks.values()
        if (others := RemoteNodes.of(sock, network, state.remote_nodes.get(network.id))) is not None
    }
    moved = {
        id_
        for id_ in state.networks.keys() | networks.keys()
        if state.networks.get(id_) != networks.get(id_)
        or state.remote_nodes.get(id_) is not remote_nodes.get(id_)
    }
    if moved:
        dirty |= {key for key in state.services if key.network in moved}
    for key in dirty:
        state.return_paths[key.network].discard(key)
        changed, others = state.services.get(key), remote_nodes.get(key.network)
        if changed is not None and others is not None and others.needs_return_path(changed):
            state.return_paths[key.network].add(key)

    changes: dict[str, RuleFragment] = {
        "base/balance": servicerules.BASE if networks else NO_RULES,
        "base/ingress": ingress.BASE if networks else NO_RULES,
        "base/answers": ingress.RETURN_PATH if any(state.return_paths.values()) else NO_RULES,
    }
    for id_ in networks.keys() | state.networks.keys():
        network = networks.get(id_)
        changes[f"network/{id_}"] = (
            ingress.fragment(network, network.device in devices, bool(state.return_paths[id_]))
            if network
            else NO_RULES
        )
    guarded, named = policyrules.destinations(policies), policyrules.sources(policies)
    if policies != state.policies or moved:
        changes["policies"] = policyrules.fragment(policies, networks)
        affected = guarded | named
        affected |= policyrules.destinations(state.policies) | policyrules.sources(state.policies)
        dirty |= {key for key, one in state.services.items() if one.label in affected}
    state.networks, state.policies, state.devices = networks, policies, devices
    state.remote_nodes = remote_nodes
    state.revision = table.revision
    for key in dirty:
        found, network = state.services.get(key), networks.get(key.network)
        owner = f"{key.id}/{key.network}"
        if found is None or network is None:
            changes[f"service/{owner}"] = changes[f"members/{owner}"] = NO_RULES
        else:
            changes[f"service/{owner}"] = servicerules.fragment(found, network.bridge)
            label = found.label
            changes[f"members/{owner}"] = policyrules.members(
                found, label in guarded, label in named
            )
    return state.rules.update(changes)


def _delete_stale_flows(state: _State, before: Collection[Service] | None, table: Table) -> None:
    """Delete the flows that the change makes stale; `before` are the changed services in their
    previous state, if known."""
    if before is None:
        ranges = ((one.cluster, one.cluster6) for one in state.networks.values())
        found: StaleFlows | None = staleflows.after_restart(
            state.services.values(), [one for pair in ranges for one in pair if one is not None]
        )
    else:
        found = staleflows.after_change(before, list(_affected(state, table)))
    if found is not None:
        conntrack.delete(found.stale, translated=found.translated)
