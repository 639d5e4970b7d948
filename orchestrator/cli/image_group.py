"""`orc image …`: Docker's names of the commands on images."""

from __future__ import annotations

import click

from orchestrator.cli.groups import Lazy, OrcGroup

_MODULES = "orchestrator.cli.image"


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("ls", f"{_MODULES}:images", "List the images of all nodes"),
                Lazy("inspect", f"{_MODULES}_names:inspect", "All that is known of an image"),
                Lazy("history", f"{_MODULES}_names:history", "How an image was made"),
                Lazy("tag", f"{_MODULES}_names:tag", "Give an image another name"),
                Lazy("rm", f"{_MODULES}_names:rmi", "Remove images"),
                Lazy("prune", f"{_MODULES}_names:prune", "Remove images that nothing needs"),
                Lazy("build", "orchestrator.cli.build:build", "Build an image from a Dockerfile"),
                Lazy("load", f"{_MODULES}:load", "Load an image from an archive"),
                Lazy("save", f"{_MODULES}_files:save", "Save images as an archive"),
                Lazy("import", f"{_MODULES}_files:import_", "Make an image from a tar"),
                Lazy("pull", f"{_MODULES}_registry:pull", "Get an image from a registry"),
                Lazy("push", f"{_MODULES}_registry:push", "Put an image into a registry"),
            ),
        ),
    ),
)
def image() -> None:
    """Images of the cluster."""
