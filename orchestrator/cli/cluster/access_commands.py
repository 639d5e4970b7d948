# SPDX-License-Identifier: Apache-2.0
"""`orc cluster certificates`, `sessions` and `revoke`: who may access the cluster."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    listing_options,
    print_json,
    print_list,
    rfc3339,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.pb import access_pb2

_ROLES = {"worker": "node"}
"""Role in a certificate → its name for users."""
_KINDS = ("node", "manager", "admin", "certificate", "session")
_DIGITS = 12
"""Digits of a serial number that a table shows."""


@click.command(
    epilog=example(
        "orc cluster certificates",
        "orc cluster certificates --filter role=admin --format json",
    )
)
@listing_options("id", "role", "name", "state")
@click.option("--no-trunc", is_flag=True, help="Do not truncate serial numbers.")
@pass_client
def certificates(
    client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]], no_trunc: bool
) -> None:
    """List the certificates that the cluster issued, including revoked ones."""
    reply = client.call("Access.ListCertificates", access_pb2.ListCertificatesRequest())
    now = time.time()
    rows = [_row(each, now) for each in reply.certificates]
    columns = [
        Column("SERIAL", lambda row: row["id"] if no_trunc else row["id"][:_DIGITS]),
        column("ROLE", "role"),
        Column("NAME", lambda row: f"{_shown_name(row)}{' *' if row['current'] else ''}"),
        Column("ISSUED", lambda row: row["issued_at"] or ""),
        Column("EXPIRES", lambda row: row["expires_at"] or ""),
        column("FROM", "address"),
        Column("STATE", _state),
    ]
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


def _row(message: Any, now: float) -> Row:
    certificate = message.certificate
    state = "revoked" if message.revoked_at else "valid"
    return {
        "id": certificate.id,
        "role": _ROLES.get(certificate.role, certificate.role),
        "name": certificate.name,
        "hostname": certificate.hostname,
        "issued_at": rfc3339(certificate.issued_at),
        "expires_at": rfc3339(certificate.expires_at),
        "fingerprint": certificate.fingerprint,
        "address": certificate.address,
        "state": "expired" if certificate.expires_at < now else state,
        "revoked_at": rfc3339(message.revoked_at) if message.revoked_at else None,
        "revoked_by": message.revoked_by,
        "reason": message.reason,
        "current": message.current,
    }


def _shown_name(row: Row) -> str:
    return f"{row['hostname']} ({row['name']})" if row["hostname"] else str(row["name"])


def _state(row: Row) -> str:
    if not row["revoked_at"]:
        return str(row["state"])
    why = f" ({row['reason']})" if row["reason"] else ""
    return f"revoked {row['revoked_at']}{why}"


@click.command(epilog=example("orc cluster sessions", "orc cluster sessions --filter user=anna"))
@listing_options("id", "user", "role")
@pass_client
def sessions(client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]) -> None:
    """List the open sessions of the web page."""
    from orchestrator.pb import dashboard_pb2

    reply = client.call("Dashboard.ListSessions", dashboard_pb2.ListSessionsRequest())
    rows: list[Row] = [
        {
            "id": each.id,
            "user": each.user,
            "role": each.role,
            "address": each.address,
            "certificate": each.certificate,
            "opened_at": rfc3339(each.created_at),
            "used_at": rfc3339(each.used_at),
            "ends_at": rfc3339(min(each.until, each.used_at + reply.idle)),
        }
        for each in reply.sessions
    ]
    columns = [
        column("ID", "id"),
        column("USER", "user"),
        column("ROLE", "role"),
        column("FROM", "address"),
        column("OPENED", "opened_at"),
        column("USED", "used_at"),
        column("ENDS", "ends_at"),
    ]
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


@click.command(
    epilog=example(
        "orc cluster revoke node node3",
        "orc cluster revoke admin anna --reason 'laptop stolen'",
        "orc cluster revoke certificate 3f9a01c2b7d4",
    )
)
@click.argument("kind", metavar=f"{{{'|'.join(_KINDS)}}}", type=click.Choice(_KINDS))
@click.argument("name", shell_complete=completes("revocable_identities"))
@click.option(
    "--reason", default="", metavar="TEXT", help="Reason, for the listing and the holder."
)
@click.option("--force", is_flag=True, help="Also the certificate of your own context.")
@format_option()
@pass_client
def revoke(client: Client, kind: str, name: str, reason: str, force: bool, form: str) -> None:
    """Revoke the certificates of a node, manager or admin, a certificate, or a web page session.

    NAME is a node's name or id, a manager's id, an admin's name, a certificate's serial number
    or fingerprint (as 'orc cluster certificates' lists them), or the id of a session of the web
    page ('orc cluster sessions'). The holder is refused, and its open streams and sessions end,
    within seconds on every manager and every connected node. 'orc node rm' revokes a node's
    certificates, too.
    """
    request = access_pb2.RevokeRequest(kind=kind, name=name, reason=reason, force=force)
    reply = client.call("Access.Revoke", request)
    if form == "json":
        print_json(
            {
                "id": name if kind == "session" else reply.revocation.id,
                "revoked_at": rfc3339(reply.revocation.at)
                if reply.HasField("revocation")
                else None,
                "certificates": [each.id for each in reply.certificates],
            }
        )
        return
    if kind == "session":
        click.echo(name)
    for each in reply.certificates:
        click.echo(each.id)
    if reply.revocation.role == "admin":
        click.echo(
            "An admin knows the join tokens and the scrape token; change them with "
            "'orc cluster token --rotate worker' and 'orc cluster token --rotate scrape'.",
            err=True,
        )
    if reply.revocation.role == "manager":
        click.echo(
            "A manager has the CA's key and can issue itself other certificates: keep it off the "
            "network.",
            err=True,
        )
