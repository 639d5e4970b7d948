# SPDX-License-Identifier: Apache-2.0
"""`orc plan COMMAND…`: a dry run of a command.

The command itself runs, with all its flags and checks, on a client that asks a manager for a dry
run of each change.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.command_table import SECTIONS
from orchestrator.cli.app.contexts import Context
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    print_list,
    print_table,
)
from orchestrator.cli.rpc.client import CALL_TIMEOUT, CLIENT_FACTORY, Client
from orchestrator.model.names import near_miss
from orchestrator.pb import control_pb2, scheduling_pb2, types_pb2

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_CHANGES = {
    "CreateService": "create_service",
    "UpdateService": "update_service",
    "RemoveService": "remove_service",
    "RollbackService": "rollback_service",
    "PromoteService": "promote_service",
    "UpdateNode": "update_node",
    "Rebalance": "rebalance",
    "Containers.CreateContainer": "create_container",
    "Jobs.StartJob": "start_job",
    "Jobs.StopJob": "stop_job",
    "Networks.CreateNetwork": "create_network",
    "Documents.CreateDocument": "create_document",
    "Documents.UpdateDocument": "update_document",
}
"""Calls that can be planned → their field of a PlannedChange."""
_REPLIES = {"Rebalance": scheduling_pb2.RebalanceReply}
"""The types of replies that are no service."""
_IGNORED_CHANGES = {"Volumes.CreateVolume": types_pb2.Volume}
"""Calls that affect no task → the type of their reply."""
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
    "rebalance",
    "run",
    "create",
    "container run",
    "container create",
    "stack deploy",
    "stack rm",
)


class _PlanComplete(Exception):
    """The command has made all its changes, and would begin to wait."""


class _PlanningClient(Client):
    """Forwards reads, and records changes."""

    is_dry_run = True

    def __init__(self, noted: list[_PlanningClient], context: Context) -> None:
        super().__init__(context)
        self.changes: list[Any] = []
        self.steps: list[Row] = []
        """Steps of a stack's deployment or removal."""
        noted.append(self)

    def record_step(self, step: Any) -> None:
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
                raise _PlanComplete
            return _REPLIES.get(method, types_pb2.Service)()
        if method in _IGNORED_CHANGES:
            return _IGNORED_CHANGES[method]()
        if not method.rpartition(".")[2].startswith(_READS):
            raise CliError("this cannot be planned")
        return super().call(method, request, timeout)

    def stream(self, method: str, *arguments: Any, **options: Any) -> NoReturn:
        if method.startswith("Images."):
            raise CliError("its image is missing; run 'orc pull' first, then plan")
        raise _PlanComplete

    def planned(self) -> list[Row]:
        """The manager's plan for the changes."""
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


class PlanGroup(OrcGroup):
    """The plannable commands below `orc plan` and the words after it."""

    mirrors = True

    def __init__(self, *args: Any, words: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._words = words

    def list_commands(self, ctx: click.Context) -> list[str]:
        depth = len(self._words)
        lines = (tuple(line.split()) for line in _COMMANDS)
        return list(dict.fromkeys(w[depth] for w in lines if w[:depth] == self._words))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        words = (*self._words, cmd_name)
        if " ".join(words) in _COMMANDS:
            return _planned(words)
        text = f"Plan a change made with 'orc {' '.join(words)}'."
        first = next(line.split() for line in _COMMANDS if line.startswith(f"{' '.join(words)} "))
        return PlanGroup(cmd_name, words=words, help=text, epilog=_epilog(first))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        return [
            CompletionItem(name, help=command.get_short_help_str(80))
            for name, command in found
            if command is not None and name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Group.format_commands(self, ctx, formatter)

    def _no_command(self, ctx: click.Context, args: list[str]) -> str:
        line = " ".join(("orc", *self._words, args[0]))
        meant = near_miss(args[0], self.list_commands(ctx))
        hint = (
            f"did you mean {meant!r}?" if meant else f"plannable commands: {', '.join(_COMMANDS)}"
        )
        return f"'{line}' cannot be planned; {hint}"


def _command(words: Sequence[str]) -> click.Command:
    """A command of `orc` by its words."""
    command: click.Command = OrcGroup("orc", sections=SECTIONS)
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return command


def _epilog(words: Sequence[str]) -> str:
    """The examples of a command, with `orc plan`."""
    start = f"orc {words[-1] if words[0] == 'container' else ' '.join(words)} "
    lines = (line.strip() for line in (_command(words).epilog or "").splitlines())
    return example(
        *(line.replace("orc ", "orc plan ", 1) for line in lines if line.startswith(start))
    )


def _planned(words: Sequence[str]) -> click.Command:
    """A command of the same flags that prints what the command would do."""
    command = _command(words)
    planned = copy(command)
    planned.epilog = _epilog(words)
    # The command's own format is that of its result, of which there is none.
    own_format = {"form": "table"} if any(each.name == "form" for each in command.params) else {}
    planned.params = [
        *(each for each in command.params if each.name not in own_format),
        click.Option(
            ["--format", "planned_form"],
            type=click.Choice(["table", "json"]),
            help="Output format of the plan.  [default: table]",
        ),
    ]

    def show(planned_form: str | None, **values: Any) -> None:
        ctx = click.get_current_context()
        noted: list[_PlanningClient] = []
        ctx.meta[CLIENT_FACTORY] = partial(_PlanningClient, noted)
        with redirect_stdout(io.StringIO()), suppress(_PlanComplete):
            ctx.invoke(command.callback, **values, **own_format)  # type: ignore[arg-type]
        _print(noted, planned_form or ctx.meta[_FORM], of_stack=words[0] == "stack")

    planned.callback = show
    return planned


_FORM = "orchestrator.cli.service.plan_command"
"""Key of click's `meta`: the `--format` given before the command's words."""


@click.group(
    cls=PlanGroup,
    epilog=example(
        "orc plan service scale web=12",
        "orc plan node update --availability drain --format json node2",
        "orc plan run --affinity service==db tools:1",
    ),
)
@format_option()
@click.pass_context
def plan(ctx: click.Context, form: str) -> None:
    """Dry run: show what a command would start, stop or move, and where.

    A plan assumes that everything succeeds: it does not predict crashes.
    """
    ctx.meta[_FORM] = form


def _print(clients: Sequence[_PlanningClient], form: str, *, of_stack: bool) -> None:
    rows = [row for client in clients for row in client.planned()]
    steps = [step for client in clients for step in client.steps]
    if not rows and not steps and form == "table":
        click.echo("nothing would change", err=True)
    elif of_stack:
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
    """Print the plan of a stack command."""
    noted: list[_PlanningClient] = []
    with _PlanningClient(noted, context) as client:
        with redirect_stdout(io.StringIO()), suppress(_PlanComplete):
            command(client)
        _print(noted, "table", of_stack=True)


def _print_stack(steps: list[Row], rows: list[Row], form: str) -> None:
    """Print created, updated and removed objects, and then the effects on tasks."""
    if form == "json":
        print_json({"steps": steps, "tasks": rows})
        return
    print_table(steps, _STEP_COLUMNS)
    if rows:
        click.echo()
        print_table(rows, _COLUMNS)
