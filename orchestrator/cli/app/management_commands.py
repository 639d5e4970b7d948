# SPDX-License-Identifier: Apache-2.0
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
                Lazy("ls", ".container.ps_commands:ps", "List the containers of all nodes"),
                Lazy("run", ".container.run_commands:run", "Run a program in a new container"),
                Lazy(
                    "create",
                    ".container.run_commands:create",
                    "Create a container without starting it",
                ),
                Lazy("start", ".container.lifecycle_commands:start", "Start containers"),
                Lazy("stop", ".container.lifecycle_commands:stop", "Stop containers"),
                Lazy(
                    "restart", ".container.lifecycle_commands:restart", "Stop and start containers"
                ),
                Lazy("kill", ".container.lifecycle_commands:kill", "Send containers a signal"),
                Lazy("pause", ".container.lifecycle_commands:pause", "Pause containers"),
                Lazy(
                    "unpause",
                    ".container.lifecycle_commands:unpause",
                    "Resume paused containers",
                ),
                Lazy("rm", ".container.lifecycle_commands:rm", "Remove containers"),
                Lazy("prune", ".system.disk_commands:containers", "Remove stopped containers"),
                Lazy("wait", ".container.lifecycle_commands:wait", "Wait for containers to exit"),
                Lazy(
                    "update",
                    ".container.run_commands:update",
                    "Change limits of running containers",
                ),
                Lazy(
                    "rename",
                    ".container.lifecycle_commands:rename",
                    "Rename a container",
                ),
                Lazy(
                    "logs", ".service.log_commands:container_logs", "Show the logs of a container"
                ),
                Lazy("exec", ".container.exec_commands:exec_", "Run a program in a container"),
                Lazy(
                    "attach", ".container.exec_commands:attach", "Connect to a container's program"
                ),
                Lazy("cp", ".container.copy_command:cp", "Copy files into and out of a container"),
                Lazy("top", ".top.top_commands:top", "List the processes of a container"),
                Lazy("stats", ".top.stats_command:stats", "Live resource usage of containers"),
                Lazy("inspect", ".container.ps_commands:inspect", "Show details of containers"),
                Lazy(
                    "port", ".container.ps_commands:port", "List the published ports of a container"
                ),
                Lazy("diff", ".image.archive_commands:diff", "List changed files of a container"),
                Lazy(
                    "commit", ".image.archive_commands:commit", "Create an image from a container"
                ),
                Lazy(
                    "export",
                    ".image.archive_commands:export",
                    "Export a container's files as a tar archive",
                ),
            ),
        ),
    ),
    epilog=example("orc container ls -a", "orc container prune"),
)
def container() -> None:
    """Manage containers. Each command is also a top-level command."""


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("ls", ".image.image_commands:images", "List the images of all nodes"),
                Lazy("inspect", ".image.image_commands:inspect", "Show details of an image"),
                Lazy("history", ".image.image_commands:history", "Show the history of an image"),
                Lazy("tag", ".image.image_commands:tag", "Add a name to an image"),
                Lazy("rm", ".image.image_commands:rmi", "Remove images"),
                Lazy("prune", ".image.image_commands:prune", "Remove unused images"),
                Lazy("build", ".image.build_commands:build", "Build an image from a Dockerfile"),
                Lazy("load", ".image.image_commands:load", "Load an image from an archive"),
                Lazy("save", ".image.archive_commands:save", "Save images as an archive"),
                Lazy(
                    "import",
                    ".image.archive_commands:import_",
                    "Create an image from a tar archive",
                ),
                Lazy("pull", ".image.registry_commands:pull", "Pull an image from a registry"),
                Lazy("push", ".image.registry_commands:push", "Push an image to a registry"),
            ),
        ),
    ),
)
def image() -> None:
    """Manage images."""


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("df", ".system.disk_commands:df", "Disk usage of the nodes"),
                Lazy("prune", ".system.disk_commands:system", "Remove unused objects"),
                Lazy("info", ".system.info_command:info", "Summary of the cluster"),
                Lazy("top", ".top.top_commands:system_top", "Live resource usage of the nodes"),
                Lazy("events", ".system.event_commands:events", "Stream events of the cluster"),
            ),
        ),
        (
            "On a host itself",
            (
                Lazy(
                    "check",
                    "orchestrator.agent.diagnostics.system_check:check",
                    "Check whether this host can be a node",
                ),
            ),
        ),
    ),
    epilog=example("orc system df", "orc system prune"),
)
def system() -> None:
    """Manage the cluster as a whole: summary, disk usage, unused objects."""
