# SPDX-License-Identifier: Apache-2.0
"""`orc inspect`: details of any object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError, Refused
from orchestrator.cli.cluster.node_commands import all_nodes
from orchestrator.cli.cluster.node_rows import node_row
from orchestrator.cli.container.ps_commands import add_sizes, container_documents
from orchestrator.cli.image.image_commands import image_document
from orchestrator.cli.network.network_commands import all_networks, network_documents
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.output.listings import Row, format_option, print_rows
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.service.service_commands import services_named
from orchestrator.cli.service.service_rows import service_document
from orchestrator.cli.storage.volume_commands import volumes_named


def _image(client: Client, name: str) -> list[Row]:
    return [image_document(client, name)]


def _nodes(client: Client, name: str) -> list[Row]:
    rows = [node_row(message) for message in all_nodes(client)]
    return [row for row in rows if name in (row["id"], row["hostname"])]


def _networks(client: Client, name: str) -> list[Row]:
    found = [each for each in all_networks(client) if name in (each.id, each.name)]
    return network_documents(client, found) if found else []


def _services(client: Client, name: str) -> list[Row]:
    return [service_document(message) for message in services_named(client, name)]


KINDS: Mapping[str, Callable[[Client, str], list[Row]]] = {
    "container": container_documents,
    "image": _image,
    "node": _nodes,
    "network": _networks,
    "service": _services,
    "volume": volumes_named,
}
"""Kind → how to find it, in Docker's order."""


@click.command(
    epilog=example("orc inspect web", "orc inspect -f '{{.State.Status}} {{.node}}' web.3")
)
@click.option(
    "--size", "-s", is_flag=True, help="Show disk usage of a container's files and its image."
)
@click.option("--type", "kind", type=click.Choice(list(KINDS)), help="Of this kind only.")
@format_option("json", templates=True, short=True)
@click.argument("names", nargs=-1, required=True, shell_complete=completes("containers"))
@pass_client
def inspect(
    client: Client, names: tuple[str, ...], form: str, size: bool, kind: str | None
) -> None:
    """Show details of containers, images, nodes, networks, services or volumes, as JSON. If several
    kinds have the name, the first of these is shown, unless --type is given."""
    found: list[tuple[str, Row]] = []
    with attempts() as attempt:
        for name in names:
            with attempt():
                found += _found(client, name, [kind] if kind else list(KINDS), size)
        if form in ("json", "table"):
            print_rows([row for _, row in found], (), "json")
        else:
            for which, row in found:
                print_rows([row], (), form, which)


def _found(client: Client, name: str, kinds: Sequence[str], size: bool) -> list[tuple[str, Row]]:
    """The objects of this name, and their kind. Raises CliError if there are none."""
    refusals: list[Refused] = []
    for kind in kinds:
        try:
            rows = KINDS[kind](client, name)
        except Refused as error:
            if not error.missing:
                raise
            refusals.append(error)
            continue
        if size and kind == "container":
            add_sizes(client, rows)
        if rows:
            return [(kind, row) for row in rows]
    near = next((each for each in refusals if "did you mean" in str(each)), None)
    if near or (len(kinds) == 1 and refusals):
        raise near or refusals[0]
    *others, last = kinds
    what = f"{', '.join(others)} or {last}" if others else last
    raise CliError(f"no {what} {name!r}")
