"""`orc top`: the processes of a container."""

from __future__ import annotations

from functools import partial

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import example
from orchestrator.cli.output import Column, Row, format_option, print_json, print_table


@click.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    epilog=example("orc top web.3", "orc top web.3 -o pid,rss,args"),
)
@format_option()
@click.argument("container", shell_complete=completion.running)
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@pass_client
def top(client: Client, form: str, container: str, ps_options: tuple[str, ...]) -> None:
    """Show the processes of a container, as its node's ps(1) does, -ef unless told otherwise."""
    from orchestrator.pb import interact_pb2

    reply = client.call(
        "Interact.Top", interact_pb2.TopRequest(container=container, ps_options=ps_options)
    )
    rows = [dict(zip(reply.titles, process.fields, strict=False)) for process in reply.processes]
    if form == "json":
        print_json([{key.lower().lstrip("%"): row[key] for key in row} for row in rows])
    else:
        print_table(rows, [Column(title, partial(_field, title)) for title in reply.titles])


def _field(title: str, row: Row) -> str:
    return str(row.get(title, ""))
