"""`orc context`: which cluster `orc` speaks to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from orchestrator.cli import completion
from orchestrator.cli.context import (
    DEFAULT_PORT,
    Context,
    current_context,
    list_contexts,
    load_context,
    remove_context,
    save_context,
    use_context,
)
from orchestrator.cli.groups import CliError, OrcGroup, example
from orchestrator.cli.output import Column, listing_options, print_list


@click.group(cls=OrcGroup, epilog=example("orc context ls"))
def context() -> None:
    """Contexts: the clusters that orc can speak to, and the one that it does."""


@context.command("ls", epilog=example("orc context ls"))
@listing_options("name")
def list_all(form: str, quiet: bool, filters: Mapping[str, Sequence[str]]) -> None:
    """List the contexts; a star marks the one in use."""
    current = current_context()
    rows = [
        {
            "id": name,
            "name": name,
            "endpoints": list(load_context(name).endpoints),
            "current": name == current,
        }
        for name in list_contexts()
    ]
    columns = [
        Column("NAME", lambda row: row["name"] + (" *" if row["current"] else "")),
        Column("MANAGERS", lambda row: ", ".join(row["endpoints"])),
    ]
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


@context.command(epilog=example("orc context use dev"))
@click.argument("name", shell_complete=completion.contexts)
def use(name: str) -> None:
    """Make a context the one in use."""
    use_context(name)
    click.echo(name)


@context.command(epilog=example("orc context rm old"))
@click.argument("names", nargs=-1, required=True, shell_complete=completion.contexts)
def rm(names: tuple[str, ...]) -> None:
    """Forget contexts, with their keys."""
    for name in names:
        remove_context(name)
        click.echo(name)


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
@click.option(
    "--ca",
    required=True,
    metavar="FILE",
    shell_complete=completion.files,
    help="The cluster's CA certificate (PEM).",
)
@click.option(
    "--cert",
    required=True,
    metavar="FILE",
    shell_complete=completion.files,
    help="An admin's certificate (PEM).",
)
@click.option(
    "--key",
    required=True,
    metavar="FILE",
    shell_complete=completion.files,
    help="The certificate's key (PEM).",
)
@click.option("--use/--no-use", default=True, help="Make it the one in use.")
def create(name: str, endpoints: tuple[str, ...], ca: str, cert: str, key: str, use: bool) -> None:
    """Add a context from an admin's certificate."""
    if name in list_contexts():
        raise CliError(f"there is a context {name!r} already; 'orc context rm {name}' removes it")
    context = Context(
        name=name,
        endpoints=tuple(map(_endpoint, endpoints)),
        ca=_pem(ca, "CERTIFICATE"),
        certificate=_pem(cert, "CERTIFICATE"),
        key=_pem(key, "PRIVATE KEY"),
    )
    save_context(context, use=use)
    click.echo(name)


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
