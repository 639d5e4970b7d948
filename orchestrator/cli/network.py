"""`orc network`: the networks of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import CliError, OrcGroup, example
from orchestrator.cli.output import (
    Row,
    format_option,
    listing_options,
    print_fields,
    print_json,
    print_list,
)
from orchestrator.cli.rows import network_columns, network_row
from orchestrator.model.names import near_miss
from orchestrator.model.specs import DEFAULT_NETWORK
from orchestrator.pb import control_pb2


@click.group(cls=OrcGroup, epilog=example("orc network ls"))
def network() -> None:
    """Networks: every container on one is reached from every host."""


@network.command("ls", epilog=example("orc network ls --format json"))
@listing_options("id", "name", "driver")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@pass_client
def list_networks(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the networks."""
    rows = [network_row(message) for message in _networks(client)]
    rows.sort(key=lambda row: row["name"])
    print_list(rows, network_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@network.command(epilog=example("orc network inspect NAME"))
@click.argument("networks", nargs=-1, required=True, shell_complete=completion.networks)
@format_option("json")
@click.option("--pretty", is_flag=True, help="The same as --format table.")
@pass_client
def inspect(client: Client, networks: tuple[str, ...], form: str, pretty: bool) -> None:
    """Show networks with their services, and the subnet of each node."""
    known = _networks(client)
    found = [_find(known, name) for name in networks]
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    hostnames = {row.node.id: row.node.description.hostname for row in nodes}
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    rows = [_document(message, hostnames, services) for message in found]
    if form == "json" and not pretty:
        print_json(rows)
        return
    for index, row in enumerate(rows):
        if index:
            click.echo()
        print_fields(
            [
                ("ID", row["id"]),
                ("Name", row["name"]),
                ("Driver", row["driver"]),
                ("Subnet", row["subnet"]),
                ("VNI", str(row["vni"])),
                ("Services", ", ".join(each["name"] for each in row["services"])),
                *((f"Node {each['hostname']}", each["subnet"]) for each in row["nodes"]),
            ]
        )


def _document(message: Any, hostnames: Mapping[str, str], services: Sequence[Any]) -> Row:
    """A network with the services on it; a service that names none is on the default one."""
    nodes = [
        {"id": node, "hostname": hostnames.get(node, node), "subnet": subnet}
        for node, subnet in message.slices.items()
    ]
    specs = [row.service.spec for row in services]
    return {
        **network_row(message),
        "services": [
            {"name": spec.name, "vip": None}
            for spec in sorted(specs, key=lambda spec: spec.name)
            if message.name in ([each.network for each in spec.task.networks] or [DEFAULT_NETWORK])
        ],
        "nodes": sorted(nodes, key=lambda node: node["hostname"]),
    }


def _networks(client: Client) -> Sequence[Any]:
    request = control_pb2.ListNetworksRequest()
    networks: Sequence[Any] = client.call("ListNetworks", request).networks
    return networks


def _find(networks: Sequence[Any], name: str) -> Any:
    for each in networks:
        if name in (each.name, each.id):
            return each
    meant = near_miss(name, [each.name for each in networks])
    hint = f"did you mean {meant!r}?" if meant else "'orc network ls' shows those there are"
    raise CliError(f"no network {name!r}; {hint}")
