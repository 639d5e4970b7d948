"""`orc stack config`: what compose files say together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.groups import example
from orchestrator.cli.output import print_json
from orchestrator.cli.stack_files import checked_name, file_options, read_files
from orchestrator.compose.project import escaped
from orchestrator.compose.tree import plain
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
        given.stack(checked_name(given.document.text("name") or "stack"))
    for note in given.notes:
        click.echo(f"note: {note}", err=True)
    if quiet:
        return
    document = given.document
    shown = {key: each for key, each in document.entries.items() if key != "version"}
    document = replace(document, entries=shown)
    if form == "json":
        print_json(plain(document))
    else:
        tree = document if skip_interpolation else escaped(document)
        click.echo(dump(tree), nl=False)
