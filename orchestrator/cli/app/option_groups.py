# SPDX-License-Identifier: Apache-2.0
"""Named groups of options in long help texts, as data: each option's name is here once, for all
commands that have it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import click

LONG = 25
"""A help text with more options than this lists them in groups."""
OTHER = "Other options"
_GENERAL = "General"

GROUPS: dict[str, tuple[str, ...]] = {
    _GENERAL: (
        *("name", "image", "arguments", "entrypoint", "rootfs", "mode", "replicas", "everywhere"),
        *("env", "env_file", "label", "label_file", "container_label", "annotation", "user"),
        *("group", "workdir", "hostname", "domainname", "init", "interactive", "tty", "attach"),
        *("auto_remove", "removed", "force"),
    ),
    "Build": (
        *("tag", "dockerfile", "build_arg", "target", "no_cache", "cache_from", "secret"),
        *("image_format", "add_host"),
    ),
    "Output and waiting": (
        *("detach", "quiet", "timeout", "monitor", "progress", "output", "push", "iidfile"),
        *("cidfile", "sig_proxy", "keys", "context_name"),
        *("planned_form", "_click_default_help"),
    ),
    "Image": ("pull", "platform", "no_resolve_image", "with_registry_auth"),
    "Placement": (
        *("node", "constraint", "placement_pref", "affinity", "anti_affinity", "depends_on"),
        *("replicas_max_per_node", "strategy", "on_disconnect", "priority", "generic_resource"),
        *("min_available", "max_unavailable"),
    ),
    "Autoscaling": (
        *("autoscale_min", "autoscale_max", "autoscale_cpu", "autoscale_memory"),
        *("autoscale_query", "autoscale_per_replica"),
        *("autoscale_up_window", "autoscale_down_window"),
    ),
    "Resources": (
        *("reserve_cpu", "reserve_memory", "limit_cpu", "limit_memory", "memory_swap"),
        *("memory", "cpus", "cpu_shares", "cpu_quota", "cpu_period", "cpuset_cpus", "pids_limit"),
        *("gpus", "shm_size", "ulimit", "ulimits"),
        *("oom_score_adj", "storage_opt"),
    ),
    "Network": (
        *("publish", "publish_all", "expose", "network", "network_alias", "endpoint_mode", "ip"),
        *("ip6", "mac_address", "dns", "dns_search", "dns_option", "host"),
    ),
    "Volumes and files": (
        *("volume", "mount", "volumes_from", "volume_driver", "tmpfs", "read_only"),
        *("secrets", "configs", "secret", "config"),
    ),
    "Health checks": (
        *("health_cmd", "health_http", "health_tcp", "health_grpc", "health_interval"),
        *("health_timeout", "health_retries", "health_start_period", "health_start_interval"),
        "no_healthcheck",
    ),
    "Restart and stop": (
        *("restart", "restart_condition", "restart_delay", "restart_max_attempts"),
        *("restart_window", "stop_signal", "stop_grace_period", "stop_timeout"),
    ),
    "Updates": (
        *("update_parallelism", "update_delay", "update_order", "update_monitor"),
        *("update_max_failure_ratio", "update_failure_action", "update_canary"),
    ),
    "Rollbacks": (
        *("rollback_parallelism", "rollback_delay", "rollback_order", "rollback_monitor"),
        *("rollback_max_failure_ratio", "rollback_failure_action"),
    ),
    "Jobs": (
        *("max_concurrent", "retries", "deadline", "schedule", "time_zone", "overlap", "missed"),
        *("history", "queue", "all_or_nothing"),
    ),
    "Logging": ("log_driver", "log_opt"),
    "Isolation": (
        *("privileged", "cap_add", "cap_drop", "security_opt", "device", "sysctl", "userns"),
        *("pid", "ipc", "uts", "cgroupns", "cgroup_parent", "runtime"),
    ),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_ORDER = {
    name: (at, index)
    for at, names in enumerate(GROUPS.values())
    for index, name in enumerate(names)
}

T = TypeVar("T", bound=click.Parameter)


def _stem(name: str) -> str:
    """The name in GROUPS: `env` of `env_add` and `env_rm`, `cap_add` of `cap_add_rm`."""
    for end in ("", "_add", "_rm"):
        if name.endswith(end) and (stem := name.removesuffix(end)) in _GROUP_OF:
            return stem
    return name


def group_of(option: click.Parameter) -> str:
    """The title under which a long help lists an option."""
    return _GROUP_OF.get(_stem(option.name or ""), OTHER)


def grouped(options: Iterable[T]) -> Iterator[tuple[str, list[T]]]:
    """The groups of these options, in the order of GROUPS, ungrouped ones last."""
    found: dict[str, list[T]] = {}
    last = (len(GROUPS), 0)
    for option in sorted(options, key=lambda each: _ORDER.get(_stem(each.name or ""), last)):
        found.setdefault(group_of(option), []).append(option)
    yield from found.items()


def is_long(options: Iterable[click.Parameter]) -> bool:
    """Whether a help text with these options has groups."""
    return sum(isinstance(each, click.Option) for each in options) > LONG


class GroupedCommand(click.Command):
    """A command whose help lists many options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        params = [each for each in self.get_params(ctx) if isinstance(each, click.Option)]
        if not is_long(params):
            super().format_options(ctx, formatter)
            return
        for title, options in grouped(p for p in params if p.get_help_record(ctx)):
            with formatter.section(title):
                formatter.write_dl([record for o in options if (record := o.get_help_record(ctx))])
