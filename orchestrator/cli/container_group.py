"""`orc container …`: Docker's names of the commands on containers."""

from __future__ import annotations

import click

from orchestrator.cli.groups import Lazy, OrcGroup, example

_CLI = "orchestrator.cli"


@click.group(
    cls=OrcGroup,
    sections=(
        (
            "Commands",
            (
                Lazy("ls", f"{_CLI}.ps:ps", "List the containers of all nodes"),
                Lazy("run", f"{_CLI}.run:run", "Run a program in a new container"),
                Lazy("create", f"{_CLI}.run:create", "Make a container without starting it"),
                Lazy("start", f"{_CLI}.containers:start", "Start containers"),
                Lazy("stop", f"{_CLI}.containers:stop", "Stop containers"),
                Lazy("restart", f"{_CLI}.containers:restart", "Stop and start containers"),
                Lazy("kill", f"{_CLI}.containers:kill", "Send containers a signal"),
                Lazy("pause", f"{_CLI}.containers:pause", "Freeze containers"),
                Lazy("unpause", f"{_CLI}.containers:unpause", "Let paused containers go on"),
                Lazy("rm", f"{_CLI}.containers:rm", "Remove containers"),
                Lazy("prune", f"{_CLI}.prune:containers", "Remove containers that do not run"),
                Lazy("wait", f"{_CLI}.containers:wait", "Wait for containers to end"),
                Lazy("update", f"{_CLI}.container_update:update", "Change limits in place"),
                Lazy("rename", f"{_CLI}.containers:rename", "Give a container another name"),
                Lazy("logs", f"{_CLI}.logs:container_logs", "What a container wrote"),
                Lazy("exec", f"{_CLI}.exec:exec_", "Run a program in a container"),
                Lazy("attach", f"{_CLI}.exec:attach", "Connect to a container's program"),
                Lazy("cp", f"{_CLI}.cp:cp", "Copy files into and out of a container"),
                Lazy("top", f"{_CLI}.top:top", "The processes of a container"),
                Lazy("stats", f"{_CLI}.stats:stats", "What containers use, live"),
                Lazy("inspect", f"{_CLI}.ps:inspect", "All that is known of containers"),
                Lazy("port", f"{_CLI}.ps:port", "Published ports of a container"),
                Lazy("diff", f"{_CLI}.image_files:diff", "What a container has changed"),
                Lazy("commit", f"{_CLI}.image_files:commit", "An image of a container"),
                Lazy("export", f"{_CLI}.image_files:export", "A container's files as a tar"),
            ),
        ),
    ),
    epilog=example("orc container ls -a", "orc container prune"),
)
def container() -> None:
    """Containers of the cluster; each of these is a command of its own, too."""
