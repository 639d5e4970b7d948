# SPDX-License-Identifier: Apache-2.0
"""`orc secret` and `orc config`: files for containers, mounted from memory."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import NotConverged, RolledBack
from orchestrator.cli.flags.flag_types import pairs
from orchestrator.cli.output.batch import inspect_options, one_by_one, print_inspected
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    listing_options,
    print_fields,
    print_list,
    rfc3339,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.service.change_commands import (
    WAIT_TIMEOUT,
    monitor_option,
    monitor_period,
    wait_options,
)
from orchestrator.model.convert import from_proto, recognized
from orchestrator.model.documents import Document, DocumentKind, check_data
from orchestrator.model.names import short_id
from orchestrator.model.services import UpdateState
from orchestrator.model.units import format_ago
from orchestrator.pb import documents_pb2

_SUMMARY = {
    DocumentKind.SECRET: "Manage secrets: data readable only by the containers that reference it.",
    DocumentKind.CONFIG: "Manage configs: files for containers outside of their images.",
}


_STANDING = (UpdateState.CANARY, UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED)


def _group(kind: DocumentKind) -> click.Group:
    word = kind.word
    names = completes("secrets") if kind is DocumentKind.SECRET else completes("configs")

    @click.group(
        word,
        cls=OrcGroup,
        help=_SUMMARY[kind],
        epilog=example(f"orc {word} create db ./db.{word}", f"orc {word} ls"),
    )
    def group() -> None:
        pass

    @group.command(
        help=f"Create a {word} from a file, or from stdin (-).",
        epilog=example(
            f"orc {word} create db.{word} ./db.{word}",
            f"pwgen 32 1 | orc {word} create db.{word} -",
        ),
    )
    @click.option("--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label; repeatable.")
    @click.option(
        "--template-driver",
        default="",
        metavar="DRIVER",
        help="golang: the data is a template, rendered for each task.",
    )
    @click.argument("name")
    @click.argument("file", required=False, default="-", type=click.Path(allow_dash=True))
    @pass_client
    def create(
        client: Client, label: tuple[str, ...], template_driver: str, name: str, file: str
    ) -> None:
        request = documents_pb2.CreateDocumentRequest(
            kind=int(kind),  # type: ignore[arg-type]
            name=name,
            labels=pairs("label", label),
            data=_read(kind, name, file),
            template_driver=template_driver,
        )
        click.echo(client.call("Documents.CreateDocument", request).id)

    @group.command(
        "ls", help=f"List the {word}s.", epilog=example(f"orc {word} ls --filter name=db")
    )
    @listing_options("id", "name", "label")
    @pass_client
    def list_(client: Client, form: str, quiet: bool, filters: Mapping[str, Sequence[str]]) -> None:
        request = documents_pb2.ListDocumentsRequest(kind=int(kind))  # type: ignore[arg-type]
        reply = client.call("Documents.ListDocuments", request)
        rows = [document_row(message) for message in reply.documents]
        print_list(rows, _COLUMNS, form=form, quiet=quiet, filters=filters)

    @group.command(
        help=f"Show details of {word}s"
        + (", without their data." if kind is DocumentKind.SECRET else ", with their data."),
        epilog=example(f"orc {word} inspect --pretty db"),
    )
    @click.argument("names", nargs=-1, required=True, shell_complete=names)
    @inspect_options
    @pass_client
    def inspect(client: Client, names: tuple[str, ...], form: str) -> None:
        rows: list[Row] = []
        for name in names:
            request = documents_pb2.ListDocumentsRequest(
                kind=int(kind),  # type: ignore[arg-type]
                document=name,
                with_data=True,
            )
            reply = client.call("Documents.ListDocuments", request)
            rows += [_inspected(kind, message) for message in reply.documents]
        print_inspected(rows, form, _show)

    @group.command(
        help=f"Replace the data of a {word}. Services that use it are updated, unless their "
        "references "
        "say otherwise (on-update), and are waited for.",
        epilog=example(f"orc {word} update db ./new.{word}"),
    )
    @click.option("--label-add", multiple=True, metavar="KEY=VALUE", help="Add a label.")
    @click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label.")
    @wait_options
    @monitor_option
    @click.argument("name", shell_complete=names)
    @click.argument("file", required=False, type=click.Path(allow_dash=True))
    @pass_client
    def update(
        client: Client,
        label_add: tuple[str, ...],
        label_rm: tuple[str, ...],
        name: str,
        file: str | None,
        **values: Any,
    ) -> None:
        if file is None and not label_add and not label_rm:
            raise click.UsageError("nothing to change; give FILE (- for stdin) or a label")
        request = documents_pb2.UpdateDocumentRequest(
            kind=int(kind),  # type: ignore[arg-type]
            document=name,
            label_add=pairs("label", label_add),
            label_rm=label_rm,
            data=None if file is None else _read(kind, name, file),
        )
        reply = client.call("Documents.UpdateDocument", request)
        click.echo(reply.document.name)
        if file is not None:
            _report(reply)
        if not values["detach"]:
            _await_services(client, reply, values["timeout"], values["quiet"], values["monitor"])

    @group.command(
        help=f"Remove {word}s. Those in use are not removed.",
        epilog=example(f"orc {word} rm db.{word}"),
    )
    @click.argument("names", nargs=-1, required=True, shell_complete=names)
    @pass_client
    def rm(client: Client, names: tuple[str, ...]) -> None:
        def remove(name: str) -> None:
            request = documents_pb2.RemoveDocumentRequest(
                kind=int(kind),  # type: ignore[arg-type]
                document=name,
            )
            client.call("Documents.RemoveDocument", request)

        one_by_one(names, remove)

    return group


def _show(row: Row) -> None:
    print_fields(_fields(row))
    if "data" in row:
        click.echo(f"Data:\n{row['data']}", nl=not row["data"].endswith("\n"))
    elif "data_base64" in row:
        click.echo("Data: not text; --format json has it in base64")


def _read(kind: DocumentKind, name: str, file: str) -> bytes:
    """The data of a file or stdin. Raises a usage error, before anything is sent."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(kind.limit + 1)
        else:
            with open(file, "rb") as source:
                data = source.read(kind.limit + 1)
        if len(data) <= kind.limit:
            check_data(kind, name, data)
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {(error.strerror or '').lower()}") from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if len(data) > kind.limit:
        where = "stdin" if file == "-" else file
        raise click.UsageError(
            f"{where} exceeds {kind.limit >> 10} KiB, the limit of a {kind.word}"
        )
    return data


def _report(reply: Any) -> None:
    """The effects of a new version, a line per service or container that uses it."""
    if not reply.changed:
        click.echo("the data is unchanged", err=True)
    notices = (
        (reply.rolled, "is updated"),
        (reply.signalled, "is signalled"),
        (reply.left, "gets it with its next update or start"),
    )
    for names, what in notices:
        for name in names:
            click.echo(f"{name} {what}", err=True)


def _await_services(
    client: Client, reply: Any, timeout: float | None, quiet: bool, monitor: float | None
) -> None:
    """Wait until updated services run with the new version. Raises NotConverged or RolledBack."""
    from orchestrator.cli.service.convergence import until_converged, watch_progress

    id, version = reply.document.id, reply.document.version
    deadline = time.monotonic() + (WAIT_TIMEOUT if timeout is None else timeout)
    for name in (user.removeprefix("service ") for user in reply.rolled):
        try:
            for progress in watch_progress(client, name, deadline):
                service = progress.service
                if progress.removed or service.documents.get(id, 0) >= version:
                    break
                if service.declined.get(id, 0) >= version:
                    raise RolledBack(f"service '{name}' was rolled back: {service.update.message}")
                if recognized(UpdateState, service.update.state) in _STANDING:
                    click.echo(
                        f"{name}: its update is paused; it gets the new version afterwards",
                        err=True,
                    )
                    break
        except TimeoutError:
            raise NotConverged(f"service '{name}' was not updated in time") from None
        if service.documents.get(id, 0) >= version:
            if timeout is None:
                deadline += monitor_period(service, monitor)
            left = max(0.0, deadline - time.monotonic())
            until_converged(client, service, left, quiet, monitor=monitor)


def document_row(message: Any) -> Row:
    """From a DocumentRow."""
    document: Document = from_proto(message.document)
    return {
        "id": document.id,
        "name": document.name,
        "version": document.version,
        "labels": document.labels,
        "template_driver": document.template_driver,
        "used_by": list(message.used_by),
        "created_at": rfc3339(document.created_at),
        "updated_at": rfc3339(document.updated_at),
        "_created": document.created_at,
        "_updated": document.updated_at,
    }


def _inspected(kind: DocumentKind, message: Any) -> Row:
    row = document_row(message) | {"versions": list(message.document.kept)}
    if kind is DocumentKind.CONFIG:
        try:
            row["data"] = message.data.decode()
        except UnicodeDecodeError:
            row["data_base64"] = base64.b64encode(message.data).decode()
    return row


def _fields(row: Row) -> list[tuple[str, str]]:
    return [
        ("ID", row["id"]),
        ("Name", row["name"]),
        ("Version", str(row["version"])),
        ("Kept versions", ", ".join(map(str, row["versions"]))),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted(row["labels"].items()))),
        ("Template", row["template_driver"]),
        ("Used by", ", ".join(row["used_by"])),
        ("Created at", row["created_at"] or ""),
        ("Updated at", row["updated_at"] or ""),
    ]


def _ago(key: str) -> Callable[[Row], str]:
    return lambda row: format_ago(row[key], time.time())


_COLUMNS = [
    Column("ID", lambda row: short_id(row["id"])),
    column("NAME", "name"),
    column("VERSION", "version"),
    Column("CREATED", _ago("_created")),
    Column("UPDATED", _ago("_updated")),
    Column("USED BY", lambda row: ", ".join(row["used_by"])),
]

secret = _group(DocumentKind.SECRET)
config = _group(DocumentKind.CONFIG)
