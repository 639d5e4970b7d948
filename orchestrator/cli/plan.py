"""`orc plan COMMAND…`: what a command would do.

The command itself runs, with all its flags and checks, on a client that asks a manager to think
each change through instead of making it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from typing import Any, NoReturn

import click

from orchestrator.cli.client import CALL_TIMEOUT, CLIENT, Client
from orchestrator.cli.context import Context
from orchestrator.cli.groups import CliError, example
from orchestrator.cli.output import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    print_list,
    print_table,
)
from orchestrator.pb import control_pb2, types_pb2

_CHANGES = {
    "CreateService": "create_service",
    "UpdateService": "update_service",
    "RemoveService": "remove_service",
    "RollbackService": "rollback_service",
    "PromoteService": "promote_service",
    "UpdateNode": "update_node",
    "Containers.CreateContainer": "create_container",
    "Jobs.StartJob": "start_job",
    "Jobs.StopJob": "stop_job",
    "Networks.CreateNetwork": "create_network",
    "Documents.CreateDocument": "create_document",
    "Documents.UpdateDocument": "update_document",
}
"""Calls that can be thought through → their field of a PlannedChange."""
_UNSEEN = {"Volumes.CreateVolume": types_pb2.Volume}
"""Calls that move no task → what they answer with."""
_READS = ("List", "Get", "Inspect")
_COMMANDS = (
    "service create",
    "service update",
    "service scale",
    "service rollback",
    "service promote",
    "service rm",
    "job run",
    "job start",
    "job stop",
    "job rm",
    "node update",
    "run",
    "create",
    "container run",
    "container create",
    "stack deploy",
    "stack rm",
)


def continuations(words: Sequence[str]) -> set[str] | None:
    """Which words may follow these in a command that can be planned; None once it is named."""
    line = " ".join(words)
    if any(line == known or line.startswith(f"{known} ") for known in _COMMANDS):
        return None
    start = "".join(f"{word} " for word in words)
    return {c.removeprefix(start).split()[0] for c in _COMMANDS if c.startswith(start)}


class _Planned(Exception):
    """The command has said all that it would change, and begins to wait."""


class _PlanningClient(Client):
    """Reads as it should, and notes changes down."""

    pretends = True

    def __init__(self, noted: list[_PlanningClient], context: Context) -> None:
        super().__init__(context)
        self.changes: list[Any] = []
        self.steps: list[Row] = []
        """What a stack's deployment consists of."""
        noted.append(self)

    def intends(self, step: Any) -> None:
        self.steps.append(
            {
                "action": step.action,
                "kind": step.kind,
                "name": step.name,
                "changes": list(step.keys),
            }
        )

    def call(self, method: str, request: Any, timeout: float = CALL_TIMEOUT) -> Any:
        if getattr(request, "check_only", False):
            return super().call(method, request, timeout)
        if (field := _CHANGES.get(method)) is not None:
            self.changes.append(control_pb2.PlannedChange(**{field: request}))
            if method == "Containers.CreateContainer":
                raise _Planned
            return types_pb2.Service()
        if method in _UNSEEN:
            return _UNSEEN[method]()
        if not method.rpartition(".")[2].startswith(_READS):
            raise CliError("what this would do cannot be told without doing it")
        return super().call(method, request, timeout)

    def stream(self, method: str, *arguments: Any, **options: Any) -> NoReturn:
        if method.startswith("Images."):
            raise CliError("its image is not there; 'orc pull' gets it, then this can be planned")
        raise _Planned

    def planned(self) -> list[Row]:
        """What a manager says that the changes would do."""
        request = control_pb2.PlanRequest(changes=self.changes)
        steps = super().call("Plan", request).steps
        return [
            {
                "action": control_pb2.PlannedAction.Name(step.action)
                .removeprefix("PLANNED_")
                .lower(),
                "service": step.service,
                "task": step.name,
                "from": step.source,
                "to": step.target,
                "reason": step.reason,
            }
            for step in steps
        ]


_COLUMNS = [
    column("ACTION", "action"),
    column("TASK", "task"),
    column("FROM", "from"),
    column("TO", "to"),
    column("REASON", "reason"),
]


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=example(
        "orc plan service scale web=12",
        "orc plan --format json node update --availability drain node2",
        "orc plan run --affinity service==db tools:1",
    ),
)
@format_option()
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def plan(ctx: click.Context, command: tuple[str, ...], form: str) -> None:
    """Show what a command would start, stop, move or leave waiting, and where; nothing is done.

    All goes well in it: what only running would show, such as a program that fails, is not
    foreseen.
    """
    length = 1 if command[0] in _COMMANDS else 2
    words, arguments = command[:length], list(command[length:])
    if " ".join(words) not in _COMMANDS:
        raise click.UsageError(
            f"'orc {' '.join(words)}' cannot be planned; what can is {', '.join(_COMMANDS)}"
        )
    group = ctx.find_root().command
    for word in words:
        assert isinstance(group, click.Group)
        found = group.get_command(ctx, word)
        assert found is not None
        group = found
    noted: list[_PlanningClient] = []
    ctx.meta[CLIENT] = partial(_PlanningClient, noted)
    name = " ".join(("orc plan", *words))
    with group.make_context(name, arguments, parent=ctx) as inner:
        with redirect_stdout(io.StringIO()), suppress(_Planned):
            group.invoke(inner)
        rows = [row for client in noted for row in client.planned()]
    steps = [step for client in noted for step in client.steps]
    if not rows and not steps and form == "table":
        click.echo("nothing would change", err=True)
    elif words[0] == "stack":
        _print_stack(steps, rows, form)
    else:
        print_list(rows, _COLUMNS, form=form, quiet=False, filters={})


_STEP_COLUMNS = [
    column("ACTION", "action"),
    column("KIND", "kind"),
    column("NAME", "name"),
    Column("CHANGES", lambda row: ", ".join(row["changes"])),
]


def show_stack(context: Context, command: Callable[[Client], object]) -> None:
    """Print what a command about a stack would do."""
    noted: list[_PlanningClient] = []
    with _PlanningClient(noted, context) as client:
        with redirect_stdout(io.StringIO()), suppress(_Planned):
            command(client)
        rows, steps = noted[0].planned(), noted[0].steps
    if rows or steps:
        _print_stack(steps, rows, "table")
    else:
        click.echo("nothing would change", err=True)


def _print_stack(steps: list[Row], rows: list[Row], form: str) -> None:
    """What would be made, changed and removed, and then what becomes of tasks."""
    if form == "json":
        print_json({"steps": steps, "tasks": rows})
        return
    print_table(steps, _STEP_COLUMNS)
    if rows:
        click.echo()
        print_table(rows, _COLUMNS)
