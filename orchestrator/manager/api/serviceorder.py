"""Which services a service may wait for, and which may go.

What a spec depends on is read, checked, and written under the condition that it is still as it was
read. So two calls at once can neither close a circle nor remove what the other needs.
"""

from __future__ import annotations

from orchestrator.manager.planning.dependencies import needs
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.refusal import invalid, not_found, precondition
from orchestrator.model.dependencies import DependencyCondition, find_cycle
from orchestrator.model.names import near_miss
from orchestrator.model.services import Service
from orchestrator.model.specs import RestartCondition, ServiceMode, ServiceSpec


def needed_services(view: ClusterView, spec: ServiceSpec) -> list[Service]:
    """The services that the spec waits for, and those that they wait for in turn. Raises Refusal
    if one is not there, can never come so far, or waits for this one."""
    live = {item.spec.name: item for item in view.services.values() if not item.removed}
    for each in spec.depends_on:
        other = live.get(each.service)
        if other is None and not each.optional:
            guess = near_miss(each.service, live)
            hint = f"did you mean '{guess}'?" if guess else "see 'orc service ls'"
            raise not_found(f"there is no service '{each.service}' to wait for; {hint}")
        completes = each.condition is DependencyCondition.COMPLETED
        if completes and other is not None and _always_runs(other.spec):
            raise invalid(
                f"service '{each.service}' is started again whenever it ends, so it never "
                "completes; give it --restart-condition none or on-failure"
            )
    needed = {name: [each.service for each in s.spec.depends_on] for name, s in live.items()}
    needed[spec.name] = [each.service for each in spec.depends_on]
    if (cycle := find_cycle(spec.name, needed)) is not None:
        raise invalid(
            f"services would wait for one another in a circle: {' -> '.join(cycle)}; "
            "leave out one --depends-on of these"
        )
    return [live[name] for name in _reached(spec.name, needed) if name in live]


def check_not_needed(view: ClusterView, service: Service) -> None:
    """Raise Refusal if a service that stays cannot do without this one."""
    users = sorted(
        other.spec.name
        for other in view.services.values()
        if not other.removed and needs(other, service) and not _can_do_without(other, service)
    )
    if users:
        name = service.spec.name
        raise precondition(
            f"service '{name}' is needed by '{users[0]}'; remove that first or with it, or let "
            f"it go: orc service update --depends-on-rm {name} {users[0]}"
        )


def _always_runs(spec: ServiceSpec) -> bool:
    """Whether its tasks are started again however they end."""
    lasting = spec.mode in (ServiceMode.REPLICATED, ServiceMode.GLOBAL)
    return lasting and spec.task.restart.condition is RestartCondition.ANY


def _can_do_without(service: Service, other: Service) -> bool:
    return all(each.optional for each in service.spec.depends_on if each.service == other.spec.name)


def _reached(name: str, needed: dict[str, list[str]]) -> list[str]:
    """The names that are waited for, directly and by others, sorted."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for other in needed.get(todo.pop(), ()):
            if other not in found:
                found.add(other)
                todo.append(other)
    return sorted(found)
