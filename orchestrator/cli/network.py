"""`orc network`: the networks of the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.conflist_file import taken_conflist
from orchestrator.cli.flag_types import pairs
from orchestrator.cli.groups import CliError, Lazy, OrcGroup, example
from orchestrator.cli.network_rows import (
    described_network,
    network_columns,
    network_fields,
    network_row,
)
from orchestrator.cli.output import (
    Row,
    listing_options,
    print_fields,
    print_list,
)
from orchestrator.cli.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.cli.several import inspect_options, one_by_one, print_inspected
from orchestrator.model.names import near_miss
from orchestrator.model.networks import ENCRYPTED, read_encrypted
from orchestrator.pb import control_pb2, networks_pb2, types_pb2


@click.group(
    cls=OrcGroup,
    sections=(
        ("Groups", (Lazy("policy", "orchestrator.cli.network_policy:policy", "Who may connect"),)),
        (
            "Tests",
            (
                Lazy(
                    "doctor",
                    "orchestrator.cli.network_doctor:doctor",
                    "What is wrong between the nodes, and what mends it",
                ),
            ),
        ),
    ),
    epilog=example("orc network create back", "orc network ls"),
)
def network() -> None:
    """Networks: every container on one is reached from every host, and from no other network."""


@network.command(
    epilog=example(
        "orc network create back",
        "orc network create --subnet 10.5.0.0/16 --ipv6 front",
        "orc network create --driver cni --opt conflist=lan.conflist lan",
    )
)
@click.option(
    "--driver",
    "-d",
    default="",
    metavar="DRIVER",
    help="overlay (over all nodes; the default), bridge (one of its own on each node), cni (a "
    "chain of CNI plugins), or the name of a Docker network plugin.",
)
@click.option(
    "--subnet",
    multiple=True,
    metavar="SUBNET",
    help="Such as 10.5.0.0/16, and one of IPv6; else one that is free is chosen.",
)
@click.option(
    "--gateway",
    default="",
    metavar="IP",
    help="The place of each node's gateway in its part of the network, as in the first part.",
)
@click.option("--ip-range", default="", metavar="SUBNET", help="The part to give out by itself.")
@click.option("--ipv6", is_flag=True, help="IPv6 besides IPv4.")
@click.option("--internal", is_flag=True, help="No way out of it.")
@click.option(
    "--attachable",
    is_flag=True,
    help="For containers of their own, not services only; so unless --driver says overlay.",
)
@click.option(
    "--opt",
    "-o",
    multiple=True,
    metavar="KEY=VALUE",
    help="mtu=BYTES, encrypted, node-prefix=BITS (of the part that a node has), "
    "source-check=on|off (drop packets with forged source addresses; default on), "
    "allowed-sources=SUBNET,... (that containers may send from besides); of driver cni "
    "conflist=FILE and scope=local|global; of a plugin its own.",
)
@click.option(
    "--ipam-driver", default="", metavar="NAME", help="A plugin that gives out its addresses."
)
@click.option("--ipam-opt", multiple=True, metavar="KEY=VALUE", help="For that plugin; repeatable.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
@click.argument("name", required=False, default="")
@pass_client
def create(
    client: Client,
    driver: str,
    subnet: tuple[str, ...],
    gateway: str,
    ip_range: str,
    ipv6: bool,
    internal: bool,
    attachable: bool,
    opt: tuple[str, ...],
    ipam_driver: str,
    ipam_opt: tuple[str, ...],
    label: tuple[str, ...],
    name: str,
) -> None:
    """Create a network.

    Of driver cni its name is that of its conflist, if none is given.
    """
    options = pairs("option", opt)
    conflist, name = taken_conflist(driver, options, name)
    try:
        encrypted = read_encrypted(options.pop("encrypted", None))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'--opt'") from None
    request = networks_pb2.CreateNetworkRequest(
        name=name,
        driver=driver,
        subnets=subnet,
        gateway=gateway,
        ip_range=ip_range,
        ipv6=ipv6,
        internal=internal,
        attachable=attachable or not driver,
        encrypted=encrypted,
        options=options,
        labels=pairs("label", label),
        conflist=conflist,
        ipam_driver=ipam_driver,
        ipam_options=pairs("ipam option", ipam_opt),
    )
    click.echo(client.call("Networks.CreateNetwork", request).id)
    if encrypted and not _some_node_encrypts(client):
        click.echo(
            "no node can encrypt: its kernel must have WireGuard (modprobe wireguard), and then its"
            " agent be started again",
            err=True,
        )


def _some_node_encrypts(client: Client) -> bool:
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    return any(ENCRYPTED in row.node.description.network_features for row in nodes)


@network.command("ls", epilog=example("orc network ls --format json"))
@listing_options("id", "name", "driver", "label", "internal")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@pass_client
def list_networks(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the networks."""
    rows = [network_row(message) for message in all_networks(client)]
    rows.sort(key=lambda row: row["name"])
    print_list(rows, network_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@network.command(epilog=example("orc network inspect NAME"))
@click.argument("networks", nargs=-1, required=True, shell_complete=completion.networks)
@inspect_options
@pass_client
def inspect(client: Client, networks: tuple[str, ...], form: str) -> None:
    """Show networks with their services and containers, and the subnet of each node."""
    known = all_networks(client)
    rows = network_documents(client, [_find(known, name) for name in networks])
    print_inspected(rows, form, lambda row: print_fields(network_fields(row)), kind="network")


def network_documents(client: Client, found: Sequence[types_pb2.Network]) -> list[Row]:
    """All that is known of networks."""
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    hostnames = {row.node.id: row.node.description.hostname for row in nodes}
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    tasks = client.call("ListTasks", control_pb2.ListTasksRequest()).tasks
    return [described_network(message, hostnames, services, tasks) for message in found]


@network.command(epilog=example("orc network rm back front"))
@click.argument("networks", nargs=-1, required=True, shell_complete=completion.networks)
@click.option("--force", "-f", is_flag=True, help="One that is not there is no error.")
@pass_client
def rm(client: Client, networks: tuple[str, ...], force: bool) -> None:
    """Remove networks. One in use is not removed."""
    if force:
        known = {word for each in all_networks(client) for word in (each.name, each.id)}
        networks = tuple(name for name in networks if name in known)

    def remove(name: str) -> None:
        client.call("Networks.RemoveNetwork", networks_pb2.RemoveNetworkRequest(network=name))

    one_by_one(networks, remove)


@network.command(
    epilog=example("orc network connect back db", "orc network connect --alias db back db-1")
)
@click.option("--alias", multiple=True, metavar="NAME", help="A further name there; repeatable.")
@click.option("--ip", default="", metavar="IP", help="A fixed IPv4 address.")
@click.option("--ip6", default="", metavar="IP", help="A fixed IPv6 address.")
@click.option("--mac-address", default="", metavar="MAC", help="A fixed hardware address.")
@click.option(
    "--driver-opt", multiple=True, metavar="KEY=VALUE", help="For its driver; repeatable."
)
@click.argument("network", shell_complete=completion.networks)
@click.argument("container", shell_complete=completion.containers)
@pass_client
def connect(
    client: Client,
    alias: tuple[str, ...],
    ip: str,
    ip6: str,
    mac_address: str,
    driver_opt: tuple[str, ...],
    network: str,
    container: str,
) -> None:
    """Put a container on a network, also while it runs."""
    attachment = types_pb2.NetworkAttachment(
        network=_find(all_networks(client), network).name,
        aliases=alias,
        ip=filter(None, (ip,)),
        ip6=filter(None, (ip6,)),
        mac=mac_address.lower(),
        options=pairs("driver option", driver_opt),
    )
    request = networks_pb2.ConnectNetworkRequest(attachment=attachment, container=container)
    client.call("Networks.ConnectNetwork", request)


@network.command(epilog=example("orc network disconnect back db"))
@click.option("--force", "-f", is_flag=True, help="Do not wait for its node.")
@click.argument("network", shell_complete=completion.networks)
@click.argument("container", shell_complete=completion.containers)
@pass_client
def disconnect(client: Client, force: bool, network: str, container: str) -> None:
    """Take a container off a network, also while it runs."""
    found = [each.name for each in all_networks(client) if network in (each.name, each.id)]
    request = networks_pb2.DisconnectNetworkRequest(
        network=found[0] if found else network, container=container, force=force
    )
    client.call("Networks.DisconnectNetwork", request)


@network.command(epilog=example("orc network prune --force"))
@prune_options
@pass_client
def prune(client: Client, filters: PruneFilters, force: bool) -> None:
    """Remove the networks that nobody uses."""
    if not force:
        confirm(["all networks that nobody uses"], filters)
    request = filters.put_into(networks_pb2.PruneNetworksRequest())
    reply = client.call("Networks.PruneNetworks", request)
    for name in reply.names:
        click.echo(name)
    for notice in reply.notices:
        click.echo(f"orc: {notice}", err=True)


def all_networks(client: Client) -> Sequence[types_pb2.Network]:
    """The networks of the cluster."""
    request = control_pb2.ListNetworksRequest()
    networks: Sequence[types_pb2.Network] = client.call("ListNetworks", request).networks
    return networks


def find_network(client: Client, name: str) -> types_pb2.Network:
    """The network of that name, id or beginning of an id. Raises CliError."""
    return _find(all_networks(client), name)


def _find(networks: Sequence[types_pb2.Network], name: str) -> types_pb2.Network:
    for each in networks:
        if name in (each.name, each.id):
            return each
    begun = [each for each in networks if name and each.id.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    meant = near_miss(name, [each.name for each in networks])
    hint = f"did you mean {meant!r}?" if meant else "see 'orc network ls'"
    raise CliError(f"no network {name!r}; {hint}")
