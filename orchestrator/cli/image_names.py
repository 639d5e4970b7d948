"""`orc tag`, `rmi`, `history`, `image inspect`, `image prune`: images' names and ends."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from orchestrator.cli import completion
from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.groups import example
from orchestrator.cli.output import Column, Row, column, format_option, print_rows
from orchestrator.cli.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.cli.several import attempts
from orchestrator.cli.spec_flags import checked_image
from orchestrator.model.names import short_id
from orchestrator.model.units import format_ago, format_size
from orchestrator.pb import images_pb2


@click.command(epilog=example("orc tag hello:1 reg.example:5000/hello:1"))
@click.argument("image", metavar="IMAGE", shell_complete=completion.images)
@click.argument("name", metavar="NAME", shell_complete=completion.images)
@pass_client
def tag(client: Client, image: str, name: str) -> None:
    """Give an image another name. A name that another image had is taken from it."""
    request = images_pb2.TagImageRequest(image=image, name=checked_image(name))
    client.call("Images.Tag", request)


@click.command(epilog=example("orc rmi hello:1", "orc rmi -f hello:1"))
@click.option("--force", "-f", is_flag=True, help="Take the names also of one that is in use.")
@click.argument("images", nargs=-1, required=True, shell_complete=completion.images)
@pass_client
def rmi(client: Client, force: bool, images: tuple[str, ...]) -> None:
    """Remove names of images, and images with their last name, from all nodes."""
    with attempts() as attempt:
        for image in images:
            with attempt():
                request = images_pb2.RemoveImageRequest(image=image, force=force)
                _show(client.call("Images.Remove", request))


@click.command(epilog=example("orc image prune", "orc image prune -a -f"))
@click.option("--all", "-a", "all_", is_flag=True, help="Also those with a name that none uses.")
@prune_options
@pass_client
def prune(client: Client, all_: bool, filters: PruneFilters, force: bool) -> None:
    """Remove images without a name, which nothing uses, from all nodes."""
    if not force:
        confirm(["all images that nothing uses" if all_ else "all images without a name"], filters)
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
@click.option("--no-trunc", is_flag=True, help="Show whole commands.")
@click.option("--quiet", "-q", is_flag=True, help="Print the ids of layers only.")
@click.argument("image", shell_complete=completion.images)
@pass_client
def history(client: Client, form: str, no_trunc: bool, quiet: bool, image: str) -> None:
    """Show how an image was made, the newest step first."""
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
@click.argument("images", nargs=-1, required=True, shell_complete=completion.images)
@pass_client
def inspect(client: Client, form: str, images: tuple[str, ...]) -> None:
    """Show all that is known of images, as one JSON array."""
    documents: list[Row] = []
    with attempts() as attempt:
        for image in images:
            with attempt():
                documents.append(image_document(client, image))
        if documents or form == "json":
            print_rows(documents, (), "json" if form == "table" else form, "image")


def image_document(client: Client, image: str) -> Row:
    """All that is known of an image. Raises CliError where none is."""
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
