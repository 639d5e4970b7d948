# SPDX-License-Identifier: Apache-2.0
"""`orc images`, `load`, `tag`, `rmi`, `history`, `image inspect` and `image prune`.

Images live on nodes: a row lists the nodes that have the image.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import click

from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.flags.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.cli.flags.spec_flags import checked_image
from orchestrator.cli.image import build_context
from orchestrator.cli.output.batch import attempts
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    listing_options,
    matches_image_name,
    print_list,
    print_rows,
    rfc3339,
    short,
)
from orchestrator.cli.output.screen import metered
from orchestrator.cli.rpc.client import Client, pass_client, upload
from orchestrator.model.convert import from_proto
from orchestrator.model.names import parse_image, short_id
from orchestrator.model.objects import Image
from orchestrator.model.units import format_ago, format_size, parse_moment
from orchestrator.pb import control_pb2, images_pb2


@click.command(epilog=example("orc tag hello:1 reg.example:5000/hello:1"))
@click.argument("image", metavar="IMAGE", shell_complete=completes("images"))
@click.argument("name", metavar="NAME", shell_complete=completes("images"))
@pass_client
def tag(client: Client, image: str, name: str) -> None:
    """Add a name to an image. A name of another image moves to this one."""
    request = images_pb2.TagImageRequest(image=image, name=checked_image(name))
    client.call("Images.Tag", request)


@click.command(epilog=example("orc rmi hello:1", "orc rmi -f hello:1"))
@click.option("--force", "-f", is_flag=True, help="Also remove names of an image in use.")
@click.argument("images", nargs=-1, required=True, shell_complete=completes("images"))
@pass_client
def rmi(client: Client, force: bool, images: tuple[str, ...]) -> None:
    """Remove names of images from all nodes, and images without further names."""
    with attempts() as attempt:
        for image in images:
            with attempt():
                request = images_pb2.RemoveImageRequest(image=image, force=force)
                _show(client.call("Images.Remove", request))


@click.command(epilog=example("orc image prune", "orc image prune -a -f"))
@click.option("--all", "-a", "all_", is_flag=True, help="Also unused images with a name.")
@prune_options
@pass_client
def prune(client: Client, all_: bool, filters: PruneFilters, force: bool) -> None:
    """Remove unused images without a name from all nodes."""
    if not force:
        confirm(["all unused images" if all_ else "all images without a name"], filters)
    request = filters.put_into(images_pb2.PruneImagesRequest(all=all_))
    reply = client.call("Images.Prune", request, timeout=300.0)
    _show(reply)
    click.echo(f"Total reclaimed space: {format_size(reply.freed)}")


def _show(reply: Any) -> None:
    for name in reply.untagged:
        click.echo(f"untagged: {name}")
    for digest in reply.deleted:
        click.echo(f"deleted: {digest}")
    for notice in reply.notices:
        click.echo(notice, err=True)


@click.command(epilog=example("orc history hello:1"))
@format_option(templates=True)
@click.option("--no-trunc", is_flag=True, help="Do not truncate commands.")
@click.option("--quiet", "-q", is_flag=True, help="Print layer ids only.")
@click.argument("image", shell_complete=completes("images"))
@pass_client
def history(client: Client, form: str, no_trunc: bool, quiet: bool, image: str) -> None:
    """Show the history of an image, newest step first."""
    reply = client.call("Images.Inspect", images_pb2.InspectImageRequest(image=image))
    rows = history_rows(json.loads(reply.manifest), json.loads(reply.config))
    if quiet:
        for row in rows:
            click.echo(row["layer"] or "<none>")
    else:
        print_rows(rows, _history_columns(no_trunc, time.time()), form)


def history_rows(manifest: dict[str, Any], config: dict[str, Any]) -> list[Row]:
    """A row a step, from the image's documents (OCI image-spec, config.md: `history`)."""
    layers = list(manifest["layers"])
    steps = config.get("history") or [{"created_by": ""} for _ in layers]
    rows = []
    for step in steps:
        empty = bool(step.get("empty_layer"))
        layer = layers.pop(0) if layers and not empty else None
        rows.append(
            {
                "layer": layer["digest"] if layer else None,
                "created_at": step.get("created"),
                "created_by": step.get("created_by", ""),
                "size": layer["size"] if layer else 0,
                "comment": step.get("comment", ""),
            }
        )
    return rows[::-1]


def _history_columns(whole: bool, now: float) -> list[Column]:
    from datetime import datetime

    def age(row: Row) -> str:
        try:
            made = datetime.fromisoformat(row["created_at"][:19] + "+00:00")
            return format_ago(made.timestamp(), now)
        except (TypeError, ValueError):
            return ""

    def by(row: Row) -> str:
        text = " ".join(row["created_by"].split())
        return text if whole or len(text) <= 45 else f"{text[:44]}…"

    return [
        Column("LAYER", lambda row: short_id(row["layer"]) if row["layer"] else "<none>"),
        Column("CREATED", age),
        Column("CREATED BY", by),
        Column("SIZE", lambda row: format_size(row["size"])),
        column("COMMENT", "comment"),
    ]


@click.command(
    epilog=example("orc image inspect hello:1", "orc image inspect -f '{{.config.Cmd}}' hello:1")
)
@format_option("json", templates=True, short=True)
@click.argument("images", nargs=-1, required=True, shell_complete=completes("images"))
@pass_client
def inspect(client: Client, form: str, images: tuple[str, ...]) -> None:
    """Show details of images, as one JSON array."""
    documents: list[Row] = []
    with attempts() as attempt:
        for image in images:
            with attempt():
                documents.append(image_document(client, image))
        if documents or form == "json":
            print_rows(documents, (), "json" if form == "table" else form, "image")


def image_document(client: Client, image: str) -> Row:
    """The full document of an image. Raises CliError if there is none."""
    reply = client.call("Images.Inspect", images_pb2.InspectImageRequest(image=image))
    config = json.loads(reply.config)
    about = reply.image
    return {
        "id": about.id,
        "names": list(about.names),
        "digests": [about.id, *about.indexes],
        "created_at": config.get("created"),
        "author": config.get("author", ""),
        "architecture": config.get("architecture"),
        "os": config.get("os"),
        "size": about.size,
        "layers": list(about.layers),
        "nodes": sorted(reply.hostnames.get(node, node) for node in about.nodes),
        "config": config.get("config") or {},
        "history": config.get("history") or [],
        "manifest": json.loads(reply.manifest),
    }


def image_rows(messages: Iterable[Any], hostnames: Mapping[str, str]) -> list[Row]:
    """From the images of a ListImagesReply: a row per name, newest first."""
    images: list[Image] = [from_proto(message) for message in messages]
    rows = []
    given = {name for image in images for name in image.names}
    for image in sorted(images, key=lambda image: (-image.created_at, image.id)):
        reported = [name for name in image.reported_names if name not in given]
        for name in image.names or reported or ("",):
            parsed = parse_image(name) if name else None
            rows.append(
                {
                    "id": image.id,
                    "repository": parsed.name if parsed else "<none>",
                    "tag": (parsed.tag if parsed else "") or "<none>",
                    "digest": image.indexes[0] if image.indexes else image.id,
                    "dangling": not name,
                    "reported": bool(name) and not image.names,
                    "size": image.size,
                    "nodes": sorted(hostnames.get(node, node) for node in image.nodes),
                    "layers": list(image.layers),
                    "labels": image.labels,
                    "config_digest": image.config_digest,
                    "created_at": rfc3339(image.created_at),
                    "_created": image.created_at,
                }
            )
    return rows


_AGE_FILTERS = {"before", "since", "until"}


def filter_by_age(
    rows: list[Row], filters: Mapping[str, Sequence[str]]
) -> tuple[list[Row], dict[str, Sequence[str]]]:
    """The images that `before=IMAGE`, `since=IMAGE` and `until=TIME` leave, and the other
    filters. Raises CliError for an image that is not in the list."""
    rest = {key: values for key, values in filters.items() if key not in _AGE_FILTERS}
    kept = rows
    for key in _AGE_FILTERS & filters.keys():
        for value in filters[key]:
            moment = _moment_of(key, value, rows)
            kept = [
                row
                for row in kept
                if (row["_created"] > moment if key == "since" else row["_created"] < moment)
            ]
    return kept, rest


def _moment_of(key: str, value: str, rows: Sequence[Row]) -> float:
    if key == "until":
        try:
            return parse_moment(value, time.time(), "until")
        except ValueError as error:
            raise CliError(str(error)) from None
    for row in rows:
        if (
            matches_image_name(row, value)
            or short_id(row["id"]).startswith(value)
            or row["id"] == value
        ):
            return float(row["_created"])
    raise CliError(f"no image '{value}'; see 'orc images'")


def image_columns(whole: bool, digests: bool, now: float) -> list[Column]:
    columns = [
        column("REPOSITORY", "repository"),
        Column("TAG", lambda row: row["tag"] + (" (reported)" if row["reported"] else "")),
    ]
    if digests:
        columns.append(column("DIGEST", "digest"))
    return [
        *columns,
        short("IMAGE ID", "id", whole),
        Column("CREATED", lambda r: format_ago(r["_created"], now) if r["_created"] else ""),
        Column("CONTENT SIZE", lambda row: format_size(row["size"])),
        Column("NODES", lambda row: ", ".join(row["nodes"])),
    ]


@click.command(epilog=example("orc images", "orc images --filter reference=hello"))
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option(
    "--all",
    "-a",
    is_flag=True,
    expose_value=False,
    help="No-op, accepted for Docker compatibility.",
)
@listing_options("id", "reference", "dangling", "label", "before", "since", "until", "on")
@click.argument(
    "reference",
    required=False,
    metavar="[NAME[:TAG]]",
    shell_complete=completes("images"),
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
    """List the images of all nodes, and the nodes that have them."""
    reply = client.call("ListImages", control_pb2.ListImagesRequest())
    rows = image_rows(reply.images, reply.hostnames)
    if reference:
        rows = [row for row in rows if matches_image_name(row, reference)]
    rows, filters = filter_by_age(rows, filters)
    columns = image_columns(no_trunc, digests, time.time())
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


@click.command(epilog=example("orc load -i hello.tar", "skopeo copy … | orc load"))
@file_option("--input", "-i", "option", help="The archive.  [default: stdin]")
@click.option("--tag", "-t", metavar="NAME", help="Name of the image.  [default: the archive's]")
@click.option(
    "--node",
    metavar="NODE",
    shell_complete=completes("nodes"),
    help="Load on this node.  [default: any]",
)
@click.option("--quiet", "-q", is_flag=True, help="Print the image's id only.")
@click.argument("argument", metavar="[FILE]", required=False, shell_complete=completes("files"))
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
            raise click.UsageError("no archive given; name a file or pipe one in")
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"cannot read {path}: {(error.strerror or '').lower()}") from None


def _send(client: Client, header: Any, chunks: Iterable[bytes]) -> list[Any]:
    """Upload an archive and return its images."""
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
