# SPDX-License-Identifier: Apache-2.0
"""`orc network`: the networks of the cluster.

The file of `--opt conflist=FILE` is read by the client, on the user's host.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from orchestrator.cli.app.command_groups import Lazy, OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.flags.flag_types import pairs
from orchestrator.cli.flags.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.cli.output.batch import inspect_options, one_by_one, print_inspected
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    listing_options,
    print_fields,
    print_list,
    rfc3339,
    short,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.rpc.task_pages import list_tasks
from orchestrator.model.convert import from_proto
from orchestrator.model.names import near_miss
from orchestrator.model.networks import (
    CNI,
    CONFLIST,
    ENCRYPTED,
    OVERLAY,
    checks_sources,
    is_ours,
    is_sliced,
    read_encrypted,
    stays_on_node,
)
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import HOST_NETWORK, NO_NETWORK
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import control_pb2, networks_pb2, types_pb2


def taken_conflist(driver: str, options: dict[str, str], name: str) -> tuple[str, str]:
    """Take the conflist out of the options: its text, and the network's name, by default the
    conflist's. Raises CliError and usage errors."""
    file = options.pop(CONFLIST, None) if driver == CNI or is_ours(driver or "overlay") else None
    if file is None:
        if not name:
            raise click.UsageError("Missing argument 'NAME'.")
        return "", name
    if driver != CNI:
        raise click.UsageError("--opt conflist=FILE is for --driver cni")
    # Imported only if there is a conflist.
    from orchestrator.model.formats.conflist import ConflistError, parse_conflist

    try:
        text = Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text file"
        raise CliError(f"conflist {file} cannot be read: {why}") from None
    try:
        chain = parse_conflist(text)
    except ConflistError as error:
        raise CliError(f"conflist {file}: {error}") from None
    return text, name or chain.name


def network_row(message: types_pb2.Network) -> Row:
    """A row of `orc network ls`."""
    network: Network = from_proto(message)
    return {
        "id": network.id,
        "name": network.name,
        "driver": network.driver,
        "scope": _scope(network),
        "subnet": network.subnet or None,
        "subnet6": network.subnet6 or None,
        "vni": network.vni if network.driver == OVERLAY else None,
        "internal": network.internal,
        "encrypted": network.encrypted,
        "attachable": network.attachable,
        "source_check": checks_sources(network.options),
        "ip_range": network.ip_range or None,
        "gateway": network.gateway or None,
        "node_prefix": network.node_prefix if is_sliced(network) else None,
        "ipam_driver": network.ipam_driver or None,
        "ipam_options": network.ipam_options,
        "conflist": json.loads(network.conflist) if network.conflist else None,
        "options": network.options,
        "labels": network.labels,
        "created_at": rfc3339(network.created_at),
    }


def _scope(network: Network) -> str:
    """`node` if each node has its own network of this name, else `cluster`."""
    alone = network.name in (HOST_NETWORK, NO_NETWORK)
    return "node" if alone or stays_on_node(network.driver, network.options) else "cluster"


def network_columns(whole: bool) -> list[Column]:
    """The table of `orc network ls`."""
    return [
        short("NETWORK ID", "id", whole),
        column("NAME", "name"),
        column("DRIVER", "driver"),
        Column("SUBNET", _subnets),
        Column("VNI", lambda row: "" if row["vni"] is None else str(row["vni"])),
        column("SCOPE", "scope"),
        Column("ATTRIBUTES", _marks),
    ]


def _subnets(row: Row) -> str:
    return ", ".join(filter(None, (row["subnet"], row["subnet6"])))


def _marks(row: Row) -> str:
    return ", ".join(word for word in ("internal", "encrypted", "attachable") if row[word])


def described_network(
    message: types_pb2.Network,
    hostnames: Mapping[str, str],
    services: Sequence[control_pb2.ServiceRow],
    tasks: Sequence[types_pb2.Task],
) -> Row:
    """A network with the services and running containers on it, and each node's subnet."""
    row = network_row(message)
    name = row["name"]
    declared: list[Service] = [from_proto(each.service) for each in services]
    running: list[Task] = [from_proto(each) for each in tasks]
    return {
        **row,
        "services": [
            {
                "name": service.spec.name,
                "vip": service.vips.get(row["id"]),
                "vip6": service.vips6.get(row["id"]),
            }
            for service in sorted(declared, key=lambda each: each.spec.name)
            if name in service.spec.task.network_names
        ],
        "containers": [
            {
                "id": task.id,
                "name": task.name,
                "node": hostnames.get(task.node_id, task.node_id),
                "address": task.status.addresses.get(name),
                "address6": task.status.addresses6.get(name),
            }
            for task in sorted(running, key=lambda each: (each.service_name, each.slot, each.name))
            if task.status.state is TaskState.RUNNING
            and (name in task.status.addresses or name in task.status.addresses6)
        ],
        "nodes": sorted(
            (
                {"id": node, "hostname": hostnames.get(node, node), "subnet": subnet}
                for node, subnet in message.slices.items()
            ),
            key=lambda node: node["hostname"],
        ),
    }


def network_fields(row: Row) -> list[tuple[str, str]]:
    """What `orc network inspect --pretty` shows of a described network."""
    return [
        ("ID", row["id"]),
        ("Name", row["name"]),
        ("Driver", row["driver"]),
        ("Scope", row["scope"]),
        ("Subnet", _subnets(row)),
        ("IP range", row["ip_range"] or ""),
        ("Gateway", row["gateway"] or ""),
        ("IPAM driver", row["ipam_driver"] or ""),
        ("CNI plugins", _chain(row["conflist"])),
        ("VNI", "" if row["vni"] is None else str(row["vni"])),
        ("Options", ", ".join(f"{key}={value}" for key, value in sorted(row["options"].items()))),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted(row["labels"].items()))),
        ("Is", _marks(row)),
        ("Source check", "on" if row["source_check"] else "off"),
        ("Services", ", ".join(map(_named, row["services"]))),
        *((f"Node {each['hostname']}", each["subnet"]) for each in row["nodes"]),
        *((f"Container {each['name']}", _addresses(each)) for each in row["containers"]),
    ]


def _chain(conflist: Row | None) -> str:
    return ", ".join(plugin["type"] for plugin in conflist["plugins"]) if conflist else ""


def _named(service: Row) -> str:
    return f"{service['name']} ({service['vip']})" if service["vip"] else str(service["name"])


def _addresses(container: Row) -> str:
    found = ", ".join(filter(None, (container["address"], container["address6"])))
    return f"{found} on {container['node']}"


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Groups",
            (Lazy("policy", ".network.policy_commands:policy", "Rules for connections"),),
        ),
        (
            "Tests",
            (
                Lazy(
                    "doctor",
                    ".network.doctor_command:doctor",
                    "Diagnose connections between nodes",
                ),
            ),
        ),
    ),
    epilog=example("orc network create back", "orc network ls"),
)
def network() -> None:
    """Manage networks. Containers of a network are reachable from all hosts, not from other
    networks."""


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
    help="overlay (spans all nodes; the default), bridge (a separate one on each node), cni (a "
    "chain of CNI plugins), or the name of a Docker network plugin.",
)
@click.option(
    "--subnet",
    multiple=True,
    metavar="SUBNET",
    help="Such as 10.5.0.0/16, and one of IPv6.  [default: a free one]",
)
@click.option(
    "--gateway",
    default="",
    metavar="IP",
    help="Address of each node's gateway within its block, given as in the first block.",
)
@click.option(
    "--ip-range", default="", metavar="SUBNET", help="Range of automatically assigned addresses."
)
@click.option("--ipv6", is_flag=True, help="Enable IPv6 in addition to IPv4.")
@click.option("--internal", is_flag=True, help="No access to other networks.")
@click.option(
    "--attachable",
    is_flag=True,
    help="Also for standalone containers.  [default: unless --driver is overlay]",
)
@click.option(
    "--opt",
    "-o",
    multiple=True,
    metavar="KEY=VALUE",
    help="mtu=BYTES, encrypted, node-prefix=BITS (of a node's block), "
    "source-check=on|off (drop packets with forged source addresses; default on), "
    "allowed-sources=SUBNET,... (further source addresses of containers); of driver cni "
    "conflist=FILE and scope=local|global; of a plugin its own options.",
)
@click.option("--ipam-driver", default="", metavar="NAME", help="Plugin that assigns addresses.")
@click.option(
    "--ipam-opt", multiple=True, metavar="KEY=VALUE", help="Option of that plugin; repeatable."
)
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

    The name of a network of driver cni defaults to its conflist's.
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
            "no node can encrypt: load WireGuard into its kernel (modprobe wireguard) and restart"
            " its agent",
            err=True,
        )


def _some_node_encrypts(client: Client) -> bool:
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    return any(ENCRYPTED in row.node.description.network_features for row in nodes)


@network.command("ls", epilog=example("orc network ls --format json"))
@listing_options("id", "name", "driver", "label", "internal")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@pass_client
def list_networks(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the networks."""
    rows = [network_row(message) for message in all_networks(client)]
    rows.sort(key=lambda row: row["name"])
    print_list(rows, network_columns(no_trunc), form=form, quiet=quiet, filters=filters)


@network.command(epilog=example("orc network inspect NAME"))
@click.argument("networks", nargs=-1, required=True, shell_complete=completes("networks"))
@inspect_options
@pass_client
def inspect(client: Client, networks: tuple[str, ...], form: str) -> None:
    """Show details of networks: services, containers, and the subnet of each node."""
    known = all_networks(client)
    rows = network_documents(client, [_find(known, name) for name in networks])
    print_inspected(rows, form, lambda row: print_fields(network_fields(row)), kind="network")


def network_documents(client: Client, found: Sequence[types_pb2.Network]) -> list[Row]:
    """The full documents of networks."""
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    hostnames = {row.node.id: row.node.description.hostname for row in nodes}
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    tasks = list_tasks(client).tasks
    return [described_network(message, hostnames, services, tasks) for message in found]


@network.command(epilog=example("orc network rm back front"))
@click.argument("networks", nargs=-1, required=True, shell_complete=completes("networks"))
@click.option("--force", "-f", is_flag=True, help="Ignore missing networks.")
@pass_client
def rm(client: Client, networks: tuple[str, ...], force: bool) -> None:
    """Remove networks. Networks in use are not removed."""
    if force:
        known = {word for each in all_networks(client) for word in (each.name, each.id)}
        networks = tuple(name for name in networks if name in known)

    def remove(name: str) -> None:
        client.call("Networks.RemoveNetwork", networks_pb2.RemoveNetworkRequest(network=name))

    one_by_one(networks, remove)


@network.command(
    epilog=example("orc network connect back db", "orc network connect --alias db back db-1")
)
@click.option(
    "--alias", multiple=True, metavar="NAME", help="DNS alias on the network; repeatable."
)
@click.option("--ip", default="", metavar="IP", help="Fixed IPv4 address.")
@click.option("--ip6", default="", metavar="IP", help="Fixed IPv6 address.")
@click.option("--mac-address", default="", metavar="MAC", help="Fixed MAC address.")
@click.option(
    "--driver-opt", multiple=True, metavar="KEY=VALUE", help="Option for the driver; repeatable."
)
@click.argument("network", shell_complete=completes("networks"))
@click.argument("container", shell_complete=completes("containers"))
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
    """Connect a container to a network, also while it runs."""
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
@click.argument("network", shell_complete=completes("networks"))
@click.argument("container", shell_complete=completes("containers"))
@pass_client
def disconnect(client: Client, force: bool, network: str, container: str) -> None:
    """Disconnect a container from a network, also while it runs."""
    found = [each.name for each in all_networks(client) if network in (each.name, each.id)]
    request = networks_pb2.DisconnectNetworkRequest(
        network=found[0] if found else network, container=container, force=force
    )
    client.call("Networks.DisconnectNetwork", request)


@network.command(epilog=example("orc network prune --force"))
@prune_options
@pass_client
def prune(client: Client, filters: PruneFilters, force: bool) -> None:
    """Remove unused networks."""
    if not force:
        confirm(["all unused networks"], filters)
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
