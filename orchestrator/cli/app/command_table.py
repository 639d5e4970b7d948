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
            Lazy("dev", "orchestrator.dev.devcommands:dev", "A real cluster on this one machine"),
            Lazy("cluster", ".cluster.cluster_commands:cluster", "Set up and join a cluster"),
            Lazy("node", ".cluster.node_commands:node", "Hosts of the cluster"),
            Lazy("context", ".cluster.context_commands:context", "Which cluster orc speaks to"),
        ),
    ),
    (
        "What runs",
        (
            Lazy("service", ".service.service_commands:service", "Replicated and global services"),
            Lazy("job", ".service.job_commands:job", "Work that ends, at once or on a schedule"),
            Lazy("stack", ".stack.stack_commands:stack", "Services from compose files"),
        ),
    ),
    (
        "Containers",
        (
            Lazy("run", ".container.run_commands:run", "Run a program in a new container"),
            Lazy(
                "create", ".container.run_commands:create", "Make a container without starting it"
            ),
            Lazy("ps", ".container.ps_commands:ps", "List the containers of all nodes"),
            Lazy("start", ".container.lifecycle_commands:start", "Start containers"),
            Lazy("stop", ".container.lifecycle_commands:stop", "Stop containers"),
            Lazy("restart", ".container.lifecycle_commands:restart", "Stop and start containers"),
            Lazy("kill", ".container.lifecycle_commands:kill", "Send containers a signal"),
            Lazy("pause", ".container.lifecycle_commands:pause", "Freeze containers"),
            Lazy("unpause", ".container.lifecycle_commands:unpause", "Let paused containers go on"),
            Lazy("rm", ".container.lifecycle_commands:rm", "Remove containers"),
            Lazy("wait", ".container.lifecycle_commands:wait", "Wait for containers to end"),
            Lazy("update", ".container.run_commands:update", "Change limits in place"),
            Lazy("rename", ".container.lifecycle_commands:rename", "Give a container another name"),
            Lazy("logs", ".service.log_commands:container_logs", "What a container wrote"),
            Lazy("exec", ".container.exec_commands:exec_", "Run a program in a container"),
            Lazy("attach", ".container.exec_commands:attach", "Connect to a container's program"),
            Lazy("cp", ".container.copy_command:cp", "Copy files into and out of a container"),
            Lazy("top", ".top.top_commands:top", "The cluster live, or a container's processes"),
            Lazy("stats", ".top.stats_command:stats", "What containers use, live"),
            Lazy("inspect", ".system.inspect_command:inspect", "All that is known of a thing"),
            Lazy("port", ".container.ps_commands:port", "Published ports of a container"),
            Lazy("events", ".system.event_commands:events", "What happens in the cluster"),
            Lazy("container", ".app.management_commands:container", "Containers, one by one"),
        ),
    ),
    (
        "Images, networks and volumes",
        (
            Lazy("build", ".image.build_commands:build", "Build an image from a Dockerfile"),
            Lazy("pull", ".image.registry_commands:pull", "Get an image from a registry"),
            Lazy("push", ".image.registry_commands:push", "Put an image into a registry"),
            Lazy("login", ".image.registry_commands:login", "Log in to a registry"),
            Lazy("logout", ".image.registry_commands:logout", "Log out from a registry"),
            Lazy("images", ".image.image_commands:images", "List the images of all nodes"),
            Lazy("image", ".app.management_commands:image", "Images, one by one"),
            Lazy("builder", ".image.build_commands:builder", "What builds leave on the nodes"),
            Lazy("tag", ".image.image_commands:tag", "Give an image another name"),
            Lazy("rmi", ".image.image_commands:rmi", "Remove images"),
            Lazy("history", ".image.image_commands:history", "How an image was made"),
            Lazy("load", ".image.image_commands:load", "Load an image from an archive"),
            Lazy("save", ".image.archive_commands:save", "Save images as an archive"),
            Lazy("import", ".image.archive_commands:import_", "Make an image from a tar"),
            Lazy("commit", ".image.archive_commands:commit", "An image of a container"),
            Lazy("export", ".image.archive_commands:export", "A container's files as a tar"),
            Lazy("diff", ".image.archive_commands:diff", "What a container has changed"),
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
        "Daemons and the rest",
        (
            Lazy("manager", "orchestrator.manager.command:manager", "Run a manager (foreground)"),
            Lazy("agent", "orchestrator.agent.command:agent", "Run this node's agent (foreground)"),
            Lazy("plan", ".service.plan_command:plan", "What a command would do, and nothing done"),
            Lazy("system", ".app.management_commands:system", "Disks, hosts, and what may go"),
            Lazy("info", ".system.info_command:info", "The cluster in figures"),
            Lazy("audit", ".system.event_commands:audit", "Who changed what"),
            Lazy(
                "support-bundle",
                ".system.support_bundle:support_bundle",
                "What is needed to find a fault",
            ),
            Lazy("dashboard", ".system.client_commands:dashboard", "The cluster's web page"),
            Lazy("version", ".system.client_commands:version", "Versions of orc and the manager"),
            Lazy("completion", ".system.client_commands:completion", "Completion for your shell"),
        ),
    ),
)
