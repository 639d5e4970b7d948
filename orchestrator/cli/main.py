"""The root command: every command's name and summary as data, its module on demand."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from orchestrator.cli import lazyimport

# Before click and protobuf are imported.
lazyimport.install()

import click  # noqa: E402

from orchestrator import __version__  # noqa: E402
from orchestrator.cli import completion  # noqa: E402
from orchestrator.cli.groups import Lazy, RootGroup, example  # noqa: E402

_SELDOM = 100_000
"""Objects that are made before garbage is looked for."""

SECTIONS = (
    (
        "Clusters and nodes",
        (
            Lazy("dev", "orchestrator.dev.command:dev", "A real cluster on this one machine"),
            Lazy("cluster", "orchestrator.cli.cluster:cluster", "Set up and join a cluster"),
            Lazy("node", "orchestrator.cli.node:node", "Hosts of the cluster"),
            Lazy("context", "orchestrator.cli.contexts:context", "Which cluster orc speaks to"),
        ),
    ),
    (
        "What runs",
        (
            Lazy("service", "orchestrator.cli.service:service", "Replicated and global services"),
            Lazy("job", "orchestrator.cli.job:job", "Work that ends, at once or on a schedule"),
            Lazy("stack", "orchestrator.cli.stack:stack", "Services from compose files"),
        ),
    ),
    (
        "Containers",
        (
            Lazy("run", "orchestrator.cli.run:run", "Run a program in a new container"),
            Lazy("create", "orchestrator.cli.run:create", "Make a container without starting it"),
            Lazy("ps", "orchestrator.cli.ps:ps", "List the containers of all nodes"),
            Lazy("start", "orchestrator.cli.containers:start", "Start containers"),
            Lazy("stop", "orchestrator.cli.containers:stop", "Stop containers"),
            Lazy("restart", "orchestrator.cli.containers:restart", "Stop and start containers"),
            Lazy("kill", "orchestrator.cli.containers:kill", "Send containers a signal"),
            Lazy("pause", "orchestrator.cli.containers:pause", "Freeze containers"),
            Lazy("unpause", "orchestrator.cli.containers:unpause", "Let paused containers go on"),
            Lazy("rm", "orchestrator.cli.containers:rm", "Remove containers"),
            Lazy("wait", "orchestrator.cli.containers:wait", "Wait for containers to end"),
            Lazy("update", "orchestrator.cli.container_update:update", "Change limits in place"),
            Lazy("rename", "orchestrator.cli.containers:rename", "Give a container another name"),
            Lazy("logs", "orchestrator.cli.logs:container_logs", "What a container wrote"),
            Lazy("exec", "orchestrator.cli.exec:exec_", "Run a program in a container"),
            Lazy("attach", "orchestrator.cli.exec:attach", "Connect to a container's program"),
            Lazy("cp", "orchestrator.cli.cp:cp", "Copy files into and out of a container"),
            Lazy("top", "orchestrator.cli.top:top", "The cluster live, or a container's processes"),
            Lazy("stats", "orchestrator.cli.stats:stats", "What containers use, live"),
            Lazy("inspect", "orchestrator.cli.inspect:inspect", "All that is known of a thing"),
            Lazy("port", "orchestrator.cli.ps:port", "Published ports of a container"),
            Lazy("events", "orchestrator.cli.events:events", "What happens in the cluster"),
            Lazy(
                "container", "orchestrator.cli.container_group:container", "Containers, one by one"
            ),
        ),
    ),
    (
        "Images, networks and volumes",
        (
            Lazy("build", "orchestrator.cli.build:build", "Build an image from a Dockerfile"),
            Lazy("pull", "orchestrator.cli.image_registry:pull", "Get an image from a registry"),
            Lazy("push", "orchestrator.cli.image_registry:push", "Put an image into a registry"),
            Lazy("login", "orchestrator.cli.image_registry:login", "Log in to a registry"),
            Lazy("logout", "orchestrator.cli.image_registry:logout", "Log out from a registry"),
            Lazy("images", "orchestrator.cli.image:images", "List the images of all nodes"),
            Lazy("image", "orchestrator.cli.image_group:image", "Images, one by one"),
            Lazy("builder", "orchestrator.cli.build:builder", "What builds leave on the nodes"),
            Lazy("tag", "orchestrator.cli.image_names:tag", "Give an image another name"),
            Lazy("rmi", "orchestrator.cli.image_names:rmi", "Remove images"),
            Lazy("history", "orchestrator.cli.image_names:history", "How an image was made"),
            Lazy("load", "orchestrator.cli.image:load", "Load an image from an archive"),
            Lazy("save", "orchestrator.cli.image_files:save", "Save images as an archive"),
            Lazy("import", "orchestrator.cli.image_files:import_", "Make an image from a tar"),
            Lazy("commit", "orchestrator.cli.image_files:commit", "An image of a container"),
            Lazy("export", "orchestrator.cli.image_files:export", "A container's files as a tar"),
            Lazy("diff", "orchestrator.cli.image_files:diff", "What a container has changed"),
            Lazy("network", "orchestrator.cli.network:network", "Networks of the cluster"),
            Lazy("volume", "orchestrator.cli.volume:volume", "Data that outlives containers"),
            Lazy("secret", "orchestrator.cli.document:secret", "Passwords and keys for containers"),
            Lazy("config", "orchestrator.cli.document:config", "Files for containers"),
        ),
    ),
    (
        "Daemons and the rest",
        (
            Lazy("manager", "orchestrator.manager.command:manager", "Run a manager (foreground)"),
            Lazy("agent", "orchestrator.agent.command:agent", "Run this node's agent (foreground)"),
            Lazy("plan", "orchestrator.cli.plan:plan", "What a command would do, and nothing done"),
            Lazy("system", "orchestrator.cli.system_group:system", "Disks, hosts, and what may go"),
            Lazy("info", "orchestrator.cli.info:info", "The cluster in figures"),
            Lazy("audit", "orchestrator.cli.audit:audit", "Who changed what"),
            Lazy(
                "support-bundle",
                "orchestrator.cli.support_bundle:support_bundle",
                "What is needed to find a fault",
            ),
            Lazy("dashboard", "orchestrator.cli.dashboard:dashboard", "The cluster's web page"),
            Lazy("version", "orchestrator.cli.system:version", "Versions of orc and the manager"),
            Lazy("completion", "orchestrator.cli.system:completion", "Completion for your shell"),
        ),
    ),
)


@click.group(
    cls=RootGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=example("orc dev up", "orc service create --name web --replicas 3 -p 8080:80 hello:1"),
)
@click.option(
    "--context",
    "-c",
    "context_name",
    metavar="NAME",
    shell_complete=completion.contexts,
    help="The cluster to speak to.",
)
@click.version_option(__version__, "--version", "-v", prog_name="orc", message="orc %(version)s")
def orc(context_name: str | None) -> None:
    """Orc runs containers on many hosts as one: services with replicas that are kept alive, every
    container with an address that all hosts reach."""


_ITS_OWN_END = ("orchestrator.agent", "orchestrator.manager")
"""Packages of daemons, which end in their own time."""


def main() -> NoReturn:
    """The entry point of the `orc` command.

    Half of a short command's time went into looking for garbage while modules are imported, and
    into taking those apart at the end. So garbage is looked for seldom, and once all is said the
    process ends at once.
    """
    gc.set_threshold(_SELDOM)
    try:
        orc.main()
    except SystemExit as end:
        status = end.code
    if not any(name in sys.modules for name in _ITS_OWN_END):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status if isinstance(status, int) else 0)
    sys.exit(status)


if __name__ == "__main__":
    main()
