# SPDX-License-Identifier: Apache-2.0
"""The commands `orc dev …`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click

from orchestrator.dev.devcluster import DevCluster, HostStatus, list_clusters
from orchestrator.dev.devhost import environment
from orchestrator.dev.devplan import DevError

P = ParamSpec("P")

# As shells have it: 128 + SIGINT.
_INTERRUPTED = 130

_COLUMNS = ("host", "role", "address", "state", "pid", "daemon", "daemon_state", "restarts")


def _clusters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in list_clusters() if name.startswith(incomplete)]


def _hosts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completion: the hosts of the cluster on the command line."""
    try:
        hosts = DevCluster(ctx.params.get("name") or _in_use()).plan.hosts
    except DevError:
        return []
    return [host.name for host in hosts if host.name.startswith(incomplete)]


def _in_use() -> str:
    """The current context's cluster, if that is a dev cluster, else `dev`."""
    name = os.environ.get("ORC_CONTEXT", "")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if not name:
        with suppress(OSError):
            # As 'orc context show' reads it, in a tenth of a second less.
            name = Path(base, "orc", "current").read_text(encoding="utf-8").strip()
    return name if name in list_clusters() else "dev"


_name_in_use = click.option(
    "--name",
    default=_in_use,
    envvar="ORC_DEV_NAME",
    metavar="NAME",
    shell_complete=_clusters,
    help="Name of the dev cluster.  [default: that of the current context, or dev]",
)
_name = click.option(
    "--name",
    default="dev",
    show_default=True,
    envvar="ORC_DEV_NAME",
    metavar="NAME",
    shell_complete=_clusters,
    help="Name of the dev cluster.",
)


def _example(line: str) -> str:
    """The epilog of a command's help."""
    return f"\b\nExample:\n  {line}"


def _as_root(act: Callable[P, None]) -> Callable[P, None]:
    """Require root, and print errors as one line."""

    @wraps(act)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if os.geteuid() != 0:
                raise DevError(
                    "a dev cluster needs network and mount namespaces: run this command as root"
                )
            act(*args, **kwargs)
        except DevError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            click.echo(
                "interrupted: 'orc dev up' continues, 'orc dev down' removes the cluster", err=True
            )
            raise click.exceptions.Exit(_INTERRUPTED) from None

    return wrapped


@click.group(epilog=_example("orc dev up && orc node ls"))
def dev() -> None:
    """A cluster on this machine, with namespaces as hosts."""


@dev.command(epilog=_example("orc dev up --nodes 5"))
@click.option("--nodes", default=3, show_default=True, help="Number of nodes (agents).")
@click.option("--managers", default=1, show_default=True, help="Number of managers.")
@_name
@_as_root
def up(nodes: int, managers: int, name: str) -> None:
    """Start a cluster, or its missing parts, and wait until it is ready.

    Its admin context becomes the current one. With larger numbers, hosts are added.
    """
    cluster = DevCluster(name)
    plan = cluster.up(managers, nodes, click.echo)
    if plan.nodes > nodes:
        click.echo(f"the cluster keeps its {plan.nodes} nodes; 'orc dev up' removes none")


@dev.command(epilog=_example("orc dev down"))
@_name
@_as_root
def down(name: str) -> None:
    """Remove a cluster and all its data, in any state."""
    removed = DevCluster(name).down()
    if removed:
        click.echo(f"dev cluster {name!r} removed")
        return
    up = list_clusters()
    hint = f"; running: {', '.join(up)} (choose one with --name)" if up else ""
    click.echo(f"dev cluster {name!r} is not up{hint}")


@dev.command(epilog=_example("orc dev status --format json"))
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    help="Output format.",
)
@_name_in_use
@_as_root
def status(form: str, name: str) -> None:
    """Show each host, its address and its daemon."""
    rows = DevCluster(name).status()
    click.echo(
        json.dumps([asdict(row) for row in rows], indent=2) if form == "json" else _table(rows)
    )


@dev.command(epilog=_example("orc dev shell node1"))
@click.argument("node", shell_complete=_hosts)
@_name_in_use
@_as_root
def shell(node: str, name: str) -> None:
    """Open a shell on a host."""
    _enter(name, node, (os.environ.get("SHELL", "/bin/sh"), "-i"))


@dev.command(
    "exec",
    # Everything after the host belongs to the command.
    context_settings={"allow_interspersed_args": False},
    epilog=_example("orc dev exec node1 ip -brief address"),
)
@_name_in_use
@click.argument("node", shell_complete=_hosts)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_as_root
def exec_(node: str, command: tuple[str, ...], name: str) -> None:
    """Run a command on a host and return its exit status. Options come before the host."""
    _enter(name, node, command)


def _enter(name: str, node: str, command: tuple[str, ...]) -> None:
    argv = DevCluster(name).host(node).enter(command)
    keep = {key: os.environ[key] for key in ("TERM", "COLORTERM") if key in os.environ}
    sys.stdout.flush()
    os.execvpe(argv[0], argv, environment(keep))


@dev.command(epilog=_example("orc dev stop node1"))
@click.argument("node", shell_complete=_hosts)
@_name_in_use
@_as_root
def stop(node: str, name: str) -> None:
    """Stop a host's daemon; its containers keep running."""
    DevCluster(name).stop(node)


@dev.command(epilog=_example("orc dev start node1 -- --generic-resource gpu=2"))
@click.argument("node", shell_complete=_hosts)
@click.argument("flags", metavar="[-- FLAG...]", nargs=-1, type=click.UNPROCESSED)
@_name_in_use
@_as_root
def start(node: str, flags: tuple[str, ...], name: str) -> None:
    """Boot a host that is off, and start its daemon if it is stopped. Further flags apply until the
    daemon is stopped again."""
    DevCluster(name).start(node, flags)


@dev.command(epilog=_example("orc dev kill node1 && orc dev start node1"))
@click.argument("node", shell_complete=_hosts)
@_name_in_use
@_as_root
def kill(node: str, name: str) -> None:
    """Power a host off: all its processes end at once; its disk is kept."""
    DevCluster(name).kill(node)


@dev.command(epilog=_example("orc dev partition node2 node3"))
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True, shell_complete=_hosts)
@_name_in_use
@_as_root
def partition(nodes: tuple[str, ...], name: str) -> None:
    """Partition hosts from all others; the given ones still reach each other."""
    DevCluster(name).partition(nodes)


@dev.command(epilog=_example("orc dev heal"))
@_name_in_use
@_as_root
def heal(name: str) -> None:
    """End all partitions."""
    DevCluster(name).heal()


def _table(rows: list[HostStatus]) -> str:
    cells = [[column.upper().replace("_", " ") for column in _COLUMNS]]
    for row in rows:
        values = asdict(row)
        cells.append(["-" if values[c] is None else str(values[c]) for c in _COLUMNS])
        if row.partitioned:
            cells[-1][_COLUMNS.index("state")] += " (partitioned)"
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )
