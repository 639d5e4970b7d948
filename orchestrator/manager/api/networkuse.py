"""Who may use a network and who does: what the calls about networks, services and containers ask.

A network is removed in two steps: first it is marked, so that nobody new may have it, then it is
looked who has it. So what uses a network is written with the condition that the network is still as
it was read.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.manager.lookup import find_container
from orchestrator.manager.planning.addressing import AddressRefused, check_fixed
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.refusal import invalid, not_found, precondition
from orchestrator.model.conflist import check_asked, parse_conflist
from orchestrator.model.names import near_miss
from orchestrator.model.networks import OVERLAY, is_ours, stands_alone
from orchestrator.model.objects import Network
from orchestrator.model.specs import CONTAINER_NETWORK, NetworkAttachment, PortSpec, ServiceSpec


def usable_networks(
    view: ClusterView, spec: ServiceSpec, before: ServiceSpec | None = None, *, name: str = ""
) -> list[Network]:
    """The networks that the spec names. Raises Refusal unless it may be on them, and have the
    addresses that it fixes.

    `name` is of a standalone container, of which `spec` has only the task. `before` is what it
    changes: what that has already it may keep.
    """
    found: list[Network] = []
    had = set(before.task.network_names) if before else set()
    for attachment in spec.task.networks:
        word = attachment.network
        if word.startswith(CONTAINER_NETWORK):
            find_container(view, word.removeprefix(CONTAINER_NETWORK))
        if stands_alone(word):
            continue
        network = _existing(view, word)
        _check_options(network, attachment, () if found else spec.task.ports)
        found.append(network)
        if word in had:
            continue
        if network.removing:
            raise precondition(f"network '{word}' is being removed; choose another")
        if name and not network.attachable and network.driver == OVERLAY:
            raise precondition(
                f"network '{word}' takes services only; make it with 'orc network create "
                "--attachable' for containers of their own"
            )
    owner = f"container {name}" if name else f"service {spec.name}"
    try:
        check_fixed(view, spec, owner)
    except AddressRefused as error:
        raise invalid(str(error)) from None
    return found


def _check_options(
    network: Network, attachment: NetworkAttachment, ports: Sequence[PortSpec]
) -> None:
    """Raise Refusal for what a container asks of a network and its driver cannot do; `ports` are
    those that are published in it."""
    if is_ours(network.driver) and attachment.options:
        raise invalid(
            f"network '{network.name}' is of driver {network.driver}, which has no driver-opt"
        )
    if network.conflist:
        try:
            check_asked(parse_conflist(network.conflist), network.name, attachment, ports)
        except ValueError as error:
            raise invalid(str(error)) from None


def _existing(view: ClusterView, name: str) -> Network:
    network = view.network_by_name(name)
    if network is None:
        guess = near_miss(name, [each.name for each in view.networks.values()])
        hint = f"did you mean '{guess}'?" if guess else "see 'orc network ls'"
        raise not_found(f"no network '{name}'; {hint}")
    return network
