"""`orc image …`: Docker's names of the commands on images."""

from __future__ import annotations

import click

from orchestrator.cli.groups import Lazy, OrcGroup


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("ls", "orchestrator.cli.image:images", "List the images of all nodes"),
                Lazy(
                    "inspect",
                    "orchestrator.cli.image_names:inspect",
                    "All that is known of an image",
                ),
                Lazy("history", "orchestrator.cli.image_names:history", "How an image was made"),
                Lazy("tag", "orchestrator.cli.image_names:tag", "Give an image another name"),
                Lazy("rm", "orchestrator.cli.image_names:rmi", "Remove images"),
                Lazy(
                    "prune",
                    "orchestrator.cli.image_names:prune",
                    "Remove images that nothing needs",
                ),
                Lazy("build", "orchestrator.cli.build:build", "Build an image from a Dockerfile"),
                Lazy("load", "orchestrator.cli.image:load", "Load an image from an archive"),
                Lazy("save", "orchestrator.cli.image_files:save", "Save images as an archive"),
                Lazy("import", "orchestrator.cli.image_files:import_", "Make an image from a tar"),
                Lazy(
                    "pull", "orchestrator.cli.image_registry:pull", "Get an image from a registry"
                ),
                Lazy(
                    "push", "orchestrator.cli.image_registry:push", "Put an image into a registry"
                ),
            ),
        ),
    ),
)
def image() -> None:
    """Images of the cluster."""
