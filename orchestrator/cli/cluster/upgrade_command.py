# SPDX-License-Identifier: Apache-2.0
"""`orc cluster upgrade`: check what is in the way of an upgrade, and finalize one."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.errors import Unsupported
from orchestrator.cli.cluster.backup_status import newest_backup
from orchestrator.cli.cluster.upgrade_check import (
    BackupFacts,
    ClusterFacts,
    Finding,
    ManagerFacts,
    NodeFacts,
    SchemaFacts,
    findings,
)
from orchestrator.cli.output.listings import enum_word, format_option, print_fields, print_json
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.convert import recognized
from orchestrator.model.nodes import NodeState
from orchestrator.model.services import UpdateState
from orchestrator.pb import control_pb2, managers_pb2

_MOVING = (UpdateState.UPDATING, UpdateState.ROLLING_BACK)

UNSAFE = 1
"""Exit status if something is in the way."""


@click.command(epilog=example("orc cluster upgrade --check", "orc cluster upgrade --finalize"))
@click.option("--check", is_flag=True, help="Show what is in the way of an upgrade; the default.")
@click.option(
    "--to",
    "target",
    default=__version__,
    metavar="VERSION",
    help="Version to upgrade to.  [default: that of this client]",
)
@click.option(
    "--finalize",
    is_flag=True,
    help="End an upgrade: managers cannot return to the release before.",
)
@format_option()
@pass_client
def upgrade(client: Client, check: bool, target: str, finalize: bool, form: str) -> None:
    """Check whether the cluster can be upgraded. Exit status 1: something is in the way.

    Hosts are upgraded by their package manager, one after the other, managers first. The check
    covers versions of managers and nodes, the quorum, features that wait for older hosts, and the
    store.
    """
    if finalize and check:
        raise click.UsageError("--check and --finalize exclude each other")
    if finalize:
        reply = client.call(
            "Managers.FinalizeUpgrade", managers_pb2.FinalizeUpgradeRequest(), timeout=30.0
        )
        click.echo(f"schema version {reply.finalized} is final")
        return
    facts = _facts(client)
    found = findings(facts, target)
    blocked = any(each.blocking for each in found)
    if form == "json":
        print_json(
            {
                "target": target,
                "ok": not blocked,
                "managers": [asdict(each) for each in facts.managers],
                "nodes": [asdict(each) for each in facts.nodes],
                "schema": asdict(facts.schema),
                "backups": asdict(facts.backups) if facts.backups else None,
                "findings": [asdict(each) for each in found],
            }
        )
    else:
        _print(facts, found, target)
    if blocked:
        raise click.exceptions.Exit(UNSAFE)


def _print(facts: ClusterFacts, found: list[Finding], target: str) -> None:
    schema = facts.schema
    state = "final" if schema.finalized >= schema.version else f"{schema.finalized} is final"
    print_fields(
        [
            ("Target", target),
            ("Managers", _versions(each.version for each in facts.managers)),
            ("Nodes", _versions(each.version for each in facts.nodes)),
            ("Schema", f"{schema.version} ({state})"),
        ]
    )
    for each in found:
        click.echo(f"{'blocked' if each.blocking else 'note'}: {each.subject}: {each.text}")
        click.echo(f"  {each.remedy}")
    if not any(each.blocking for each in found):
        click.echo("nothing is in the way")


def _versions(versions: Any) -> str:
    counts = sorted(Counter(versions).items())
    return ", ".join(f"{number} x {version}" for version, number in counts) or "none"


def _facts(client: Client) -> ClusterFacts:
    info = client.call("GetCluster", control_pb2.GetClusterRequest())
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    services = client.call("ListServices", control_pb2.ListServicesRequest()).services
    return ClusterFacts(
        managers=_managers(client, info),
        nodes=tuple(
            NodeFacts(
                hostname=each.node.description.hostname,
                version=each.node.description.version,
                state=enum_word(recognized(NodeState, each.node.state)),
                features=tuple(each.node.description.features),
            )
            for each in nodes
        ),
        schema=_schema(client),
        undecodable=tuple(each.key for each in info.undecodable),
        updating=tuple(
            each.service.spec.name
            for each in services
            if recognized(UpdateState, each.service.update.state) in _MOVING
        ),
        backups=_backups(info, time.time()),
    )


def _backups(info: Any, now: float) -> BackupFacts | None:
    if not info.HasField("backups"):
        return None
    newest = newest_backup(info.backups)
    return BackupFacts(
        age=max(0.0, now - newest) if newest else None,
        failed=tuple(each.hostname for each in info.backups.managers if each.status.error),
    )


def _managers(client: Client, info: Any) -> tuple[ManagerFacts, ...]:
    try:
        reply = client.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
    except Unsupported:
        # Release 0.1 has one manager, the one that answered.
        return tuple(ManagerFacts(each.address, info.version) for each in info.managers)
    return tuple(
        ManagerFacts(
            hostname=each.manager.hostname,
            version=each.status.version or each.manager.version,
            state=each.state,
            reason=each.reason,
            features=tuple(each.manager.features),
            etcd_member=bool(each.manager.member_id),
        )
        for each in reply.managers
    )


def _schema(client: Client) -> SchemaFacts:
    try:
        reply = client.call("Managers.GetSchema", managers_pb2.GetSchemaRequest())
    except Unsupported:
        return SchemaFacts()
    return SchemaFacts(reply.version, reply.requested, reply.finalized, reply.known)
