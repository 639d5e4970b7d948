"""The root command: every command's name and summary as data, its module on demand."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from orchestrator.cli.app import lazy_imports

# Before click and protobuf are imported.
lazy_imports.install()

import click  # noqa: E402

from orchestrator import __version__  # noqa: E402
from orchestrator.cli.app.command_groups import Lazy, RootGroup, example  # noqa: E402
from orchestrator.cli.completion import completers  # noqa: E402

_SELDOM = 100_000
"""Objects that are made before garbage is looked for."""

SECTIONS = (
    (
        "Clusters and nodes",
        (
            Lazy("dev", "orchestrator.dev.devcommands:dev", "A real cluster on this one machine"),
            Lazy(
                "cluster",
                "orchestrator.cli.cluster.cluster_commands:cluster",
                "Set up and join a cluster",
            ),
            Lazy("node", "orchestrator.cli.cluster.node_commands:node", "Hosts of the cluster"),
            Lazy(
                "context",
                "orchestrator.cli.cluster.context_commands:context",
                "Which cluster orc speaks to",
            ),
        ),
    ),
    (
        "What runs",
        (
            Lazy(
                "service",
                "orchestrator.cli.service.service_commands:service",
                "Replicated and global services",
            ),
            Lazy(
                "job",
                "orchestrator.cli.service.job_commands:job",
                "Work that ends, at once or on a schedule",
            ),
            Lazy(
                "stack",
                "orchestrator.cli.stack.stack_commands:stack",
                "Services from compose files",
            ),
        ),
    ),
    (
        "Containers",
        (
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
                "ps",
                "orchestrator.cli.container.ps_commands:ps",
                "List the containers of all nodes",
            ),
            Lazy(
                "start", "orchestrator.cli.container.lifecycle_commands:start", "Start containers"
            ),
            Lazy("stop", "orchestrator.cli.container.lifecycle_commands:stop", "Stop containers"),
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
                "pause", "orchestrator.cli.container.lifecycle_commands:pause", "Freeze containers"
            ),
            Lazy(
                "unpause",
                "orchestrator.cli.container.lifecycle_commands:unpause",
                "Let paused containers go on",
            ),
            Lazy("rm", "orchestrator.cli.container.lifecycle_commands:rm", "Remove containers"),
            Lazy(
                "wait",
                "orchestrator.cli.container.lifecycle_commands:wait",
                "Wait for containers to end",
            ),
            Lazy(
                "update", "orchestrator.cli.container.run_commands:update", "Change limits in place"
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
                "top",
                "orchestrator.cli.top.top_commands:top",
                "The cluster live, or a container's processes",
            ),
            Lazy("stats", "orchestrator.cli.top.stats_command:stats", "What containers use, live"),
            Lazy(
                "inspect",
                "orchestrator.cli.system.inspect_command:inspect",
                "All that is known of a thing",
            ),
            Lazy(
                "port",
                "orchestrator.cli.container.ps_commands:port",
                "Published ports of a container",
            ),
            Lazy(
                "events",
                "orchestrator.cli.system.event_commands:events",
                "What happens in the cluster",
            ),
            Lazy(
                "container",
                "orchestrator.cli.app.management_commands:container",
                "Containers, one by one",
            ),
        ),
    ),
    (
        "Images, networks and volumes",
        (
            Lazy(
                "build",
                "orchestrator.cli.image.build_commands:build",
                "Build an image from a Dockerfile",
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
            Lazy("login", "orchestrator.cli.image.registry_commands:login", "Log in to a registry"),
            Lazy(
                "logout",
                "orchestrator.cli.image.registry_commands:logout",
                "Log out from a registry",
            ),
            Lazy(
                "images",
                "orchestrator.cli.image.image_commands:images",
                "List the images of all nodes",
            ),
            Lazy("image", "orchestrator.cli.app.management_commands:image", "Images, one by one"),
            Lazy(
                "builder",
                "orchestrator.cli.image.build_commands:builder",
                "What builds leave on the nodes",
            ),
            Lazy("tag", "orchestrator.cli.image.image_commands:tag", "Give an image another name"),
            Lazy("rmi", "orchestrator.cli.image.image_commands:rmi", "Remove images"),
            Lazy(
                "history", "orchestrator.cli.image.image_commands:history", "How an image was made"
            ),
            Lazy(
                "load",
                "orchestrator.cli.image.image_commands:load",
                "Load an image from an archive",
            ),
            Lazy(
                "save", "orchestrator.cli.image.archive_commands:save", "Save images as an archive"
            ),
            Lazy(
                "import",
                "orchestrator.cli.image.archive_commands:import_",
                "Make an image from a tar",
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
            Lazy(
                "diff",
                "orchestrator.cli.image.archive_commands:diff",
                "What a container has changed",
            ),
            Lazy(
                "network",
                "orchestrator.cli.network.network_commands:network",
                "Networks of the cluster",
            ),
            Lazy(
                "volume",
                "orchestrator.cli.storage.volume_commands:volume",
                "Data that outlives containers",
            ),
            Lazy(
                "secret",
                "orchestrator.cli.storage.secret_config_commands:secret",
                "Passwords and keys for containers",
            ),
            Lazy(
                "config",
                "orchestrator.cli.storage.secret_config_commands:config",
                "Files for containers",
            ),
        ),
    ),
    (
        "Daemons and the rest",
        (
            Lazy("manager", "orchestrator.manager.command:manager", "Run a manager (foreground)"),
            Lazy("agent", "orchestrator.agent.command:agent", "Run this node's agent (foreground)"),
            Lazy(
                "plan",
                "orchestrator.cli.service.plan_command:plan",
                "What a command would do, and nothing done",
            ),
            Lazy(
                "system",
                "orchestrator.cli.app.management_commands:system",
                "Disks, hosts, and what may go",
            ),
            Lazy("info", "orchestrator.cli.system.info_command:info", "The cluster in figures"),
            Lazy("audit", "orchestrator.cli.system.event_commands:audit", "Who changed what"),
            Lazy(
                "support-bundle",
                "orchestrator.cli.system.support_bundle:support_bundle",
                "What is needed to find a fault",
            ),
            Lazy(
                "dashboard",
                "orchestrator.cli.system.client_commands:dashboard",
                "The cluster's web page",
            ),
            Lazy(
                "version",
                "orchestrator.cli.system.client_commands:version",
                "Versions of orc and the manager",
            ),
            Lazy(
                "completion",
                "orchestrator.cli.system.client_commands:completion",
                "Completion for your shell",
            ),
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
    shell_complete=completers.contexts,
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
