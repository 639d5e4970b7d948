# SPDX-License-Identifier: Apache-2.0
"""`orc cluster backup`, `backups` and, on a host itself, `restore`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import file_option
from orchestrator.cli.app.contexts import Context, save_context
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.cluster.backup_status import ago, backup_row
from orchestrator.cli.cluster.membership_commands import (
    MANAGER_DATA,
    context_name_option,
    manager_data_option,
    own_address,
    serve_docker_api,
    start_unit,
)
from orchestrator.cli.flags.flag_types import DURATION
from orchestrator.cli.output.listings import (
    Column,
    column,
    listing_options,
    print_list,
    rfc3339,
)
from orchestrator.cli.output.screen import metered
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.units import format_size
from orchestrator.pb import backup_pb2, types_pb2

F = TypeVar("F", bound=Callable[..., Any])

PASSPHRASE = "ORC_BACKUP_PASSPHRASE"
"""Environment variable with the passphrase."""
_KEEP = 10
"""Number of scheduled backups that a manager keeps by default."""
_FIRST_WITHIN = 120.0
"""Seconds to wait for the first backup of a schedule."""
_POLL = 0.5
"""Seconds between two looks at it."""


def passphrase_option(function: F) -> F:
    """The option --passphrase-file."""
    return file_option(
        "--passphrase-file",
        help=f"Read the passphrase from this file.  [default: ${PASSPHRASE}, or prompt]",
    )(function)


def read_passphrase(path: str | None, *, confirm: bool) -> str:
    """The passphrase of a backup. Raises CliError."""
    if path is not None:
        try:
            text = Path(path).read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise CliError(f"cannot read the passphrase file {path}: {reason}") from None
        if not text:
            raise CliError(f"{path} is empty; write the passphrase there")
        return text
    if text := os.environ.get(PASSPHRASE, ""):
        return text
    if not sys.stdin.isatty():
        raise click.UsageError(f"give --passphrase-file, or set {PASSPHRASE}")
    answer: str = click.prompt(
        "Passphrase of the backup", hide_input=True, confirmation_prompt=confirm, err=True
    )
    return answer


@click.command(
    epilog=example(
        "orc cluster backup --passphrase-file pass.txt cluster.orcbackup",
        "orc cluster backup --recipient age1… cluster.orcbackup",
        "orc cluster backup --every 6h --keep 10 --recipient age1… /var/lib/orc/backups",
        "orc cluster backup --unschedule",
    )
)
@passphrase_option
@click.option(
    "--recipient",
    metavar="KEY",
    help="Encrypt to a public key instead: of age (age1…, an SSH key) or GnuPG.",
)
@click.option(
    "--every",
    type=DURATION,
    help="Have each manager write a backup into DIR on its host, now and after each period.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    help="With --every: backups that each manager keeps; it deletes older ones.  [default: 10]",
)
@click.option("--unschedule", is_flag=True, help="End the schedule. Files stay.")
@click.argument("target", required=False, metavar="FILE|DIR")
@pass_client
def backup(
    client: Client,
    passphrase_file: str | None,
    recipient: str | None,
    every: float | None,
    keep: int | None,
    unschedule: bool,
    target: str | None,
) -> None:
    """Back up the cluster to FILE: the store, the CA and the cluster's keys, encrypted.

    The cluster stays in use; the backup is of one moment. Data of volumes, images and logs are not
    part of it. It has all secrets of the cluster: keep the passphrase apart from it.

    With --every, the managers do it on a schedule. DIR and the passphrase file are then absolute
    paths on the managers' hosts, and a recipient is one of age. 'orc cluster backups' shows the
    outcome.
    """
    if unschedule:
        if every is not None or keep or target or recipient or passphrase_file:
            raise click.UsageError("--unschedule takes no other options and no FILE|DIR")
        request = backup_pb2.SetBackupScheduleRequest()
        client.call("Backup.SetSchedule", request)
        click.echo("No backups are scheduled.")
        return
    if target is None:
        raise click.UsageError("give the FILE to write, or the DIR of a schedule")
    if recipient and passphrase_file:
        raise click.UsageError("--recipient and --passphrase-file are mutually exclusive")
    if every is None:
        if keep:
            raise click.UsageError("--keep needs --every")
        _back_up(client, passphrase_file, recipient, Path(target))
        return
    if not recipient and not passphrase_file:
        raise click.UsageError(
            "give --recipient, or --passphrase-file with a path on the managers' hosts"
        )
    schedule = types_pb2.BackupSchedule(
        every=every,
        keep=keep or _KEEP,
        folder=target,
        recipient=recipient or "",
        passphrase_file=passphrase_file or "",
    )
    _schedule(client, schedule)


def _schedule(client: Client, schedule: types_pb2.BackupSchedule) -> None:
    """Set a schedule, and wait for the first backup of each running manager."""
    request = backup_pb2.SetBackupScheduleRequest(schedule=schedule)
    overview = client.call("Backup.SetSchedule", request)
    since = overview.schedule.changed_at
    until = time.monotonic() + _FIRST_WITHIN
    while any(_is_due(each, since) for each in overview.managers):
        if time.monotonic() > until:
            raise CliError(
                "managers have not written a backup yet: see 'orc cluster backups' and their logs"
            )
        time.sleep(_POLL)
        overview = client.call("Backup.GetOverview", backup_pb2.GetBackupOverviewRequest())
    failed: dict[str, list[str]] = {}
    for each in overview.managers:
        if each.running and each.status.error:
            failed.setdefault(each.status.error, []).append(each.hostname)
        elif each.running:
            click.echo(f"{each.hostname}: {each.status.file}, {each.status.size} bytes")
    if failed:
        reasons = "; ".join(f"{', '.join(hosts)}: {error}" for error, hosts in failed.items())
        raise CliError(
            f"backups are scheduled, but the first one failed: {reasons}. Managers try again every "
            "five minutes; repeat the command to change the schedule, or end it by --unschedule"
        )


def _is_due(manager: backup_pb2.ManagerBackups, since: float) -> bool:
    """Whether a running manager has not attempted a backup since then."""
    return manager.running and manager.status.schedule_changed_at != since


@click.command(epilog=example("orc cluster backups"))
@listing_options("manager", "state")
@pass_client
def backups(client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]) -> None:
    """List the managers' scheduled backups: the newest of each, and why the last one failed."""
    overview = client.call("Backup.GetOverview", backup_pb2.GetBackupOverviewRequest())
    now = time.time()
    rows = [backup_row(each, overview, now) for each in overview.managers]
    columns = [
        column("MANAGER", "manager"),
        Column("STATE", lambda row: row["state"].capitalize()),
        Column("NEWEST", lambda row: ago(row["_newest"], now)),
        Column("SIZE", lambda row: format_size(row["size"]) if row["size"] else ""),
        Column("KEPT", lambda row: str(row["kept"])),
        Column("FILE", lambda row: row["file"]),
        Column("ERROR", lambda row: row["error"]),
    ]
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


def _back_up(
    client: Client, passphrase_file: str | None, recipient: str | None, file: Path
) -> None:
    """Write a backup to a file of this host. Raises CliError."""
    from orchestrator.backups.archive import BackupError, unpack
    from orchestrator.backups.passphrase import encrypt
    from orchestrator.backups.recipients import encrypt_to
    from orchestrator.linux.atomicfile import write_file

    passphrase = "" if recipient else read_passphrase(passphrase_file, confirm=True)
    pieces = client.stream("Backup.Create", backup_pb2.CreateBackupRequest())
    plain = b"".join(metered((piece.data for piece in pieces), "backing up the cluster"))
    try:
        # Also a test that it can be read.
        manifest = unpack(plain).manifest
        data = encrypt_to(plain, recipient) if recipient else encrypt(plain, passphrase)
        write_file(file, data)
    except BackupError as error:
        raise CliError(f"the backup was not written: {error}") from None
    except OSError as error:
        raise CliError(f"cannot write {file}: {error.strerror}") from None
    click.echo(
        f"{file}: cluster {manifest.cluster_id} at store revision {manifest.revision}, "
        f"{manifest.keys} keys, {len(data)} bytes"
    )


@click.command(
    epilog=example("sudo orc cluster restore --advertise 192.168.1.20 cluster.orcbackup")
)
@click.option(
    "--advertise",
    "--advertise-addr",
    required=True,
    metavar="IP",
    help="This host's address, which other hosts reach.",
)
@click.option("--listen-port", default=7420, show_default=True, help="Control port; joins: +1.")
@manager_data_option
@context_name_option
@passphrase_option
@file_option("--identity", help="Private key of age, for a backup that was encrypted to one.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def restore(
    advertise: str,
    listen_port: int,
    data_dir: Path,
    name: str,
    passphrase_file: str | None,
    identity: str | None,
    file: Path,
) -> None:
    """Restore a cluster from the backup FILE on this host, which becomes its only manager.

    No container is stopped: nodes keep what runs there until they reconnect, and containers that
    the backup does not know run on as orphans, until 'orc orphan' adopts or removes them. Make sure
    that no other manager of the cluster runs any more.
    """
    from orchestrator.backups.archive import BackupError, unpack
    from orchestrator.manager.backup.restore import restore as restore_manager

    address = own_address(advertise)
    try:
        archive = unpack(_decrypted(file, passphrase_file, identity))
        manager, authority, admin = restore_manager(archive, data_dir, address, listen_port)
    except BackupError as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot access {error.filename}: run this as root (sudo)") from None
    endpoint = f"{address}:{listen_port}"
    save_context(Context(name, (endpoint,), authority, admin.certificate, admin.key))
    age = max(0, int(time.time() - archive.manifest.created_at))
    click.echo(
        f"Cluster {manager.cluster_id} is restored in {data_dir} as of "
        f"{rfc3339(archive.manifest.created_at)} ({age} s ago)."
    )
    if data_dir == MANAGER_DATA and start_unit("orc-manager.service"):
        click.echo("Its manager runs, now and after each boot (orc-manager.service).")
        serve_docker_api()
    else:
        click.echo(f"Start its manager:  orc manager --data-dir {data_dir}")
    click.echo(
        "On each node that knew the managers by other addresses, run:  "
        f"orc cluster reconnect {endpoint}"
    )
    click.echo("Containers that started since run on, and are listed by:  orc orphan ls")


@click.command(epilog=example("sudo orc cluster recover --force-new-cluster"))
@click.option(
    "--force-new-cluster",
    is_flag=True,
    help="Required. Confirm: the other managers are lost for good and do not run any more.",
)
@manager_data_option
def recover(force_new_cluster: bool, data_dir: Path) -> None:
    """Make this host's manager the only one of its cluster, after a majority of the managers was
    lost for good. Stop it first.

    It goes on with the data that it has. No container is stopped: those that it does not know run
    on as orphans. Lost managers that return are refused; let others join.
    """
    if not force_new_cluster:
        raise click.UsageError(
            "give --force-new-cluster if the other managers are lost for good and do not run"
        )
    from orchestrator.backups.archive import BackupError
    from orchestrator.identity.host_identity import NoIdentity
    from orchestrator.manager.backup.recovery import recover as recover_manager

    try:
        identity, removed = recover_manager(data_dir)
    except (BackupError, NoIdentity) as error:
        raise CliError(str(error)) from None
    except PermissionError as error:
        raise CliError(f"cannot access {error.filename}: run this as root (sudo)") from None
    click.echo(
        f"Manager {identity.manager_id} is the only one of cluster {identity.cluster_id} now; "
        f"removed: {', '.join(removed) or 'none'}."
    )
    if data_dir == MANAGER_DATA and start_unit("orc-manager.service"):
        click.echo("It runs, now and after each boot (orc-manager.service).")
    else:
        click.echo(f"Start it:  orc manager --data-dir {data_dir}")


def _decrypted(file: Path, passphrase_file: str | None, identity: str | None) -> bytes:
    from orchestrator.backups.passphrase import decrypt, is_encrypted
    from orchestrator.backups.recipients import decrypt_with

    try:
        data = file.read_bytes()
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from None
    if is_encrypted(data):
        return decrypt(data, read_passphrase(passphrase_file, confirm=False))
    return decrypt_with(data, Path(identity) if identity else None)
