"""`orc container …`: Docker's names of the commands on containers."""

from __future__ import annotations

import click

from orchestrator.cli.groups import Lazy, OrcGroup, example


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("ls", "orchestrator.cli.ps:ps", "List the containers of all nodes"),
                Lazy("run", "orchestrator.cli.run:run", "Run a program in a new container"),
                Lazy(
                    "create", "orchestrator.cli.run:create", "Make a container without starting it"
                ),
                Lazy("start", "orchestrator.cli.containers:start", "Start containers"),
                Lazy("stop", "orchestrator.cli.containers:stop", "Stop containers"),
                Lazy("restart", "orchestrator.cli.containers:restart", "Stop and start containers"),
                Lazy("kill", "orchestrator.cli.containers:kill", "Send containers a signal"),
                Lazy("pause", "orchestrator.cli.containers:pause", "Freeze containers"),
                Lazy(
                    "unpause", "orchestrator.cli.containers:unpause", "Let paused containers go on"
                ),
                Lazy("rm", "orchestrator.cli.containers:rm", "Remove containers"),
                Lazy(
                    "prune",
                    "orchestrator.cli.prune:containers",
                    "Remove containers that do not run",
                ),
                Lazy("wait", "orchestrator.cli.containers:wait", "Wait for containers to end"),
                Lazy(
                    "update", "orchestrator.cli.container_update:update", "Change limits in place"
                ),
                Lazy(
                    "rename", "orchestrator.cli.containers:rename", "Give a container another name"
                ),
                Lazy("logs", "orchestrator.cli.logs:container_logs", "What a container wrote"),
                Lazy("exec", "orchestrator.cli.exec:exec_", "Run a program in a container"),
                Lazy("attach", "orchestrator.cli.exec:attach", "Connect to a container's program"),
                Lazy("cp", "orchestrator.cli.cp:cp", "Copy files into and out of a container"),
                Lazy("top", "orchestrator.cli.top:top", "The processes of a container"),
                Lazy("stats", "orchestrator.cli.stats:stats", "What containers use, live"),
                Lazy("inspect", "orchestrator.cli.ps:inspect", "All that is known of containers"),
                Lazy("port", "orchestrator.cli.ps:port", "Published ports of a container"),
                Lazy("diff", "orchestrator.cli.image_files:diff", "What a container has changed"),
                Lazy("commit", "orchestrator.cli.image_files:commit", "An image of a container"),
                Lazy(
                    "export", "orchestrator.cli.image_files:export", "A container's files as a tar"
                ),
            ),
        ),
    ),
    epilog=example("orc container ls -a", "orc container prune"),
)
def container() -> None:
    """Containers of the cluster; each of these is a command of its own, too."""
