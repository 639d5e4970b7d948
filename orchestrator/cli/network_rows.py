"""Networks as rows of tables and as documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from orchestrator.cli.output import Column, Row, column, moment, short
from orchestrator.model.convert import from_proto
from orchestrator.model.networks import OVERLAY, checks_sources, is_sliced, stays_on_node
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import HOST_NETWORK, NO_NETWORK
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import control_pb2, types_pb2


def network_row(message: types_pb2.Network) -> Row:
    """A network as `orc network ls` has it."""
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
        "created_at": moment(network.created_at),
    }


def _scope(network: Network) -> str:
    """`node` where containers of different nodes do not meet on it, else `cluster`."""
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
