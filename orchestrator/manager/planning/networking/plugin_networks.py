# SPDX-License-Identifier: Apache-2.0
"""Networks of plugins (CNI plugins, or plugins of Docker's protocol): completing a new one, which
nodes support it, and its configuration for a node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from orchestrator.manager.planning.networking.addresses import (
    NewNetwork,
    check_free,
    choose_subnet,
    given_subnets,
    with_prefix,
)
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.formats.conflist import (
    Conflist,
    ConflistError,
    filled_conflist,
    parse_conflist,
    wants_slices,
)
from orchestrator.model.names import near_miss
from orchestrator.model.networks import (
    CHAINS,
    CNI,
    DRIVERS,
    GLOBAL,
    LOCAL,
    NO_IPAM,
    SCOPE,
    check_network,
)
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Network

FOLDERS = "/opt/cni/bin or /usr/lib/cni"
"""Where nodes look for CNI plugins."""

_MOST_NAMED = 3
"""Maximum number of nodes that are named."""


def complete_plugin_network(view: ClusterView, new: NewNetwork) -> Network:
    """A new network with all fields set. Raises AddressRefused and ValueError."""
    network = new.network
    subnet, subnet6 = given_subnets(new)
    if network.driver == CNI:
        chain = _chain(network)
        wanted = wants_slices(network.conflist)
        _check_alone(view, chain)
        scope = LOCAL if chain.local else GLOBAL
    else:
        wanted = not network.ipam_driver
        scope = _scope(view, network)
    network = replace(
        network,
        subnet=subnet or (choose_subnet(view) if wanted else ""),
        subnet6=subnet6,
        options={SCOPE: scope, **network.options},
    )
    if wanted:
        network = with_prefix(network)
    check_network(network)
    check_free(view, network)
    return network


def _chain(network: Network) -> Conflist:
    if not network.conflist:
        check_network(network)  # has the words
    try:
        return parse_conflist(network.conflist)
    except ConflistError as error:
        raise ValueError(f"conflist: {error}") from None


def _check_alone(view: ClusterView, chain: Conflist) -> None:
    """Plugins identify a network by its list's name, so it must be unique."""
    for other in view.networks.values():
        if other.conflist and parse_conflist(other.conflist).name == chain.name:
            raise ValueError(
                f"conflist: name: '{chain.name}' is what the plugins call network '{other.name}'; "
                "choose another"
            )


def _scope(view: ClusterView, network: Network) -> str:
    """How far a plugin of Docker's protocol reaches, as the nodes that have it say."""
    nodes = view.nodes.values()
    scopes = {node.description.network_drivers.get(network.driver, "") for node in nodes} - {""}
    if not scopes:
        known = {name for node in nodes for name in node.description.network_drivers}
        meant = near_miss(network.driver, [*DRIVERS, *known])
        hint = (
            f"did you mean '{meant}'?"
            if meant
            else f"there are {', '.join(DRIVERS)}, and no node has a plugin of that name"
        )
        raise ValueError(f"network driver '{network.driver}' is unknown; {hint}")
    ipam = network.ipam_driver
    givers = {name for node in nodes for name in node.description.ipam_drivers}
    if ipam and ipam not in (NO_IPAM, *givers):
        raise ValueError(
            f"no node has an ipam plugin '{ipam}'; start it, or leave out --ipam-driver"
        )
    return GLOBAL if GLOBAL in scopes else LOCAL


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that a network needs and some nodes lack."""

    words: str
    node_ids: frozenset[str]

    def spares(self, node: Node) -> bool:
        """Whether a node has it."""
        return node.id not in self.node_ids


def lacks(network: Network, nodes: Iterable[Node]) -> Iterator[Lack]:
    """What a network needs and some of these nodes lack."""
    every = sorted(nodes, key=lambda node: node.description.hostname)
    if network.driver == CNI:
        found = _lacks_of_chain(network, every)
    else:
        found = _lacks_of_plugin(network, every)
    for words, lacking in found:
        if lacking:
            names = [node.description.hostname or node.id for node in lacking]
            if len(names) > _MOST_NAMED:
                names[_MOST_NAMED - 1 :] = [f"{len(names) - _MOST_NAMED + 1} more"]
            yield Lack(f"{words} on {', '.join(names)}", frozenset(node.id for node in lacking))


def _lacks_of_chain(network: Network, nodes: Sequence[Node]) -> Iterator[tuple[str, list[Node]]]:
    new = [node for node in nodes if CHAINS in node.description.network_features]
    yield (
        f"an agent that knows no CNI plugins, for network {network.name},",
        [node for node in nodes if node not in new],
    )
    for name in parse_conflist(network.conflist).programs:
        yield (
            f"no CNI plugin {name}, for network {network.name}, in {FOLDERS}",
            [node for node in new if name not in node.description.cni_plugins],
        )


def _lacks_of_plugin(network: Network, nodes: Sequence[Node]) -> Iterator[tuple[str, list[Node]]]:
    yield (
        f"no network plugin {network.driver}, for network {network.name},",
        [node for node in nodes if network.driver not in node.description.network_drivers],
    )
    if (ipam := network.ipam_driver) not in ("", NO_IPAM):
        yield (
            f"no ipam plugin {ipam}, for network {network.name},",
            [node for node in nodes if ipam not in node.description.ipam_drivers],
        )


def conflist_for(network: Network, node: Node, slice6: str, gateway: str) -> str:
    """The configuration list for a node, with its placeholders filled in."""
    labels = {**node.description.labels, **node.labels}
    fields = {
        "Node.ID": node.id,
        "Node.Hostname": node.description.hostname,
        "Node.Address": node.description.address,
        "Network.Subnet": network.subnet,
    }
    if slice_ := network.slices.get(node.id, ""):
        part = IPv4Network(slice_)
        fields |= {
            "Node.Subnet": slice_,
            "Node.First": str(part[1]),
            "Node.Last": str(part[-2]),
            "Node.Gateway": gateway or str(part[1]),
            "Node.Subnet6": slice6,
        }
    return filled_conflist(
        network.conflist,
        lambda field, label: labels.get(label, "") if label else fields.get(field, ""),
    )
