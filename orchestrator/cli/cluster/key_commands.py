# SPDX-License-Identifier: Apache-2.0
"""`orc cluster key`, `lock`, `unlock` and `unlock-key`: the keys of the control plane."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.errors import CliError, ManagerLost, Refused
from orchestrator.cli.cluster.external_ca_options import external_ca_options, read_flags
from orchestrator.cli.flags.flag_types import DURATION
from orchestrator.cli.output.listings import format_option, print_fields, print_json, rfc3339
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.pb import security_pb2, types_pb2


@click.group(cls=OrcGroup, epilog=example("orc cluster key rotate"))
def key() -> None:
    """Rotate the data key, with which secrets, configs and registry passwords are encrypted."""


@key.command(epilog=example("orc cluster key rotate", "orc cluster key status"))
@pass_client
def rotate(client: Client) -> None:
    """Replace the data key and encrypt everything with the new one, online.

    Managers that run get the new key first; then everything is encrypted anew, and the former key
    is deleted. It goes on after any crash. Sessions of the web page end.
    """
    request = security_pb2.RotateDataKeyRequest()
    click.echo(_progress(client.call("Security.RotateDataKey", request)))


@key.command(epilog=example("orc cluster key status"))
@format_option()
@pass_client
def status(client: Client, form: str) -> None:
    """Show the id of the data key, and how far a rotation is."""
    reply = client.call("Security.GetDataKeyStatus", security_pb2.GetDataKeyStatusRequest())
    fields: dict[str, Any] = {
        "id": reply.id,
        "new_id": reply.new_id,
        "phase": reply.phase,
        "waiting_for": list(reply.waiting_for),
        "started_at": rfc3339(reply.started_at),
    }
    if form == "json":
        print_json(fields)
        return
    print_fields([("ID", reply.id), ("Rotation", _progress(reply))])


def _progress(reply: Any) -> str:
    if reply.phase == "resealing":
        return f"encrypting everything with {reply.new_id}"
    if reply.phase == "distributing":
        waiting = ", ".join(reply.waiting_for)
        return f"sending {reply.new_id} to managers" + (f": {waiting}" if waiting else "")
    return "none in progress"


@click.group(cls=OrcGroup, epilog=example("orc cluster ca rotate", "orc cluster ca status"))
def ca() -> None:
    """Rotate the cluster's certificate authority (CA), or use an external one."""


@ca.command(
    "rotate", epilog=example("orc cluster ca rotate", "orc cluster ca rotate --admins-within 24h")
)
@click.option(
    "--admins-within",
    type=DURATION,
    help="How long to wait for admins, once the new CA signs; 168h by default. Also changes a "
    "rotation in progress.",
)
@click.option(
    "--force", is_flag=True, help="Remove the former CA now, without members that are missing."
)
@pass_client
def rotate_ca(client: Client, admins_within: float | None, force: bool) -> None:
    """Replace the CA, online: managers and nodes renew their certificates within minutes.

    Join tokens change. An admin's certificate is renewed by the admin's next command. Once all
    have renewed, the former CA is removed. 'orc cluster ca status' names those that have not;
    with --force they have to join again. Admins who have run no command after --admins-within
    need another context ('orc cluster admin').
    """
    request = security_pb2.RotateCaRequest(force=force, admins_within=admins_within or 0.0)
    reply = client.call("Security.RotateCa", request)
    click.echo(_ca_phase(reply))


@ca.command(
    "external",
    epilog=example(
        "orc cluster ca external --ca-cert ca.pem --ca-profile orc --auth-key-file auth.key "
        "https://ca.example.com:8888/api/v1/cfssl/authsign"
    ),
)
@external_ca_options
@click.option(
    "--admins-within",
    type=DURATION,
    help="How long to wait for admins, once the new CA signs; 168h by default.",
)
@click.argument("url")
@pass_client
def external_ca(client: Client, url: str, admins_within: float | None, **flags: Any) -> None:
    """Have an external CA sign the cluster's certificates, online.

    Managers send it signing requests, as cfssl takes them. They authenticate them with the key in
    --auth-key-file, and show their certificates. The key of the former CA is deleted.
    'orc cluster ca status' shows the progress; 'orc cluster ca rotate' returns to a CA of the
    managers' own. Repeat the command with the same CA to change the endpoint or its key.
    """
    given = read_flags(url, **flags)
    request = security_pb2.RotateCaRequest(
        admins_within=admins_within or 0.0,
        external=types_pb2.ExternalCa(url=url, profile=given.profile, root=given.root),
        ca_certificate=given.ca_certificate,
        auth_key=given.auth_key,
    )
    click.echo(_ca_phase(client.call("Security.RotateCa", request)))


@ca.command("status", epilog=example("orc cluster ca status"))
@format_option()
@pass_client
def ca_status(client: Client, form: str) -> None:
    """Show the CA, and how far a rotation is."""
    reply = client.call("Security.GetCaStatus", security_pb2.GetCaStatusRequest())
    if form == "json":
        print_json(
            {
                "phase": reply.phase,
                "digest": reply.digest,
                "external_url": reply.external.url,
                "expires_at": rfc3339(reply.expires_at),
                "former_digest": reply.former,
                "started_at": rfc3339(reply.started_at),
                "admins_until": rfc3339(reply.admins_until),
                "members": [
                    {
                        "kind": each.kind,
                        "id": each.id,
                        "name": each.name,
                        "renewed": each.renewed,
                        "blocking": each.blocking,
                        "reason": each.reason,
                    }
                    for each in reply.members
                ],
            }
        )
        return
    print_fields(
        [
            ("Digest", reply.digest),
            ("Expires", rfc3339(reply.expires_at) or ""),
            *([("External", reply.external.url)] if reply.external.url else []),
            ("Rotation", _ca_phase(reply)),
        ]
    )
    for each in reply.members:
        if each.blocking:
            until = f"; waited for until {rfc3339(reply.admins_until)}"
            click.echo(
                f"{each.kind} {each.name}: {each.reason}{until if each.kind == 'admin' else ''}"
            )


def _ca_phase(reply: Any) -> str:
    if reply.phase == "idle":
        return "none in progress"
    waiting = sum(each.blocking for each in reply.members)
    what = "managers learn to trust the new CA" if reply.phase == "trusting" else "members renew"
    return f"{what}: {waiting} of {len(reply.members)} to go"


@click.command(epilog=example("orc cluster lock", "orc cluster lock --off"))
@click.option("--off", is_flag=True, help="Store the key files unlocked again.")
@pass_client
def lock(client: Client, off: bool) -> None:
    """Lock the managers' key files with a key that is printed and on no manager's disk.

    A manager that restarts then waits for 'orc cluster unlock'. Keep the key outside of the
    cluster: if all managers stop and it is lost, so are the cluster's CA and secrets.
    """
    if off:
        _name_missing(client.call("Security.Lock", security_pb2.LockRequest(off=True)))
    else:
        locked_with_printed_key(client, rotate=False)


def locked_with_printed_key(client: Client, *, rotate: bool) -> None:
    """Print the unlock key, a new one unless the cluster has one that is to stay, and lock with it.

    It is printed first: managers that restart before the reply arrives wait for it already. Raises
    CliError."""
    # Imported late: its import is slow.
    from orchestrator.identity.key_files import new_unlock_key

    key = ""
    if not rotate:
        key = client.call("Security.GetUnlockKey", security_pb2.GetUnlockKeyRequest()).key
    key = key or new_unlock_key()
    click.echo(key)
    reply = client.call("Security.Lock", security_pb2.LockRequest(rotate=rotate, key=key))
    if reply.key != key:
        raise CliError(
            "the key above is not in use: another command, or a manager of an older version, has "
            "set another key; 'orc cluster unlock-key' prints it"
        )
    _name_missing(reply)


@click.command(
    "unlock-key", epilog=example("orc cluster unlock-key", "orc cluster unlock-key --rotate")
)
@click.option("--rotate", is_flag=True, help="Replace it. Managers that are down need the former.")
@pass_client
def unlock_key(client: Client, rotate: bool) -> None:
    """Print the unlock key of the cluster."""
    reply = client.call("Security.GetUnlockKey", security_pb2.GetUnlockKeyRequest())
    if not reply.key:
        raise CliError("the cluster is not locked; 'orc cluster lock' locks it")
    if rotate:
        locked_with_printed_key(client, rotate=True)
        return
    click.echo(reply.key)
    _name_missing(reply)


def _name_missing(reply: Any) -> None:
    if reply.waiting_for:
        waiting = ", ".join(reply.waiting_for)
        click.echo(
            f"Managers that have not changed their key files yet: {waiting}; "
            "'orc cluster unlock-key' shows when they have.",
            err=True,
        )


@click.command(epilog=example("orc cluster unlock", "orc cluster unlock < unlock.key"))
@pass_client
def unlock(client: Client) -> None:
    """Unlock all managers of the context that have started locked.

    Asks for the unlock key, or reads it from standard input. Prints the addresses of the managers
    that were unlocked.
    """
    entered = entered_unlock_key()
    unlocked, refused, unreachable = 0, [], []
    for endpoint in client.context.endpoints:
        with Client(replace(client.context, endpoints=(endpoint,), renew_at=0.0)) as one:
            try:
                one.call("Security.Unlock", security_pb2.UnlockRequest(key=entered))
            except ManagerLost as error:
                unreachable.append(str(error))
            except Refused as error:
                if "is not locked" not in str(error):
                    refused.append(f"{endpoint}: {error}")
            else:
                unlocked += 1
                click.echo(endpoint)
    if refused:
        raise CliError("; ".join(refused))
    if not unlocked:
        if unreachable:
            raise CliError("; ".join(unreachable))
        raise CliError("no manager is locked")


def entered_unlock_key() -> str:
    """The unlock key: asked for on a terminal, otherwise from standard input."""
    if sys.stdin.isatty():
        return str(click.prompt("Unlock key", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()
