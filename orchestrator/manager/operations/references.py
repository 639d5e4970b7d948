# SPDX-License-Identifier: Apache-2.0
"""References of a spec to other objects (networks, secrets, configs, services), and in-use errors.

A network, secret or config is removed in two steps: it is first marked, so that it takes no new
user, then checked for users. Every `resolve_…` function therefore returns the objects that it
relied on; the caller writes under the condition that they are unchanged. The same condition keeps
two concurrent calls from closing a dependency cycle between services.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.manager.errors import (
    RequestError,
    failed_precondition,
    invalid_argument,
    not_found,
)
from orchestrator.manager.object_lookup import find_container
from orchestrator.manager.planning.networking.addresses import AddressRefused, check_fixed
from orchestrator.manager.planning.reconcile.service_dependencies import depends_on
from orchestrator.manager.planning.view import ClusterView
from orchestrator.model.dependencies import DependencyCondition, find_cycle
from orchestrator.model.documents import Document, DocumentKind, references
from orchestrator.model.formats.conflist import check_asked, parse_conflist
from orchestrator.model.names import near_miss
from orchestrator.model.networks import OVERLAY, is_ours, stands_alone
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    CONTAINER_NETWORK,
    ContainerSpec,
    NetworkAttachment,
    PortSpec,
    RestartCondition,
    ServiceMode,
    ServiceSpec,
)


def resolve_networks(
    view: ClusterView, spec: ServiceSpec, before: ServiceSpec | None = None, *, name: str = ""
) -> list[Network]:
    """The networks that the spec names. Raises RequestError unless it may be on them and have its
    fixed addresses. `name` is that of a standalone container, of which `spec` has only the task.
    `before` is the spec that it replaces; what that has already is allowed."""
    found: list[Network] = []
    had = set(before.task.network_names) if before else set()
    for attachment in spec.task.networks:
        word = attachment.network
        if word.startswith(CONTAINER_NETWORK):
            find_container(view, word.removeprefix(CONTAINER_NETWORK))
        if stands_alone(word):
            continue
        network = _existing_network(view, word)
        _check_network_options(network, attachment, () if found else spec.task.ports)
        found.append(network)
        if word in had:
            continue
        if network.removing:
            raise failed_precondition(f"network '{word}' is being removed; choose another")
        if name and not network.attachable and network.driver == OVERLAY:
            raise failed_precondition(
                f"network '{word}' takes services only; make it with 'orc network create "
                "--attachable' for containers of their own"
            )
    owner = f"container {name}" if name else f"service {spec.name}"
    try:
        check_fixed(view, spec, owner)
    except AddressRefused as error:
        raise invalid_argument(str(error)) from None
    return found


def _check_network_options(
    network: Network, attachment: NetworkAttachment, ports: Sequence[PortSpec]
) -> None:
    """Raise RequestError for options that the network's driver does not support; `ports` are those
    published in it."""
    if is_ours(network.driver) and attachment.options:
        raise invalid_argument(
            f"network '{network.name}' is of driver {network.driver}, which has no driver-opt"
        )
    if network.conflist:
        try:
            check_asked(parse_conflist(network.conflist), network.name, attachment, ports)
        except ValueError as error:
            raise invalid_argument(str(error)) from None


def _existing_network(view: ClusterView, name: str) -> Network:
    network = view.network_by_name(name)
    if network is None:
        guess = near_miss(name, [each.name for each in view.networks.values()])
        hint = f"did you mean '{guess}'?" if guess else "see 'orc network ls'"
        raise not_found(f"no network '{name}'; {hint}")
    return network


def resolve_documents(view: ClusterView, spec: ContainerSpec) -> list[Document]:
    """The secrets and configs that the container names. Raises RequestError unless it may use
    them."""
    found: dict[str, Document] = {}
    for kind, reference in references(spec):
        document = view.document_by_name(kind, reference.source)
        if document is None:
            raise unknown_document(view, kind, reference.source)
        if document.removing:
            raise failed_precondition(
                f"{kind.word} '{document.name}' is being removed; choose another"
            )
        found[document.id] = document
    return list(found.values())


def unknown_document(view: ClusterView, kind: DocumentKind, word: str) -> RequestError:
    """The error for an unknown secret or config."""
    names = [each.name for each in view.documents.values() if each.kind is kind]
    guess = near_miss(word, names)
    hint = f"did you mean '{guess}'?" if guess else f"make it with 'orc {kind.word} create'"
    return not_found(f"no {kind.word} '{word}'; {hint}")


def resolve_dependencies(view: ClusterView, spec: ServiceSpec) -> list[Service]:
    """The services that the spec depends on, transitively. Raises RequestError if one does not
    exist, can never be ready, or depends on this one."""
    live = {item.spec.name: item for item in view.services.values() if not item.removed}
    for each in spec.depends_on:
        other = live.get(each.service)
        if other is None and not each.optional:
            guess = near_miss(each.service, live)
            hint = f"did you mean '{guess}'?" if guess else "see 'orc service ls'"
            raise not_found(f"no service '{each.service}' to depend on; {hint}")
        completes = each.condition is DependencyCondition.COMPLETED
        if completes and other is not None and _always_runs(other.spec):
            raise invalid_argument(
                f"service '{each.service}' is started again whenever it ends, so it never "
                "completes; give it --restart-condition none or on-failure"
            )
    needed = {name: [each.service for each in s.spec.depends_on] for name, s in live.items()}
    needed[spec.name] = [each.service for each in spec.depends_on]
    if (cycle := find_cycle(spec.name, needed)) is not None:
        raise invalid_argument(f"dependency cycle: {' -> '.join(cycle)}; remove one --depends-on")
    return [live[name] for name in _transitive_dependencies(spec.name, needed) if name in live]


def check_no_dependents(view: ClusterView, service: Service) -> None:
    """Raise RequestError if another service depends on this one."""
    users = sorted(
        other.spec.name
        for other in view.services.values()
        if not other.removed
        and depends_on(other, service)
        and not _is_independent_of(other, service)
    )
    if users:
        name = service.spec.name
        raise failed_precondition(
            f"service '{name}' is needed by '{users[0]}'; remove that first or with it, or let "
            f"it go: orc service update --depends-on-rm {name} {users[0]}"
        )


def _always_runs(spec: ServiceSpec) -> bool:
    """Whether its tasks are restarted however they end."""
    lasting = spec.mode in (ServiceMode.REPLICATED, ServiceMode.GLOBAL)
    return lasting and spec.task.restart.condition is RestartCondition.ANY


def _is_independent_of(service: Service, other: Service) -> bool:
    return all(each.optional for each in service.spec.depends_on if each.service == other.spec.name)


def _transitive_dependencies(name: str, needed: dict[str, list[str]]) -> list[str]:
    """The names of all direct and transitive dependencies, sorted."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for other in needed.get(todo.pop(), ()):
            if other not in found:
                found.add(other)
                todo.append(other)
    return sorted(found)


_MOST_NAMES = 3
"""Users that an error names; the rest is counted."""
_REMOVE_COMMANDS = {"service": "orc service rm {}", "container": "orc rm -f {}"}


def in_use_error(
    what: str, users: Sequence[str], detach: dict[str, str] | None = None, hint: str = ""
) -> RequestError:
    """`users` are such as `service web`, `container db` or `task web.1, which is stopping`. `hint`:
    an alternative remedy. `detach`: kind of user → the command that detaches one, with {} for its
    name."""
    remove = _detach_commands(users, _REMOVE_COMMANDS)
    hints = [f"type {remove} first" if remove else "try again when it has stopped"]
    if detach and (commands := _detach_commands(users, detach)):
        hints.append(f"or detach it with {commands}")
    hints += [hint] if hint else []
    return failed_precondition(f"{what} is in use by {_listed_names(users)}; {', '.join(hints)}")


def _detach_commands(users: Iterable[str], commands: dict[str, str]) -> str:
    words = [each.split() for each in users]
    names: dict[str, list[str]] = {}
    for kind, name, *_ in words:
        names.setdefault(kind, []).append(name)
    lines = []
    for kind, found in names.items():
        if command := commands.get(kind):
            # A command for a single name is shown for the first one.
            several = command.endswith(" {}") and command in _REMOVE_COMMANDS.values()
            lines.append(command.format(" ".join(found[:_MOST_NAMES] if several else found[:1])))
    return " and ".join(f"'{line}'" for line in lines)


def _listed_names(names: Sequence[str]) -> str:
    """Names as an enumeration, the last ones as a number."""
    if len(names) > _MOST_NAMES + 1:
        return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"
    if len(names) > 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return names[0]
