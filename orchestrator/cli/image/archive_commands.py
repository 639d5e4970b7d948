# SPDX-License-Identifier: Apache-2.0
"""`orc save`, `import`, `commit`, `export`, `diff`: images and containers as files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.flags.spec_flags import checked_image
from orchestrator.cli.image.build_context import CHUNK
from orchestrator.cli.output.listings import format_option, print_json
from orchestrator.cli.output.screen import metered
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.pb import images_pb2


@click.command(epilog=example("orc save -o hello.tar hello:1", "orc save hello:1 | ssh host …"))
@file_option("--output", "-o", help="Write to this file instead of stdout.")
@click.argument("images", nargs=-1, required=True, shell_complete=completes("images"))
@pass_client
def save(client: Client, output: str | None, images: tuple[str, ...]) -> None:
    """Save images as an archive that orc, docker, podman and skopeo load."""
    request = images_pb2.SaveImageRequest(images=images)
    _write(client.stream("Images.Save", request), output, f"saving {', '.join(images)}")


@click.command(epilog=example("orc export -o files.tar web.1"))
@file_option("--output", "-o", help="Write to this file instead of stdout.")
@click.argument("container", shell_complete=completes("containers"))
@pass_client
def export(client: Client, output: str | None, container: str) -> None:
    """Write all files of a container as a tar archive."""
    request = images_pb2.ExportRequest(container=container)
    _write(client.stream("Images.Export", request), output, f"exporting {container}")


def _write(pieces: Iterator[Any], output: str | None, what: str) -> None:
    """Write to a file atomically, or stream to stdout."""
    data = metered((piece.data for piece in pieces), what)
    if output is None:
        if sys.stdout.isatty():
            raise click.UsageError("cannot write an archive to a terminal; use -o or a pipe")
        for piece in data:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    target = Path(output)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            for piece in data:
                file.write(piece)
        draft.rename(target)
    except OSError as error:
        raise CliError(f"cannot write {output}: {(error.strerror or '').lower()}") from None
    finally:
        draft.unlink(missing_ok=True)


@click.command("import", epilog=example("orc import rootfs.tar base:1", "… | orc import - base:1"))
@click.option(
    "--change", "-c", multiple=True, metavar="INSTRUCTION", help="Such as 'CMD [\"/sh\"]'."
)
@click.option("--message", "-m", default="", help="A comment for the image's history.")
@click.option(
    "--node", metavar="NODE", shell_complete=completes("nodes"), help="Import on this node."
)
@click.argument("file", metavar="FILE|-", shell_complete=completes("files"))
@click.argument("name", metavar="[NAME]", required=False, shell_complete=completes("images"))
@pass_client
def import_(
    client: Client,
    change: tuple[str, ...],
    message: str,
    node: str | None,
    file: str,
    name: str | None,
) -> None:
    """Create an image with one layer from a tar archive of a root filesystem."""
    header = images_pb2.ImportImageHeader(
        name=checked_image(name) if name else "",
        node=node or "",
        changes=change,
        message=message,
    )
    with _open(file) as source:
        for progress in client.stream("Images.Import", _upload(header, source)):
            if progress.WhichOneof("part") == "image":
                click.echo(progress.image.id)


def _open(path: str) -> AbstractContextManager[BinaryIO]:
    if path == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"cannot read {path}: {(error.strerror or '').lower()}") from None


def _upload(header: Any, source: BinaryIO) -> Iterator[Any]:
    yield images_pb2.ImportImageUpload(header=header)
    while data := source.read(CHUNK):
        yield images_pb2.ImportImageUpload(data=data)


@click.command(epilog=example("orc commit web.1 web:fixed"))
@click.option("--author", "-a", default="", metavar="NAME", help="Author of the image.")
@click.option("--message", "-m", default="", help="A comment for the image's history.")
@click.option("--change", "-c", multiple=True, metavar="INSTRUCTION", help="Such as 'ENV A=1'.")
@click.option(
    "--pause/--no-pause", "-p", default=True, help="Pause the container during the commit."
)
@click.argument("container", shell_complete=completes("containers"))
@click.argument("name", metavar="[NAME]", required=False, shell_complete=completes("images"))
@pass_client
def commit(
    client: Client,
    author: str,
    message: str,
    change: tuple[str, ...],
    pause: bool,
    container: str,
    name: str | None,
) -> None:
    """Create an image from a container's changed files."""
    request = images_pb2.CommitRequest(
        container=container,
        name=checked_image(name) if name else "",
        changes=change,
        author=author,
        message=message,
        no_pause=not pause,
    )
    click.echo(client.call("Images.Commit", request, timeout=300.0).id)


@click.command(epilog=example("orc diff web.1"))
@format_option()
@click.argument("container", shell_complete=completes("containers"))
@pass_client
def diff(client: Client, form: str, container: str) -> None:
    """Show which files a container has added (A), changed (C) and deleted (D)."""
    reply = client.call("Images.Diff", images_pb2.DiffRequest(container=container))
    if form == "json":
        print_json([{"kind": change.kind, "path": change.path} for change in reply.changes])
        return
    for change in reply.changes:
        click.echo(f"{change.kind} {change.path}")
