"""`orc build`, `orc images`, `orc load`: images, which live on nodes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import click

from orchestrator.cli import build_context, completion
from orchestrator.cli.client import Client, pass_client, upload
from orchestrator.cli.groups import CliError, example
from orchestrator.cli.output import listing_options, print_list
from orchestrator.cli.rows import image_columns, image_rows
from orchestrator.cli.spec_flags import checked_image, pairs
from orchestrator.model.names import short_id
from orchestrator.model.units import format_size
from orchestrator.pb import control_pb2


@click.command(epilog=example("orc images", "orc images --filter reference=hello"))
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@click.option("--digests", is_flag=True, help="Show digests.")
@listing_options("id", "reference", "dangling", "on")
@pass_client
def images(
    client: Client,
    form: str,
    quiet: bool,
    filters: Mapping[str, Sequence[str]],
    no_trunc: bool,
    digests: bool,
) -> None:
    """List the images of all nodes, and which nodes have them."""
    reply = client.call("ListImages", control_pb2.ListImagesRequest())
    rows = image_rows(reply.images, reply.hostnames)
    columns = image_columns(no_trunc, digests, time.time())
    print_list(rows, columns, form=form, quiet=quiet, filters=filters)


@click.command(epilog=example("orc build -t hello:1 .", "orc build -t hello:1 -f web/Dockerfile ."))
@click.option("--tag", "-t", required=True, metavar="NAME", help="The image's name, with tag.")
@click.option(
    "--file",
    "-f",
    "dockerfile",
    metavar="FILE",
    help="The Dockerfile; DIR/Dockerfile unless given.",
)
@click.option("--build-arg", multiple=True, metavar="KEY[=value]", help="Set an ARG; repeatable.")
@click.option(
    "--node", metavar="NODE", shell_complete=completion.nodes, help="Build there; else anywhere."
)
@click.option("--no-cache", is_flag=True, help="Run every step anew.")
@click.option("--target", default="", metavar="STAGE", help="Stop at this stage.")
@click.option("--pull", is_flag=True, help="Ask the registries for newer images of FROM.")
@click.option("--label", multiple=True, metavar="KEY=value", help="Label of the image; repeatable.")
@click.option("--quiet", "-q", is_flag=True, help="Print the image's id only.")
@click.argument("folder", metavar="DIR", type=click.Path())
@pass_client
def build(
    client: Client,
    tag: str,
    dockerfile: str | None,
    build_arg: tuple[str, ...],
    node: str | None,
    no_cache: bool,
    target: str,
    pull: bool,
    label: tuple[str, ...],
    quiet: bool,
    folder: str,
) -> None:
    """Build an image from a Dockerfile and the folder around it, on one of the nodes."""
    root = Path(folder)
    if not root.is_dir():
        raise CliError(f"{folder} is not a folder; name the one with the Dockerfile")
    file = Path(dockerfile) if dockerfile else root / "Dockerfile"
    if not file.is_file():
        raise CliError(f"there is no {file}; write one, or name it with -f")
    try:
        build_context.read_rules(root)
    except (ValueError, OSError) as error:
        raise CliError(str(error)) from None
    header = control_pb2.ImageHeader(
        name=checked_image(tag),
        node=node or "",
        dockerfile=build_context.dockerfile_name(root, file),
        build_args=_build_args(build_arg),
        no_cache=no_cache,
        target=target,
        pull=pull,
        labels=pairs("label", label),
    )
    chunks = build_context.stream(root, file)
    image = _send(client, "BuildImage", header, chunks, quiet)
    _done("built", image, header.name, quiet)


@click.command(epilog=example("orc load -i hello.tar", "skopeo copy … | orc load"))
@click.option("--input", "-i", "option", metavar="FILE", help="The archive; stdin unless given.")
@click.option("--tag", "-t", metavar="NAME", help="The name to give it; else the archive's own.")
@click.option(
    "--node", metavar="NODE", shell_complete=completion.nodes, help="Load there; else anywhere."
)
@click.option("--quiet", "-q", is_flag=True, help="Print the image's id only.")
@click.argument("argument", metavar="[FILE]", required=False)
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
        chunks = _pieces(file)
        if sys.stderr.isatty() and size and not quiet:
            from orchestrator.cli.bar import with_bar

            chunks = with_bar(chunks, size, f"loading {path}")
        image = _send(client, "LoadImage", header, chunks, quiet)
    _done("loaded", image, header.name, quiet)


def _archive(path: str | None) -> AbstractContextManager[BinaryIO]:
    if path is None or path == "-":
        if sys.stdin.isatty():
            raise click.UsageError("no archive is given; name a file, or pipe one in")
        return nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CliError(f"cannot read {path}: {(error.strerror or '').lower()}") from None


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(build_context.CHUNK):
        yield data


def _build_args(texts: Iterable[str]) -> dict[str, str]:
    """As Docker has it: a KEY alone is taken from our environment."""
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key:
            raise click.BadParameter(f"build argument {text!r} is not of the form KEY=value")
        if equals or key in os.environ:
            result[key] = value if equals else os.environ[key]
    return result


def _send(client: Client, method: str, header: Any, chunks: Iterable[bytes], quiet: bool) -> Any:
    """Upload, show the lines that come back, and return the image."""
    image = None
    try:
        for progress in client.stream(method, upload(header, chunks)):
            if progress.WhichOneof("part") == "image":
                image = progress.image
            elif not quiet:
                click.echo(progress.line, err=True)
    except OSError as error:
        raise CliError(f"cannot read {error.filename}: {error.strerror}") from None
    if image is None:
        raise CliError("the manager ended the upload without an image; see its log")
    return image


def _done(verb: str, image: Any, name: str, quiet: bool) -> None:
    if quiet:
        click.echo(image.id)
        return
    shown = name or ", ".join(image.names) or "an image without a name"
    click.echo(f"{verb} {shown} ({short_id(image.id)}, {format_size(image.size)})")
