# SPDX-License-Identifier: Apache-2.0
"""`orc network policy`: allowed connections inside a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.flags.spec_flags import ports
from orchestrator.cli.network.network_commands import find_network
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    enum_word,
    listing_options,
    print_list,
    rfc3339,
    short,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.objects import NetworkPolicy, PolicyPort
from orchestrator.pb import policies_pb2, types_pb2


@click.group(
    cls=OrcGroup,
    epilog=example(
        "orc network policy deny back --to db",
        "orc network policy allow back --from web --to db --port 5432",
    ),
)
def policy() -> None:
    """Manage allowed connections inside a network. By default, all are allowed."""


def _add(client: Client, network: str, policy: NetworkPolicy) -> None:
    request = policies_pb2.AddPolicyRequest(network=network, policy=to_proto(policy))
    click.echo(client.call("Policies.AddPolicy", request).id)


_from = click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="NAME",
    shell_complete=completes("services"),
    help="Service or container that connects; repeatable.  [default: any]",
)
_to = click.option(
    "--to",
    "destination",
    required=True,
    metavar="NAME",
    shell_complete=completes("services"),
    help="Service or container that is connected to.",
)
_port = click.option(
    "--port",
    "numbers",
    multiple=True,
    metavar="PORT[/udp]",
    help="Port of its containers, or a range; repeatable.  [default: all]",
)
_network = click.argument("name", metavar="NETWORK", shell_complete=completes("networks"))


@policy.command(epilog=example("orc network policy deny back --to db"))
@_from
@_to
@_port
@_network
@pass_client
def deny(
    client: Client, sources: tuple[str, ...], destination: str, numbers: tuple[str, ...], name: str
) -> None:
    """Deny connections that no policy allows; existing ones are cut."""
    _add(client, name, _policy(False, sources, destination, numbers))


@policy.command(epilog=example("orc network policy allow back --from web --to db --port 5432"))
@_from
@_to
@_port
@_network
@pass_client
def allow(
    client: Client, sources: tuple[str, ...], destination: str, numbers: tuple[str, ...], name: str
) -> None:
    """Allow connections, overriding denials."""
    _add(client, name, _policy(True, sources, destination, numbers))


@policy.command("ls", epilog=example("orc network policy ls back"))
@_network
@listing_options("id", "action", "to")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_policies(
    client: Client,
    name: str,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
) -> None:
    """List the policies of a network."""
    rows = [_row(message) for message in find_network(client, name).policies]
    columns = [
        short("POLICY ID", "id", no_trunc),
        column("ACTION", "action"),
        Column("FROM", lambda row: ", ".join(row["from"]) or "any"),
        column("TO", "to"),
        Column("PORTS", lambda row: ", ".join(row["ports"]) or "all"),
    ]
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


@policy.command("rm", epilog=example("orc network policy rm back 3k9x"))
@_network
@click.argument("policies", nargs=-1, required=True, metavar="POLICY...")
@pass_client
def remove(client: Client, name: str, policies: tuple[str, ...]) -> None:
    """Remove policies of a network."""
    for each in policies:
        request = policies_pb2.RemovePolicyRequest(network=name, policy=each)
        click.echo(client.call("Policies.RemovePolicy", request).id)


def _policy(
    allow: bool, sources: Iterable[str], destination: str, numbers: Iterable[str]
) -> NetworkPolicy:
    found: list[PolicyPort] = []
    for text in numbers:
        range_, slash, protocol = text.partition("/")
        listed = ports([f"{range_}:{range_}{slash}{protocol}"])
        found += [PolicyPort(each.target, each.protocol) for each in listed]
    return NetworkPolicy(
        allow=allow,
        destination=destination,
        sources=tuple(sorted(set(sources))),
        ports=tuple(found),
    )


def _row(message: types_pb2.NetworkPolicy) -> Row:
    policy: NetworkPolicy = from_proto(message)
    return {
        "id": policy.id,
        "action": "allow" if policy.allow else "deny",
        "from": list(policy.sources),
        "to": policy.destination,
        "ports": [f"{each.port}/{enum_word(each.protocol)}" for each in policy.ports],
        "created_at": rfc3339(policy.created_at),
    }
