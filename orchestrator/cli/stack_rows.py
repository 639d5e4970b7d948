"""Stacks as rows: found by the label that all that belongs to one has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli.groups import CliError
from orchestrator.cli.output import Column, Row, column
from orchestrator.model.names import near_miss
from orchestrator.model.specs import STACK_LABEL

if TYPE_CHECKING:
    from orchestrator.cli.stack_changes import Observed


def stack_names(there: Observed) -> list[str]:
    """The stacks that have services or networks."""
    labels = [each.spec.labels for each in there.services.values()]
    labels += [each.labels for each in there.networks.values()]
    return sorted({each[STACK_LABEL] for each in labels if STACK_LABEL in each})


def of_stack(services: Iterable[Any], name: str) -> list[Any]:
    """The ServiceRows of a stack."""
    return [row for row in services if row.service.spec.labels.get(STACK_LABEL) == name]


def stack_rows(services: Iterable[Any], networks: Iterable[Any]) -> list[Row]:
    """From ServiceRows and Networks: a row a stack, by name."""
    rows: dict[str, Row] = {}
    for message in (*services, *networks):
        service = getattr(message, "service", None)
        labels = service.spec.labels if service is not None else message.labels
        if (name := labels.get(STACK_LABEL)) is None:
            continue
        row = rows.setdefault(
            name,
            {"id": name, "name": name, "services": 0, "networks": 0, "running": 0, "tasks": 0},
        )
        if service is None:
            row["networks"] += 1
        else:
            row["services"] += 1
            row["running"] += message.running
            row["tasks"] += message.desired
    return [rows[name] for name in sorted(rows)]


STACK_COLUMNS = [
    column("NAME", "name"),
    column("SERVICES", "services"),
    Column("TASKS", lambda row: f"{row['running']}/{row['tasks']}"),
    column("NETWORKS", "networks"),
]


def no_stack(name: str, known: Sequence[str]) -> CliError:
    """There is none of that name."""
    meant = near_miss(name, known)
    hint = f"did you mean '{meant}'?" if meant else "see 'orc stack ls'"
    return CliError(f"no stack '{name}'; {hint}")
