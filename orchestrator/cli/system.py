"""`orc version` and `orc completion`."""

from __future__ import annotations

import platform

import click

from orchestrator import __version__
from orchestrator.cli.client import Client
from orchestrator.cli.completion import contexts
from orchestrator.cli.context import current_context, load_context
from orchestrator.cli.groups import CliError, example
from orchestrator.cli.output import Row, format_option, print_fields, print_json, print_rows
from orchestrator.pb import control_pb2

_RC_LINES = {
    "bash": "source <(orc completion bash)      # in ~/.bashrc",
    "zsh": "source <(orc completion zsh)       # in ~/.zshrc",
    "fish": "orc completion fish | source       # in ~/.config/fish/config.fish",
}


@click.command(epilog=example("orc version --format json"))
@format_option(templates=True, short=True)
@click.option(
    "--context",
    "context_name",
    metavar="NAME",
    shell_complete=contexts,
    help="The cluster to speak to.",
)
@click.pass_context
def version(ctx: click.Context, form: str, context_name: str | None) -> None:
    """Show the versions of orc and of the manager that it speaks to."""
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
    """What the manager says of itself; with no cluster set up, nothing is wrong with that."""
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
    """Print the script that completes commands, and the names in the cluster, in your shell."""
    from orchestrator.cli.shells import script

    click.echo(script(shell, ctx.find_root().command), nl=False)
