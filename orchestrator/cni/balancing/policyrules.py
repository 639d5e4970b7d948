# SPDX-License-Identifier: Apache-2.0
"""Network policies as nftables rules; pure.

A map leads from the addresses of a service with policies, in one look-up, to the service's chain;
packets to other services cost only that look-up. The chain's rules match sources by sets of the
addresses of a service's tasks, ready or not, which follow the endpoint table. They see every packet
to the service, so an existing connection ends when a policy denies it. They apply after NAT, and
match the endpoint's address and the container's port, on both the sender's and the receiver's node.

A denied client gets a rejection at once. Exception: where bridged packets pass netfilter
(br_netfilter), NAT to a neighbour happens below routing, and the kernel sends the rejection from
there, untranslated: such a client runs into its timeout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.cni.balancing.endpointtable import Label, Network, Policy, Service
from orchestrator.cni.firewall.ruleset import INET, Chain, RuleFragment

GUARDED4, GUARDED6 = f"{INET} guarded4", f"{INET} guarded6"
DENY = (
    "meta l4proto tcp reject with tcp reset",
    "reject with icmpx admin-prohibited",
)


def _chain(label: Label) -> str:
    return f"policy/{label.name}/{label.network}"


def _source(label: Label) -> tuple[str, str]:
    return f"from4/{label.name}/{label.network}", f"from6/{label.name}/{label.network}"


def destinations(policies: Iterable[Policy]) -> set[Label]:
    """The services to which policies restrict connections."""
    return {Label(policy.destination, policy.network) for policy in policies}


def sources(policies: Iterable[Policy]) -> set[Label]:
    """The services that policies name as sources."""
    return {Label(source, policy.network) for policy in policies for source in policy.sources}


def fragment(policies: Sequence[Policy], networks: Mapping[str, Network]) -> RuleFragment:
    """The rules of all policies; the addresses in their sets come from `members`."""
    if not policies:
        return RuleFragment()
    sets = {
        GUARDED4: "map {name} {{ type ipv4_addr : verdict; }}",
        GUARDED6: "map {name} {{ type ipv6_addr : verdict; }}",
    }
    for label in sorted(sources(policies)):
        four, six = _source(label)
        sets[f"{INET} {four}"] = "set {name} {{ type ipv4_addr; }}"
        sets[f"{INET} {six}"] = "set {name} {{ type ipv6_addr; }}"
    chains = {
        f"{INET} forward": Chain(
            (
                "ct direction original ip daddr vmap @guarded4",
                "ct direction original ip6 daddr vmap @guarded6",
            ),
            "type filter hook forward priority filter;",
        )
    }
    for label in sorted(destinations(policies)):
        about = [one for one in policies if Label(one.destination, one.network) == label]
        # Exceptions first.
        about.sort(key=lambda policy: (not policy.allow, policy.id))
        rules = [rule for policy in about for rule in _rules(policy, networks)]
        chains[f"{INET} {_chain(label)}"] = Chain(tuple(rules))
    return RuleFragment(chains, sets)


def _rules(policy: Policy, networks: Mapping[str, Network]) -> list[str]:
    froms: list[str] = []
    for source in policy.sources:
        four, six = _source(Label(source, policy.network))
        froms += [f"ip saddr @{four}", f"ip6 saddr @{six}"]
    network = networks.get(policy.network)
    if not policy.sources and network is not None:
        # Policies do not apply to published ports, whose clients are outside the network.
        froms.append(f"ip saddr {network.cluster}")
        if network.cluster6 is not None:
            froms.append(f"ip6 saddr {network.cluster6}")
    wheres = [""]
    if policy.ports:
        listed = ", ".join(f"{protocol} . {port}" for protocol, port in sorted(set(policy.ports)))
        wheres = [f"meta l4proto . th dport {{ {listed} }} "]
    verdicts = ("return",) if policy.allow else DENY
    return [f"{one} {where}{verdict}" for one in froms for where in wheres for verdict in verdicts]


def members(service: Service, guarded: bool, named: bool) -> RuleFragment:
    """A service's addresses in the sets: as a destination (`guarded`), as a source (`named`)."""
    elements: dict[str, dict[str, str]] = {}
    four = [str(one.address) for one in service.endpoints if one.address is not None]
    six = [str(one.address6) for one in service.endpoints if one.address6 is not None]
    if guarded:
        verdict = f"jump {_chain(service.label)}"
        elements[GUARDED4] = dict.fromkeys(four, verdict)
        elements[GUARDED6] = dict.fromkeys(six, verdict)
    if named:
        names = _source(service.label)
        elements[f"{INET} {names[0]}"] = dict.fromkeys(four, "")
        elements[f"{INET} {names[1]}"] = dict.fromkeys(six, "")
    return RuleFragment(elements=elements)
