"""`orc images` and `orc load`: images, which live on nodes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import click

from orchestrator.cli import build_context, completion
from orchestrator.cli.client import Client, pass_client, upload
from orchestrator.cli.groups import CliError, example
from orchestrator.cli.image_rows import by_age, image_columns, image_rows
from orchestrator.cli.output import is_named, listing_options, print_list
from orchestrator.cli.screen import metered
from orchestrator.cli.spec_flags import checked_image
from orchestrator.model.names import short_id
from orchestrator.model.units import format_size
from orchestrator.pb import control_pb2


@click.command(epilog=example("orc images", "orc images --filter reference=hello"))
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--all", "-a", is_flag=True, expose_value=False, help="Is so: all are shown.")
@listing_options("id", "reference", "dangling", "label", "before", "since", "until", "on")
@click.argument(
    "reference",
    required=False,
    metavar="[NAME[:TAG]]",
    shell_complete=completion.images,
)
@pass_client
def images(
    client: Client,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
    digests: bool,
    reference: str | None,
) -> None:
    """List the images of all nodes, and which nodes have them."""
    reply = client.call("ListImages", control_pb2.ListImagesRequest())
    rows = image_rows(reply.images, reply.hostnames)
    if reference:
        rows = [row for row in rows if is_named(row, reference)]
    rows, filters = by_age(rows, filters)
    columns = image_columns(no_trunc, digests, time.time())
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


@click.command(epilog=example("orc load -i hello.tar", "skopeo copy … | orc load"))
@completion.file_option("--input", "-i", "option", help="The archive; stdin unless given.")
@click.option("--tag", "-t", metavar="NAME", help="The name to give it; else the archive's own.")
@click.option(
    "--node", metavar="NODE", shell_complete=completion.nodes, help="Load there; else anywhere."
)
@click.option("--quiet", "-q", is_flag=True, help="Print the image's id only.")
@click.argument("argument", metavar="[FILE]", required=False, shell_complete=completion.files)
@pass_client
def load(
    client: Client,
    option: str | None,
    argument: str | None,
    tag: str | None,
    node: str | None,
    quiet: bool,
) -> None:
    """Load an image from an OCI or Docker archive onto one of the nodes."""
    if option and argument:
        raise click.UsageError("the archive is given twice, as -i and as FILE")
    path = option or argument
    header = control_pb2.ImageHeader(name=checked_image(tag) if tag else "", node=node or "")
    with _archive(path) as file:
        size = os.fstat(file.fileno()).st_size if path else 0
        chunks = build_context.pieces(file)
        loaded = _send(
            client, header, metered(chunks, f"loading {path or ''}", size or None, quiet=quiet)
        )
    for image in loaded:
        if quiet:
            click.echo(image.id)
            continue
        shown = header.name or ", ".join(image.names) or "an image without a name"
        click.echo(f"loaded {shown} ({short_id(image.id)}, {format_size(image.size)})")


def _archive(path: str | None) -> AbstractContextManager[BinaryIO]:
    if path is None or path == "-":
        if sys.stdin.isatty():
            raise click.UsageError("no archive is given; name a file, or pipe one in")
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"cannot read {path}: {(error.strerror or '').lower()}") from None


def _send(client: Client, header: Any, chunks: Iterable[bytes]) -> list[Any]:
    """Upload an archive, and return the images that came of it."""
    images = []
    try:
        for progress in client.stream("LoadImage", upload(header, chunks)):
            if progress.WhichOneof("part") == "image":
                images.append(progress.image)
    except OSError as error:
        raise CliError(f"cannot read {error.filename}: {error.strerror}") from None
    if not images:
        raise CliError("the manager ended the upload without an image; see its log")
    return images
