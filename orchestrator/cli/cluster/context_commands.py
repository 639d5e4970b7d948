# SPDX-License-Identifier: Apache-2.0
"""`orc context`: the cluster that `orc` calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.contexts import (
    DEFAULT_PORT,
    Context,
    context_file,
    context_in_use,
    dump_context,
    list_contexts,
    load_context,
    parse_context,
    previous_context,
    remove_context,
    save_context,
    use_context,
)
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.batch import one_by_one
from orchestrator.cli.output.listings import (
    Column,
    format_option,
    listing_options,
    print_list,
    print_rows,
)


@click.group(cls=OrcGroup, epilog=example("orc context ls"))
def context() -> None:
    """Manage contexts: the clusters that orc can call, and the current one."""


@context.command("ls", epilog=example("orc context ls"))
@listing_options("name")
def list_all(form: str, quiet: bool, filters: Mapping[str, Sequence[str]]) -> None:
    """List the contexts; a star marks the one in use."""
    current = context_in_use()
    rows = [
        {
            "id": name,
            "name": name,
            "endpoints": list(load_context(name).endpoints),
            "current": name == current,
        }
        for name in list_contexts()
    ]
    print_list(rows, _COLUMNS, form=form, quiet=quiet, filters=filters)


_COLUMNS = [
    Column("NAME", lambda row: row["name"] + (" *" if row["current"] else "")),
    Column("MANAGERS", lambda row: ", ".join(row["endpoints"])),
]


@context.command(epilog=example("orc context show", "PS1='($(orc context show)) $ '"))
def show() -> None:
    """Print the name of the context in use, set by ORC_CONTEXT or 'orc context use'."""
    click.echo(load_context().name)


@context.command(epilog=example("orc context inspect", "orc context inspect prod"))
@click.argument("names", nargs=-1, shell_complete=completes("contexts"))
@format_option("json", templates=True, short=True)
def inspect(names: tuple[str, ...], form: str) -> None:
    """Show contexts, by default the one in use, without their keys."""
    current = context_in_use()
    rows = []
    for each in [load_context(name) for name in names] or [load_context()]:
        rows.append(
            {
                "id": each.name,
                "name": each.name,
                "endpoints": list(each.endpoints),
                "current": each.name == current,
                "file": context_file(each.name),
                "ca": each.ca,
                "certificate": each.certificate,
            }
        )
    print_rows(rows, _COLUMNS, form)


@context.command(epilog=example("orc context export prod prod.json", "orc context export prod -"))
@click.argument("name", shell_complete=completes("contexts"))
@click.argument("file", metavar="[FILE|-]", required=False, shell_complete=completes("files"))
def export(name: str, file: str | None) -> None:
    """Write a context to a file (NAME.json), for 'orc context import' on another host. The file
    contains the private key: its holder is an admin of the cluster."""
    text = dump_context(load_context(name))
    if file == "-":
        click.echo(text, nl=False)
        return
    path = Path(file or f"{name}.json")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text)
    except OSError as error:
        raise CliError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    click.echo(path)


@context.command("import", epilog=example("orc context import prod prod.json"))
@click.argument("name")
@click.argument("file", metavar="FILE|-", shell_complete=completes("files"))
@click.option("--use/--no-use", default=True, help="Make it the current context.")
def import_(name: str, file: str, use: bool) -> None:
    """Add a context that 'orc context export' wrote."""
    _new(name)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        found = parse_context(name, text)
    except OSError as error:
        raise CliError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise CliError(f"{file} is not a context; 'orc context export' writes one") from None
    save_context(found, use=use)
    click.echo(name)


def _new(name: str) -> None:
    if name in list_contexts():
        raise CliError(f"context {name!r} exists already; 'orc context rm {name}' removes it")


@context.command(epilog=example("orc context use dev", "orc context use -"))
@click.argument("name", shell_complete=completes("contexts"))
def use(name: str) -> None:
    """Make a context the current one; - is the previous one."""
    if name == "-":
        earlier = previous_context()
        if earlier is None:
            raise CliError("there is no previous context; see 'orc context ls'")
        name = earlier
    use_context(name)
    click.echo(name)


@context.command(epilog=example("orc context rm old"))
@click.option("--back", is_flag=True, help="If it is current, make the previous context current.")
@click.argument("names", nargs=-1, required=True, shell_complete=completes("contexts"))
def rm(names: tuple[str, ...], back: bool) -> None:
    """Remove contexts and their keys."""
    one_by_one(names, lambda name: remove_context(name, back=back))


@context.command(
    epilog=example(
        "orc context create prod --endpoint 10.0.0.1:7420 "
        "--ca ca.pem --cert admin.pem --key admin.key"
    )
)
@click.argument("name")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    required=True,
    metavar="HOST[:PORT]",
    help=f"A manager's address; repeatable. The port is {DEFAULT_PORT} unless given.",
)
@file_option("--ca", required=True, help="The cluster's CA certificate (PEM).")
@file_option("--cert", required=True, help="An admin's certificate (PEM).")
@file_option("--key", required=True, help="The certificate's key (PEM).")
@click.option("--use/--no-use", default=True, help="Make it the current context.")
def create(name: str, endpoints: tuple[str, ...], ca: str, cert: str, key: str, use: bool) -> None:
    """Add a context from an admin's certificate."""
    _new(name)
    context = Context(
        name=name,
        endpoints=tuple(map(_endpoint, endpoints)),
        ca=_pem(ca, "CERTIFICATE"),
        certificate=_pem(cert, "CERTIFICATE"),
        key=_pem(key, "PRIVATE KEY"),
    )
    save_context(context, use=use)
    click.echo(name)


@context.command(
    epilog=example(
        "orc context update --endpoint 192.168.1.20",
        "orc context update --endpoint 192.168.1.20 --endpoint 192.168.1.21 prod",
    )
)
@click.argument("name", required=False, shell_complete=completes("contexts"))
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    required=True,
    metavar="HOST[:PORT]",
    help=f"A manager's address; repeatable. The port is {DEFAULT_PORT} unless given.",
)
def update(name: str | None, endpoints: tuple[str, ...]) -> None:
    """Set the managers of a context, by default of the one in use.

    Contexts learn new managers by themselves. This is for the case that all of them got other
    addresses, as after a restore.
    """
    found = load_context(name)
    save_context(replace(found, endpoints=tuple(map(_endpoint, endpoints))), use=False)
    click.echo(found.name)


def _endpoint(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return f"{text}:{DEFAULT_PORT}"
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise click.BadParameter(f"endpoint {text!r} is not of the form HOST[:PORT]")
    return text


def _pem(path: str, kind: str) -> str:
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        text = ""
    if f"{kind}-----" not in text:
        raise CliError(f"{path} holds no PEM {kind.lower()}")
    return text
