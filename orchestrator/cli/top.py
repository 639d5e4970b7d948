"""`orc top`: the cluster, live; with a container, its processes."""

from __future__ import annotations

from functools import partial

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import example
from orchestrator.cli.output import Column, Row, format_option, print_json, print_table


@click.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
    epilog=example("orc top", "orc top web.3", "orc top web.3 -o pid,rss,args"),
)
@click.option("--no-stream", is_flag=True, help="Of the cluster: show one picture and end.")
@format_option(templates=True)
@click.argument("container", required=False, shell_complete=completion.running)
@click.argument("ps_options", nargs=-1, type=click.UNPROCESSED)
@pass_client
def top(
    client: Client, no_stream: bool, form: str, container: str | None, ps_options: tuple[str, ...]
) -> None:
    """Show the cluster live: nodes with their shares and memory, services and tasks with what they
    use, to be sorted, filtered and walked about in. With a container, show its processes, as its
    node's ps(1) does, -ef unless told otherwise."""
    if container is None:
        from orchestrator.cli.cluster_top import show_cluster

        show_cluster(client, no_stream, form)
        return
    titles, rows = processes(client, container, ps_options)
    if form == "json":
        print_json([{key.lower().lstrip("%"): row[key] for key in row} for row in rows])
    elif form == "table":
        print_table(rows, [Column(title, partial(_field, title)) for title in titles])
    else:
        raise click.UsageError("processes are shown as a table or as json")


def processes(
    client: Client, container: str, ps_options: tuple[str, ...] = ()
) -> tuple[list[str], list[Row]]:
    """The titles of what a container's node tells of its processes, and a row for each."""
    from orchestrator.pb import interact_pb2

    reply = client.call(
        "Interact.Top", interact_pb2.TopRequest(container=container, ps_options=ps_options)
    )
    titles = list(reply.titles)
    return titles, [dict(zip(titles, each.fields, strict=False)) for each in reply.processes]


def _field(title: str, row: Row) -> str:
    return str(row.get(title, ""))
