# SPDX-License-Identifier: Apache-2.0
"""Builds the images with a build section in a stack's files.

A label of the image has the digest of its inputs, so that unchanged images are not rebuilt: another
build, maybe on another node, would be another image and would replace all its containers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.flags.spec_flags import checked_image
from orchestrator.cli.image.build_commands import build_digest, build_folder, build_host
from orchestrator.cli.image.remote_build_context import context_folder
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.stack.stack_changes import Change
from orchestrator.compose.conversion.task_specs import ulimits_of
from orchestrator.compose.stack import StackBuild
from orchestrator.model.units import parse_memory
from orchestrator.pb import control_pb2

_INPUT_DIGEST = "orc.stack.build"
"""Label of an image: the digest of its inputs."""


def build_images(client: Client, builds: Mapping[str, StackBuild], quiet: bool) -> dict[str, str]:
    """Build the images, by name, that are missing or outdated; the ids of all. `orc plan` only
    records them. Raises CliError."""
    known = client.call("ListImages", control_pb2.ListImagesRequest()).images
    there = {name: image for image in known for name in image.names}
    found = {}
    for name, build in builds.items():
        context = build.section.text("context") or "."
        with ExitStack() as stack:
            folder = stack.enter_context(context_folder(context))
            if not folder.is_dir():
                words = f"build context {folder} of {name} does not exist"
                raise CliError(f"{build.section.place}: {words}")
            header, dockerfile = stack.enter_context(_prepared(name, build, folder))
            remote = str(folder) != context
            image = there.get(name)
            digest = build_digest(header, folder, dockerfile, remote=remote)
            anew = build.section.flag("no_cache") or build.section.flag("pull")
            if anew or image is None or image.labels.get(_INPUT_DIGEST) != digest:
                client.record_step(Change("build", "image", name))
                if client.is_dry_run:
                    continue
                if not quiet:
                    click.echo(f"building {name}", err=True)
                header.labels[_INPUT_DIGEST] = digest
                image = build_folder(client, header, folder, dockerfile, quiet, remote=remote)
            found[name] = image.id
    return found


@contextmanager
def _prepared(name: str, build: StackBuild, folder: Path) -> Iterator[tuple[Any, str | None]]:
    """The input of a build: a header, and the Dockerfile if it is not the folder's default."""
    section, header = build.section, _header(name, build)
    file, inline = section.text("dockerfile"), section.text("dockerfile_inline")
    if not inline:
        yield header, str(folder / file) if file else None
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "Dockerfile")
        path.write_text(inline)
        yield header, str(path)


def _header(name: str, build: StackBuild) -> Any:
    section = build.section
    platforms = section.texts("platforms")
    if len(platforms) > 1:
        raise CliError(f"{section.place}: an image is built for one platform; name one")
    limits = control_pb2.BuildLimits(
        shm_size=parse_memory(section.text("shm_size", "0")),
        ulimits=[
            f"{each.name}={each.soft}:{each.hard}" for each in ulimits_of(section, f"{name}.build")
        ],
    )
    return control_pb2.ImageHeader(
        limits=limits if limits.ByteSize() else None,
        name=name,
        more_names=[checked_image(tag) for tag in section.texts("tags")],
        build_args=section.pairs("args"),
        no_cache=section.flag("no_cache"),
        target=section.text("target"),
        pull=section.flag("pull"),
        labels=section.pairs("labels"),
        platform=platforms[0] if platforms else "",
        format="docker",
        network="" if (network := section.text("network")) == "default" else network,
        add_hosts=[build_host(f"{k}:{v}") for k, v in section.pairs("extra_hosts").items()],
    )
