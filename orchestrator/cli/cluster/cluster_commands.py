# SPDX-License-Identifier: Apache-2.0
"""`orc cluster`: settings, join tokens and members of the cluster."""

from __future__ import annotations

import time
from typing import Any, cast

import click

from orchestrator.cli.app.command_groups import Lazy, OrcGroup, example
from orchestrator.cli.cluster.backup_status import backup_document, backup_fields
from orchestrator.cli.flags.flag_types import CERTIFICATE_LIFETIME, Parsed
from orchestrator.cli.flags.update_settings import parse_member
from orchestrator.cli.output.listings import (
    Row,
    enum_word,
    format_option,
    print_fields,
    print_json,
    rfc3339,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import recognized
from orchestrator.model.placement import Strategy
from orchestrator.model.units import format_duration, parse_duration
from orchestrator.model.validation.host_access import read_access
from orchestrator.pb import control_pb2

_HOSTS = (
    Lazy("init", ".cluster.membership_commands:init", "Initialize a cluster on this host"),
    Lazy("join", ".cluster.membership_commands:join", "Join this host to a cluster"),
    Lazy("leave", ".cluster.membership_commands:leave", "Leave the cluster with this host"),
    Lazy(
        "advertise",
        ".cluster.membership_commands:advertise",
        "Change the address of this host's manager",
    ),
    Lazy(
        "reconnect",
        ".cluster.membership_commands:reconnect",
        "Set the managers that this host's agent calls",
    ),
    Lazy("admin", ".cluster.membership_commands:admin", "Create an admin's context, on a manager"),
)


_DISASTER = (
    Lazy("backup", ".cluster.backup_commands:backup", "Back up the cluster to a file"),
    Lazy("backups", ".cluster.backup_commands:backups", "List the managers' scheduled backups"),
    Lazy("restore", ".cluster.backup_commands:restore", "Restore a cluster on this host"),
    Lazy(
        "recover",
        ".cluster.backup_commands:recover",
        "Make this host's manager the only one, after the loss of the quorum",
    ),
)
_UPKEEP = (Lazy("upgrade", ".cluster.upgrade_command:upgrade", "Check or finalize an upgrade"),)


_KEYS = (
    Lazy("ca", ".cluster.key_commands:ca", "Rotate the CA"),
    Lazy("key", ".cluster.key_commands:key", "Rotate the data key"),
    Lazy("lock", ".cluster.key_commands:lock", "Lock the managers' key files"),
    Lazy("unlock", ".cluster.key_commands:unlock", "Unlock managers that have started locked"),
    Lazy("unlock-key", ".cluster.key_commands:unlock_key", "Print or rotate the unlock key"),
)


_ACCESS = (
    Lazy("certificates", ".cluster.access_commands:certificates", "List issued certificates"),
    Lazy("sessions", ".cluster.access_commands:sessions", "List sessions of the web page"),
    Lazy("revoke", ".cluster.access_commands:revoke", "Revoke certificates, end sessions"),
)


@click.group(
    cls=OrcGroup,
    sections=[
        ("On the host itself", _HOSTS),
        ("Backup and restore", _DISASTER),
        ("Upkeep", _UPKEEP),
        ("Access", _ACCESS),
        ("Keys", _KEYS),
    ],
    epilog=example("orc cluster info"),
)
def cluster() -> None:
    """Set up a cluster, join hosts, manage access."""


@cluster.command(epilog=example("orc cluster info"))
@format_option()
@pass_client
def info(client: Client, form: str) -> None:
    """Show the cluster's managers, nodes and settings."""
    reply = client.call("GetCluster", control_pb2.GetClusterRequest())
    if form == "json":
        print_json(cluster_document(reply))
        return
    print_fields(
        [
            ("ID", reply.id),
            ("Created at", rfc3339(reply.created_at) or ""),
            ("Version", reply.version),
            *(
                ("Manager", f"{each.address} ({each.id}){', leader' if each.leader else ''}")
                for each in reply.managers
            ),
            ("Nodes", f"{reply.nodes} ({reply.nodes_ready} ready)"),
            ("Services", str(reply.services)),
            ("Tasks running", str(reply.tasks_running)),
            ("Network", reply.network_cidr),
            ("Node is down after", format_duration(reply.node_timeout)),
            ("Strategy", enum_word(recognized(Strategy, reply.strategy))),
            ("Rebalance", _period(reply.rebalance_every)),
            ("Prometheus", reply.prometheus or "none"),
            ("Certificates last", format_duration(reply.certificate_lifetime)),
            ("Open to containers", ", ".join(reply.container_access) or "none"),
            ("Nodes join at", reply.join_address),
            # A manager of an earlier version does not say.
            *(backup_fields(reply.backups, time.time()) if reply.HasField("backups") else ()),
            *(("Cannot be decoded", _undecodable(each)) for each in reply.undecodable),
        ]
    )


def _undecodable(found: Any) -> str:
    held = ", ".join(found.held_services)
    return f"{found.key}: {found.reason}" + (f"; not planned: {held}" if held else "")


def cluster_document(reply: Any) -> Row:
    """A GetClusterReply as a document, without its tokens."""
    return {
        "id": reply.id,
        "created_at": rfc3339(reply.created_at),
        "version": reply.version,
        "network_cidr": reply.network_cidr,
        "node_timeout": reply.node_timeout,
        "managers": [
            {"id": each.id, "address": each.address, "leader": each.leader}
            for each in reply.managers
        ],
        "nodes": reply.nodes,
        "nodes_ready": reply.nodes_ready,
        "services": reply.services,
        "tasks_running": reply.tasks_running,
        "join_address": reply.join_address,
        "strategy": enum_word(recognized(Strategy, reply.strategy)),
        "rebalance_every": reply.rebalance_every,
        "prometheus": reply.prometheus,
        "certificate_lifetime": reply.certificate_lifetime,
        "container_access": list(reply.container_access),
        "backups": backup_document(reply.backups),
        "undecodable": [
            {"key": each.key, "reason": each.reason, "held_services": list(each.held_services)}
            for each in reply.undecodable
        ],
    }


def _period(seconds: float) -> str:
    return f"one move in {format_duration(seconds)}" if seconds else "off"


def _access(text: str) -> tuple[str, ...]:
    return read_access(filter(None, text.replace(" ", "").split(",")))


def _rebalance(text: str) -> float:
    return 0.0 if text == "off" else parse_duration(text)


@cluster.command(
    epilog=example(
        "orc cluster update --strategy binpack",
        "orc cluster update --rebalance 5m",
        "orc cluster update --container-access metrics",
        "orc cluster update --prometheus http://10.0.0.5:9090",
    )
)
@click.option(
    "--strategy",
    type=Parsed("spread|binpack", parse_member(Strategy)),
    help="Placement of new tasks: on nodes with the least load, or the fullest.",
)
@click.option(
    "--cert-expiry",
    type=CERTIFICATE_LIFETIME,
    help="Lifetime of new certificates.",
)
@click.option(
    "--rebalance",
    type=Parsed("period", _rebalance),
    metavar="DURATION|off",
    help="Move at most one task in this time, if nodes are loaded unevenly; off: only by"
    " orc rebalance.",
)
@click.option(
    "--container-access",
    type=Parsed("access", _access),
    metavar="ACCESS[,ACCESS...]",
    help="What containers may reach on the cluster's hosts: control-plane, metrics, metadata, all "
    "or none.",
)
@click.option(
    "--prometheus",
    metavar="URL|none",
    help="Prometheus that managers ask for services with --autoscale-query.",
)
@pass_client
def update(
    client: Client,
    strategy: Strategy | None,
    cert_expiry: float | None,
    rebalance: float | None,
    container_access: tuple[str, ...] | None,
    prometheus: str | None,
) -> None:
    """Change settings of the cluster. Running tasks stay where they are.

    Containers reach neither the control plane's ports of the cluster's hosts (control-plane: API,
    joins, images, etcd), nor their metrics and the web page (metrics), nor the metadata services of
    clouds (metadata), unless --container-access opens them. Other ports of hosts are open.
    """
    given = (strategy, cert_expiry, rebalance, container_access, prometheus)
    if all(each is None for each in given):
        raise click.UsageError(
            "nothing to change; give --strategy, --cert-expiry, --rebalance, --container-access or "
            "--prometheus"
        )
    request = control_pb2.UpdateClusterRequest(
        strategy=None if strategy is None else cast(Any, int(strategy)),
        certificate_lifetime=cert_expiry,
        rebalance_every=rebalance,
        prometheus="" if prometheus == "none" else prometheus,
        container_access=None
        if container_access is None
        else control_pb2.UpdateClusterRequest.Access(open=container_access),
    )
    click.echo(client.call("UpdateCluster", request).id)


@cluster.command(epilog=example("orc cluster token worker", "orc cluster token --rotate worker"))
@click.argument("role", type=click.Choice(["worker", "manager", "scrape"]))
@click.option("--rotate", is_flag=True, help="Replace the token; the old one becomes invalid.")
@click.option("--quiet", "-q", is_flag=True, help="Print the token only.")
@pass_client
def token(client: Client, role: str, rotate: bool, quiet: bool) -> None:
    """Print the command that joins a host, or the token that Prometheus sends.

    The token `scrape` permits reading metrics and nothing else. A host that joins with the token
    `manager` becomes a manager and gets the cluster's keys.
    """
    reply = client.call("GetCluster", control_pb2.GetClusterRequest())
    text = {
        "worker": reply.worker_token,
        "manager": reply.manager_token,
        "scrape": reply.scrape_token,
    }[role]
    if rotate:
        text = client.call("RotateToken", control_pb2.RotateTokenRequest(role=role)).token
    bare = quiet or role == "scrape"
    click.echo(text if bare else f"orc cluster join --token {text} {reply.join_address}")
