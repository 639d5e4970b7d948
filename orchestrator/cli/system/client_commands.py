# SPDX-License-Identifier: Apache-2.0
"""`orc version`, `orc completion` and `orc dashboard`."""

from __future__ import annotations

import os
import platform
from urllib.parse import quote

import click

from orchestrator import __version__
from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import context_option
from orchestrator.cli.app.contexts import current_context, load_context
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.listings import (
    Row,
    format_option,
    print_fields,
    print_json,
    print_rows,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.pb import control_pb2, dashboard_pb2

_RC_LINES = {
    "bash": "source <(orc completion bash)      # in ~/.bashrc",
    "zsh": "source <(orc completion zsh)       # in ~/.zshrc",
    "fish": "orc completion fish | source       # in ~/.config/fish/config.fish",
}


@click.command(epilog=example("orc version --format json"))
@format_option(templates=True, short=True)
@context_option()
@click.pass_context
def version(ctx: click.Context, form: str, context_name: str | None) -> None:
    """Show the versions of orc and of the manager."""
    client = {"version": __version__, "python": platform.python_version()}
    name = context_name or ctx.find_root().params.get("context_name")
    server, problem = _server(name)
    if form != "table":
        document = {"client": client, "server": server}
        if form == "json":
            print_json(document)
        else:
            print_rows([document], (), form)
    else:
        print_fields([("Client", client["version"]), ("Python", client["python"])])
        if server:
            print_fields([("Server", server["version"]), ("Cluster", server["cluster"])])
    if problem:
        raise problem


def _server(name: str | None) -> tuple[Row | None, CliError | None]:
    """The manager's version; not having a cluster is not an error."""
    try:
        context = load_context(name)
    except CliError as error:
        return None, error if name or current_context() else None
    try:
        with Client(context) as client:
            reply = client.call("GetCluster", control_pb2.GetClusterRequest())
    except CliError as error:
        return None, error
    return {"version": reply.version, "cluster": reply.id}, None


@click.command(epilog=example(*_RC_LINES.values()))
@click.argument("shell", type=click.Choice(list(_RC_LINES)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands and names of cluster objects in your shell."""
    from orchestrator.cli.completion.shells import script

    click.echo(script(shell, ctx.find_root().command), nl=False)


@click.command(epilog=example("orc dashboard", "orc dashboard --read-only --no-open"))
@click.option("--read-only", is_flag=True, help="Open a read-only session.")
@click.option("--no-open", is_flag=True, help="Only print the address; open no browser.")
@click.option("--quiet", "-q", is_flag=True, help="Print the address only.")
@pass_client
def dashboard(client: Client, read_only: bool, no_open: bool, quiet: bool) -> None:
    """Print the address of the cluster's web page, and open it.

    The address opens one session, for the first browser that uses it within five minutes. The
    session ends after twelve hours, or after half an hour with the page closed. 'orc cluster
    sessions' lists it and 'orc cluster revoke session' ends it. It ends with your certificate, too.
    """
    reply = client.call(
        "Dashboard.OpenDashboard", dashboard_pb2.OpenDashboardRequest(read_only=read_only)
    )
    url = f"https://{reply.address}/#ticket={quote(reply.ticket, safe='')}"
    click.echo(url)
    if quiet:
        return
    click.echo(
        f"Open it within {reply.valid_for / 60:g} minutes. Browsers do not know the cluster's CA; "
        f"the certificate's SHA-256 is\n{reply.fingerprint}",
        err=True,
    )
    if not no_open and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        click.launch(url)
