# SPDX-License-Identifier: Apache-2.0
"""Conversion of a service's `deploy` section, and locating errors of spec fields in the file."""

from __future__ import annotations

from orchestrator.compose.tree import ComposeError, Map, key_path
from orchestrator.model.formats.platforms import platform_constraint
from orchestrator.model.specs import FailureAction, ServiceMode, UpdateOrder, UpdatePolicy
from orchestrator.model.units import parse_duration
from orchestrator.model.validation.service_specs import InvalidSpec


def replicas_of(section: Map, mode: ServiceMode, at: str) -> int:
    """A service's number of replicas. Raises ComposeError."""
    deploy = section.section("deploy")
    own, deployed = section.text("scale"), deploy.text("replicas")
    if own and deployed and own != deployed:
        message = f"{own} conflicts with deploy.replicas: {deployed}; leave one out"
        raise ComposeError(section.place_of("scale"), key_path(at, "scale"), message)
    if mode.is_global and (own or deployed):
        place = deploy.place_of("replicas") if deployed else section.place_of("scale")
        message = "a global service runs one task per node and takes no replicas"
        raise ComposeError(place, at, message)
    return int(own or deployed or 1)


def policy_of(section: Map) -> UpdatePolicy:
    """The policy of an `update_config` or `rollback_config`."""
    default = UpdatePolicy()
    action = {"pause": FailureAction.PAUSE, "continue": FailureAction.CONTINUE}
    action |= {"rollback": FailureAction.ROLLBACK}
    return UpdatePolicy(
        parallelism=int(section.text("parallelism", str(default.parallelism))),
        delay=parse_duration(section.text("delay", "0")),
        order=UpdateOrder[section.text("order", "stop-first").upper().replace("-", "_")],
        monitor=parse_duration(section.text("monitor", f"{default.monitor}s")),
        failure_action=action[section.text("failure_action", "pause")],
        max_failure_ratio=float(section.text("max_failure_ratio", "0")),
    )


def platform_rules(section: Map, at: str) -> tuple[str, ...]:
    """The constraints of a service's `platform`. Raises ComposeError."""
    text = section.text("platform")
    if not text:
        return ()
    try:
        return (platform_constraint(text),)
    except ValueError as error:
        raise ComposeError(
            section.place_of("platform"), key_path(at, "platform"), str(error)
        ) from None


KEY_OF_FIELD = {
    "task.container.workdir": "working_dir",
    "task.container.mounts": "volumes",
    "task.container.env": "environment",
    "task.container.hosts": "extra_hosts",
    "task.container.dns_options": "dns_opt",
    "task.container.groups": "group_add",
    "task.container.userns": "userns_mode",
    "task.container.seccomp": "security_opt",
    "task.container.apparmor": "security_opt",
    "task.container.new_privileges": "security_opt",
    "task.container.open_stdin": "stdin_open",
    "task.container.health": "healthcheck",
    "task.container.memory_swap": "memswap_limit",
    "task.container.cpuset_cpus": "cpuset",
    "task.container.storage_size": "storage_opt",
    "task.container.stop_grace": "stop_grace_period",
    "task.networks": "networks",
    "task.ports": "ports",
    "task.shares": "cpu_shares",
    "task.limit": "deploy",
    "task.reservation": "deploy",
    "task.generic_resources": "deploy",
    "job": "x-orc",
    "affinities": "x-orc",
    "on_disconnect": "x-orc",
    "disruption": "x-orc",
    "priority": "x-orc",
    "autoscale": "x-orc",
    "strategy": "x-orc",
    "max_per_node": "deploy",
    "endpoint_mode": "deploy",
    "task.restart": "deploy",
    "update": "deploy",
    "rollback": "deploy",
    "constraints": "deploy",
    "mode": "deploy",
    "replicas": "deploy",
    "spread": "deploy",
    "labels": "deploy",
}
"""Field of a spec → key of a service, where their names differ. Errors of the field are reported at
the key's position in the file."""


def key_of_field(field: str) -> str:
    """The key of a service for a field of its spec, such as `task.container.env`."""
    prefix = field
    while prefix:
        if prefix in KEY_OF_FIELD:
            return KEY_OF_FIELD[prefix]
        prefix = prefix.rpartition(".")[0]
    return field.rpartition(".")[2]


def located(error: InvalidSpec, section: Map, at: str) -> ComposeError:
    """The validator's error with the position of its key in the file."""
    key = key_of_field(error.field)
    if section.get(key) is None:
        return ComposeError(section.place, at, str(error))
    return ComposeError(section.place_of(key), key_path(at, key), str(error))
