"""`orc container …`, `orc image …` and `orc system …`: Docker's management commands, as data.

Most of their commands are top-level commands, too.
"""

from __future__ import annotations

import click

from orchestrator.cli.app.command_groups import Lazy, OrcGroup, example


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy(
                    "ls",
                    "orchestrator.cli.container.ps_commands:ps",
                    "List the containers of all nodes",
                ),
                Lazy(
                    "run",
                    "orchestrator.cli.container.run_commands:run",
                    "Run a program in a new container",
                ),
                Lazy(
                    "create",
                    "orchestrator.cli.container.run_commands:create",
                    "Make a container without starting it",
                ),
                Lazy(
                    "start",
                    "orchestrator.cli.container.lifecycle_commands:start",
                    "Start containers",
                ),
                Lazy(
                    "stop", "orchestrator.cli.container.lifecycle_commands:stop", "Stop containers"
                ),
                Lazy(
                    "restart",
                    "orchestrator.cli.container.lifecycle_commands:restart",
                    "Stop and start containers",
                ),
                Lazy(
                    "kill",
                    "orchestrator.cli.container.lifecycle_commands:kill",
                    "Send containers a signal",
                ),
                Lazy(
                    "pause",
                    "orchestrator.cli.container.lifecycle_commands:pause",
                    "Freeze containers",
                ),
                Lazy(
                    "unpause",
                    "orchestrator.cli.container.lifecycle_commands:unpause",
                    "Let paused containers go on",
                ),
                Lazy("rm", "orchestrator.cli.container.lifecycle_commands:rm", "Remove containers"),
                Lazy(
                    "prune",
                    "orchestrator.cli.system.disk_commands:containers",
                    "Remove containers that do not run",
                ),
                Lazy(
                    "wait",
                    "orchestrator.cli.container.lifecycle_commands:wait",
                    "Wait for containers to end",
                ),
                Lazy(
                    "update",
                    "orchestrator.cli.container.run_commands:update",
                    "Change limits in place",
                ),
                Lazy(
                    "rename",
                    "orchestrator.cli.container.lifecycle_commands:rename",
                    "Give a container another name",
                ),
                Lazy(
                    "logs",
                    "orchestrator.cli.service.log_commands:container_logs",
                    "What a container wrote",
                ),
                Lazy(
                    "exec",
                    "orchestrator.cli.container.exec_commands:exec_",
                    "Run a program in a container",
                ),
                Lazy(
                    "attach",
                    "orchestrator.cli.container.exec_commands:attach",
                    "Connect to a container's program",
                ),
                Lazy(
                    "cp",
                    "orchestrator.cli.container.copy_command:cp",
                    "Copy files into and out of a container",
                ),
                Lazy(
                    "top", "orchestrator.cli.top.top_commands:top", "The processes of a container"
                ),
                Lazy(
                    "stats", "orchestrator.cli.top.stats_command:stats", "What containers use, live"
                ),
                Lazy(
                    "inspect",
                    "orchestrator.cli.container.ps_commands:inspect",
                    "All that is known of containers",
                ),
                Lazy(
                    "port",
                    "orchestrator.cli.container.ps_commands:port",
                    "Published ports of a container",
                ),
                Lazy(
                    "diff",
                    "orchestrator.cli.image.archive_commands:diff",
                    "What a container has changed",
                ),
                Lazy(
                    "commit",
                    "orchestrator.cli.image.archive_commands:commit",
                    "An image of a container",
                ),
                Lazy(
                    "export",
                    "orchestrator.cli.image.archive_commands:export",
                    "A container's files as a tar",
                ),
            ),
        ),
    ),
    epilog=example("orc container ls -a", "orc container prune"),
)
def container() -> None:
    """Containers of the cluster; each of these is a command of its own, too."""


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy(
                    "ls",
                    "orchestrator.cli.image.image_commands:images",
                    "List the images of all nodes",
                ),
                Lazy(
                    "inspect",
                    "orchestrator.cli.image.image_commands:inspect",
                    "All that is known of an image",
                ),
                Lazy(
                    "history",
                    "orchestrator.cli.image.image_commands:history",
                    "How an image was made",
                ),
                Lazy(
                    "tag", "orchestrator.cli.image.image_commands:tag", "Give an image another name"
                ),
                Lazy("rm", "orchestrator.cli.image.image_commands:rmi", "Remove images"),
                Lazy(
                    "prune",
                    "orchestrator.cli.image.image_commands:prune",
                    "Remove images that nothing needs",
                ),
                Lazy(
                    "build",
                    "orchestrator.cli.image.build_commands:build",
                    "Build an image from a Dockerfile",
                ),
                Lazy(
                    "load",
                    "orchestrator.cli.image.image_commands:load",
                    "Load an image from an archive",
                ),
                Lazy(
                    "save",
                    "orchestrator.cli.image.archive_commands:save",
                    "Save images as an archive",
                ),
                Lazy(
                    "import",
                    "orchestrator.cli.image.archive_commands:import_",
                    "Make an image from a tar",
                ),
                Lazy(
                    "pull",
                    "orchestrator.cli.image.registry_commands:pull",
                    "Get an image from a registry",
                ),
                Lazy(
                    "push",
                    "orchestrator.cli.image.registry_commands:push",
                    "Put an image into a registry",
                ),
            ),
        ),
    ),
)
def image() -> None:
    """Images of the cluster."""


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy(
                    "df", "orchestrator.cli.system.disk_commands:df", "What is on the nodes' disks"
                ),
                Lazy(
                    "prune",
                    "orchestrator.cli.system.disk_commands:system",
                    "Remove what nobody needs",
                ),
                Lazy("info", "orchestrator.cli.system.info_command:info", "The cluster in figures"),
                Lazy(
                    "top",
                    "orchestrator.cli.top.top_commands:system_top",
                    "What the nodes' containers use, live",
                ),
                Lazy(
                    "events",
                    "orchestrator.cli.system.event_commands:events",
                    "What happens in the cluster",
                ),
            ),
        ),
        (
            "On a host itself",
            (
                Lazy(
                    "check",
                    "orchestrator.agent.diagnostics.system_check:check",
                    "Whether this host can be a node",
                ),
            ),
        ),
    ),
    epilog=example("orc system df", "orc system prune"),
)
def system() -> None:
    """The cluster as a whole: its figures, its disks, and what nobody needs any more."""
