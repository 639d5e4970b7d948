# SPDX-License-Identifier: Apache-2.0
"""The commands of `orc` as data: name, target and summary, in the sections of its help.

A target that begins with a dot is a module of the command line; the others are commands of the
daemons and of `orc dev`. A command's module is imported when the command is called.
"""

from __future__ import annotations

from orchestrator.cli.app.command_groups import Lazy

SECTIONS = (
    (
        "Clusters and nodes",
        (
            Lazy(
                "dev", "orchestrator.dev.devcommands:dev", "A development cluster on this machine"
            ),
            Lazy("cluster", ".cluster.cluster_commands:cluster", "Set up and join a cluster"),
            Lazy("node", ".cluster.node_commands:node", "Hosts of the cluster"),
            Lazy(
                "context", ".cluster.context_commands:context", "Select the cluster that orc calls"
            ),
            Lazy(
                "docker-api",
                "orchestrator.dockerapi.command:docker_api",
                "Serve Docker's Engine API in front of the cluster",
            ),
        ),
    ),
    (
        "Workloads",
        (
            Lazy("service", ".service.service_commands:service", "Replicated and global services"),
            Lazy(
                "job", ".service.job_commands:job", "Run-to-completion work, once or on a schedule"
            ),
            Lazy("stack", ".stack.stack_commands:stack", "Services from compose files"),
        ),
    ),
    (
        "Scheduling",
        (
            Lazy(
                "capacity", ".service.placement_commands:capacity", "How many more tasks would fit"
            ),
            Lazy(
                "rebalance", ".service.placement_commands:rebalance", "Even out the load of nodes"
            ),
            Lazy("queue", ".service.queue_commands:queue", "Queues by which jobs share the nodes"),
            Lazy("why", ".service.placement_commands:why", "Why a task is where it is, or nowhere"),
        ),
    ),
    (
        "Containers",
        (
            Lazy("run", ".container.run_commands:run", "Run a program in a new container"),
            Lazy(
                "create", ".container.run_commands:create", "Create a container without starting it"
            ),
            Lazy("ps", ".container.ps_commands:ps", "List the containers of all nodes"),
            Lazy("start", ".container.lifecycle_commands:start", "Start containers"),
            Lazy("stop", ".container.lifecycle_commands:stop", "Stop containers"),
            Lazy("restart", ".container.lifecycle_commands:restart", "Stop and start containers"),
            Lazy("kill", ".container.lifecycle_commands:kill", "Send containers a signal"),
            Lazy("pause", ".container.lifecycle_commands:pause", "Pause containers"),
            Lazy("unpause", ".container.lifecycle_commands:unpause", "Resume paused containers"),
            Lazy("rm", ".container.lifecycle_commands:rm", "Remove containers"),
            Lazy("wait", ".container.lifecycle_commands:wait", "Wait for containers to exit"),
            Lazy("update", ".container.run_commands:update", "Change limits of running containers"),
            Lazy("rename", ".container.lifecycle_commands:rename", "Rename a container"),
            Lazy("logs", ".service.log_commands:container_logs", "Show the logs of a container"),
            Lazy("exec", ".container.exec_commands:exec_", "Run a program in a container"),
            Lazy("attach", ".container.exec_commands:attach", "Connect to a container's program"),
            Lazy("cp", ".container.copy_command:cp", "Copy files into and out of a container"),
            Lazy(
                "top",
                ".top.top_commands:top",
                "Live view of the cluster, or a container's processes",
            ),
            Lazy("stats", ".top.stats_command:stats", "Live resource usage of containers"),
            Lazy("inspect", ".system.inspect_command:inspect", "Show details of any object"),
            Lazy("port", ".container.ps_commands:port", "List the published ports of a container"),
            Lazy("events", ".system.event_commands:events", "Stream events of the cluster"),
            Lazy(
                "orphan",
                ".container.orphan_commands:orphan",
                "Containers that a restored cluster does not know",
            ),
            Lazy("container", ".app.management_commands:container", "Manage containers"),
        ),
    ),
    (
        "Images, networks and volumes",
        (
            Lazy("build", ".image.build_commands:build", "Build an image from a Dockerfile"),
            Lazy("pull", ".image.registry_commands:pull", "Pull an image from a registry"),
            Lazy("push", ".image.registry_commands:push", "Push an image to a registry"),
            Lazy("login", ".image.registry_commands:login", "Log in to a registry"),
            Lazy("logout", ".image.registry_commands:logout", "Log out from a registry"),
            Lazy("images", ".image.image_commands:images", "List the images of all nodes"),
            Lazy("image", ".app.management_commands:image", "Manage images"),
            Lazy("builder", ".image.build_commands:builder", "Manage the nodes' build cache"),
            Lazy("tag", ".image.image_commands:tag", "Add a name to an image"),
            Lazy("rmi", ".image.image_commands:rmi", "Remove images"),
            Lazy("history", ".image.image_commands:history", "Show the history of an image"),
            Lazy("load", ".image.image_commands:load", "Load an image from an archive"),
            Lazy("save", ".image.archive_commands:save", "Save images as an archive"),
            Lazy("import", ".image.archive_commands:import_", "Create an image from a tar archive"),
            Lazy("commit", ".image.archive_commands:commit", "Create an image from a container"),
            Lazy(
                "export",
                ".image.archive_commands:export",
                "Export a container's files as a tar archive",
            ),
            Lazy("diff", ".image.archive_commands:diff", "List changed files of a container"),
            Lazy("network", ".network.network_commands:network", "Networks of the cluster"),
            Lazy("volume", ".storage.volume_commands:volume", "Data that outlives containers"),
            Lazy(
                "secret",
                ".storage.secret_config_commands:secret",
                "Passwords and keys for containers",
            ),
            Lazy("config", ".storage.secret_config_commands:config", "Files for containers"),
        ),
    ),
    (
        "Daemons and administration",
        (
            Lazy("manager", ".cluster.manager_commands:manager", "Run a manager; manage managers"),
            Lazy("agent", "orchestrator.agent.command:agent", "Run this node's agent (foreground)"),
            Lazy("plan", ".service.plan_command:plan", "Dry run: show what a command would do"),
            Lazy("system", ".app.management_commands:system", "Disk usage, cleanup, host checks"),
            Lazy("info", ".system.info_command:info", "Summary of the cluster"),
            Lazy("audit", ".system.event_commands:audit", "Audit trail: who changed what"),
            Lazy(
                "support-bundle",
                ".system.support_bundle:support_bundle",
                "Collect diagnostics into one archive",
            ),
            Lazy("dashboard", ".system.client_commands:dashboard", "Open the cluster's web page"),
            Lazy("version", ".system.client_commands:version", "Versions of orc and the manager"),
            Lazy(
                "completion",
                ".system.client_commands:completion",
                "Print the shell completion script",
            ),
        ),
    ),
)
