"""The images that a stack's files say how to build, by `orc build`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from orchestrator.cli.build import build_folder, build_host
from orchestrator.cli.client import Client
from orchestrator.cli.groups import CliError
from orchestrator.cli.spec_flags import checked_image
from orchestrator.compose.stack import StackBuild
from orchestrator.pb import control_pb2


def build_image(client: Client, build: StackBuild, quiet: bool) -> Any:
    """Build the image, and return it. Raises CliError."""
    section = build.section
    folder = section.text("context") or "."
    platforms = section.texts("platforms")
    if len(platforms) > 1:
        raise CliError(f"{section.place}: an image is built for one platform; name one")
    dockerfile, inline = section.text("dockerfile"), section.text("dockerfile_inline")
    header = control_pb2.ImageHeader(
        name=checked_image(build.image),
        more_names=[checked_image(tag) for tag in section.texts("tags")],
        build_args=section.pairs("args"),
        no_cache=section.flag("no_cache"),
        target=section.text("target"),
        pull=section.flag("pull"),
        labels=section.pairs("labels"),
        platform=platforms[0] if platforms else "",
        format="docker",
        network="none" if section.text("network") == "none" else "host",
        add_hosts=[build_host(f"{k}:{v}") for k, v in section.pairs("extra_hosts").items()],
    )
    if not inline:
        file = str(Path(folder, dockerfile)) if dockerfile else None
        return build_folder(client, header, Path(folder), file, quiet)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "Dockerfile")
        path.write_text(inline)
        return build_folder(client, header, Path(folder), str(path), quiet)
