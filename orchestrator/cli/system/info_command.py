# SPDX-License-Identifier: Apache-2.0
"""`orc info` and `orc system info`: a summary of the cluster."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli.app.command_groups import example
from orchestrator.cli.cluster.node_rows import node_row
from orchestrator.cli.container.container_rows import container_state
from orchestrator.cli.output.listings import (
    Row,
    format_option,
    print_fields,
    print_json,
    template_lines,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import from_proto
from orchestrator.model.units import format_cores, format_memory
from orchestrator.pb import containers_pb2, control_pb2


@click.command(epilog=example("orc info", "orc info --format '{{.Containers}}'"))
@format_option(templates=True, short=True)
@pass_client
def info(client: Client, form: str) -> None:
    """Show a summary of the cluster: nodes, containers, images, capacity, problems."""
    row = document(client)
    if form == "json":
        print_json(row)
    elif form == "table":
        print_fields(_fields(row))
    else:
        for line in template_lines([row], (), form):
            click.echo(line)
    for node in row["nodes_not_ready"]:
        click.echo(f"orc: node {node} is not ready; see 'orc node inspect {node}'", err=True)


def document(client: Client) -> Row:
    """The JSON document. Raises CliError."""
    cluster = client.call("GetCluster", control_pb2.GetClusterRequest())
    nodes = [
        node_row(each) for each in client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    ]
    listing = client.call("Containers.ListContainers", containers_pb2.ListContainersRequest())
    states = Counter(container_state(from_proto(row.task)) for row in listing.containers)
    images = client.call("ListImages", control_pb2.ListImagesRequest()).images
    ready = [node for node in nodes if node["state"] == "ready"]
    return {
        "id": cluster.id,
        "client_version": __version__,
        "server_version": cluster.version,
        "managers": [each.address for each in cluster.managers],
        "leader": next((each.address for each in cluster.managers if each.leader), ""),
        "nodes": len(nodes),
        "nodes_ready": len(ready),
        "nodes_not_ready": [node["hostname"] for node in nodes if node["state"] != "ready"],
        "services": cluster.services,
        "containers": sum(states.values()),
        "containers_running": states["running"],
        "containers_paused": states["paused"],
        "containers_stopped": states["exited"] + states["created"] + states["failed"],
        "images": len(images),
        "shares_total": _sum(ready, "shares_total"),
        "shares_reserved": _sum(ready, "shares_reserved"),
        "memory_total": _sum(ready, "memory_total"),
        "memory_reserved": _sum(ready, "memory_reserved"),
        "architectures": sorted({node["arch"] for node in nodes if node["arch"]}),
        "kernels": sorted({node["kernel"] for node in nodes if node["kernel"]}),
        "operating_systems": sorted({node["os"] for node in nodes if node["os"]}),
        "runtimes": sorted({node["runtime"] for node in nodes if node["runtime"]}),
        "cgroups": sorted({node["cgroup"] for node in nodes if node["cgroup"]}),
        "network_cidr": cluster.network_cidr,
    }


def _sum(nodes: list[Row], key: str) -> int:
    return sum(node[key] for node in nodes)


def _fields(row: Row) -> list[tuple[str, str]]:
    def words(key: str) -> str:
        return ", ".join(row[key])

    def room(key: str, text: Any) -> str:
        return f"{text(row[f'{key}_reserved'])} of {text(row[f'{key}_total'])} reserved"

    return [
        ("Cluster", row["id"]),
        ("Client version", row["client_version"]),
        ("Server version", row["server_version"]),
        ("Managers", words("managers")),
        ("Leader", row["leader"]),
        ("Nodes", f"{row['nodes']} ({row['nodes_ready']} ready)"),
        ("Services", str(row["services"])),
        ("Containers", str(row["containers"])),
        (" Running", str(row["containers_running"])),
        (" Paused", str(row["containers_paused"])),
        (" Stopped", str(row["containers_stopped"])),
        ("Images", str(row["images"])),
        ("CPUs", room("shares", format_cores)),
        ("Memory", room("memory", format_memory)),
        ("Architectures", words("architectures")),
        ("Kernels", words("kernels")),
        ("Operating systems", words("operating_systems")),
        ("Runtimes", words("runtimes")),
        ("Cgroup versions", words("cgroups")),
        ("Network", row["network_cidr"]),
    ]
