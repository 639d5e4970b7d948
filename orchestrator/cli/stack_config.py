"""`orc stack config`: what compose files say together."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.groups import example
from orchestrator.cli.output import print_json
from orchestrator.cli.stack_files import file_options, read_files
from orchestrator.compose.render import escaped, rendered
from orchestrator.compose.tree import Node, plain
from orchestrator.compose.yamlfile import dump


@click.command(
    epilog=example(
        "orc stack config -c compose.yaml",
        "orc stack config -c compose.yaml -c production.yaml --format json",
    )
)
@file_options
@click.option(
    "--skip-interpolation", "--no-interpolate", is_flag=True, help="Leave variables as they are."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="How to print it.",
)
@click.option("--quiet", "-q", is_flag=True, help="Only say what is wrong.")
@click.argument("folder", required=False, shell_complete=completion.folders)
def config(
    folder: str | None, skip_interpolation: bool, form: str, quiet: bool, **values: Any
) -> None:
    """Print the one file that compose files are together: merged, with their variables filled in,
    and everything in its long form. Nothing is asked of a cluster."""
    given = read_files(values, folder, interpolate=not skip_interpolation)
    if not skip_interpolation:
        given.stack()
    for note in given.notes:
        click.echo(f"note: {note}", err=True)
    if quiet:
        return
    document: Node = given.document
    if not skip_interpolation:
        document = escaped(rendered(given.document, given.name))
    if form == "json":
        print_json(plain(document))
    else:
        click.echo(dump(document), nl=False)
