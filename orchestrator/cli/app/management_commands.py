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
                    "Make a container without starting it",
                ),
                Lazy("start", ".container.lifecycle_commands:start", "Start containers"),
                Lazy("stop", ".container.lifecycle_commands:stop", "Stop containers"),
                Lazy(
                    "restart", ".container.lifecycle_commands:restart", "Stop and start containers"
                ),
                Lazy("kill", ".container.lifecycle_commands:kill", "Send containers a signal"),
                Lazy("pause", ".container.lifecycle_commands:pause", "Freeze containers"),
                Lazy(
                    "unpause",
                    ".container.lifecycle_commands:unpause",
                    "Let paused containers go on",
                ),
                Lazy("rm", ".container.lifecycle_commands:rm", "Remove containers"),
                Lazy(
                    "prune", ".system.disk_commands:containers", "Remove containers that do not run"
                ),
                Lazy("wait", ".container.lifecycle_commands:wait", "Wait for containers to end"),
                Lazy("update", ".container.run_commands:update", "Change limits in place"),
                Lazy(
                    "rename",
                    ".container.lifecycle_commands:rename",
                    "Give a container another name",
                ),
                Lazy("logs", ".service.log_commands:container_logs", "What a container wrote"),
                Lazy("exec", ".container.exec_commands:exec_", "Run a program in a container"),
                Lazy(
                    "attach", ".container.exec_commands:attach", "Connect to a container's program"
                ),
                Lazy("cp", ".container.copy_command:cp", "Copy files into and out of a container"),
                Lazy("top", ".top.top_commands:top", "The processes of a container"),
                Lazy("stats", ".top.stats_command:stats", "What containers use, live"),
                Lazy(
                    "inspect", ".container.ps_commands:inspect", "All that is known of containers"
                ),
                Lazy("port", ".container.ps_commands:port", "Published ports of a container"),
                Lazy("diff", ".image.archive_commands:diff", "What a container has changed"),
                Lazy("commit", ".image.archive_commands:commit", "An image of a container"),
                Lazy("export", ".image.archive_commands:export", "A container's files as a tar"),
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
                Lazy("ls", ".image.image_commands:images", "List the images of all nodes"),
                Lazy("inspect", ".image.image_commands:inspect", "All that is known of an image"),
                Lazy("history", ".image.image_commands:history", "How an image was made"),
                Lazy("tag", ".image.image_commands:tag", "Give an image another name"),
                Lazy("rm", ".image.image_commands:rmi", "Remove images"),
                Lazy("prune", ".image.image_commands:prune", "Remove images that nothing needs"),
                Lazy("build", ".image.build_commands:build", "Build an image from a Dockerfile"),
                Lazy("load", ".image.image_commands:load", "Load an image from an archive"),
                Lazy("save", ".image.archive_commands:save", "Save images as an archive"),
                Lazy("import", ".image.archive_commands:import_", "Make an image from a tar"),
                Lazy("pull", ".image.registry_commands:pull", "Get an image from a registry"),
                Lazy("push", ".image.registry_commands:push", "Put an image into a registry"),
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
                Lazy("df", ".system.disk_commands:df", "What is on the nodes' disks"),
                Lazy("prune", ".system.disk_commands:system", "Remove what nobody needs"),
                Lazy("info", ".system.info_command:info", "The cluster in figures"),
                Lazy("top", ".top.top_commands:system_top", "What the nodes' containers use, live"),
                Lazy("events", ".system.event_commands:events", "What happens in the cluster"),
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
