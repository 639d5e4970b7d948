# SPDX-License-Identifier: Apache-2.0
"""A service's `deploy` section, converted, and the keys that fields of a spec come from."""

from __future__ import annotations

from orchestrator.compose.tree import ComposeError, Map, within
from orchestrator.model.formats.platforms import platform_constraint
from orchestrator.model.specs import FailureAction, ServiceMode, UpdateOrder, UpdatePolicy
from orchestrator.model.units import parse_duration
from orchestrator.model.validation.service_specs import InvalidSpec


def replicas_of(section: Map, mode: ServiceMode, at: str) -> int:
    """How many tasks a service has. Raises ComposeError."""
    deploy = section.section("deploy")
    own, deployed = section.text("scale"), deploy.text("replicas")
    if own and deployed and own != deployed:
        words = f"this is {own}, and deploy.replicas is {deployed}; leave one out"
        raise ComposeError(section.place_of("scale"), within(at, "scale"), words)
    if mode.is_global and (own or deployed):
        place = deploy.place_of("replicas") if deployed else section.place_of("scale")
        words = "a global service has a task on each node, and no replicas"
        raise ComposeError(place, at, words)
    return int(own or deployed or 1)


def policy_of(section: Map) -> UpdatePolicy:
    """An `update_config` or `rollback_config`."""
    usual = UpdatePolicy()
    action = {"pause": FailureAction.PAUSE, "continue": FailureAction.CONTINUE}
    action |= {"rollback": FailureAction.ROLLBACK}
    return UpdatePolicy(
        parallelism=int(section.text("parallelism", str(usual.parallelism))),
        delay=parse_duration(section.text("delay", "0")),
        order=UpdateOrder[section.text("order", "stop-first").upper().replace("-", "_")],
        monitor=parse_duration(section.text("monitor", f"{usual.monitor}s")),
        failure_action=action[section.text("failure_action", "pause")],
        max_failure_ratio=float(section.text("max_failure_ratio", "0")),
    )


def platform_rules(section: Map, at: str) -> tuple[str, ...]:
    """The constraints that a service's `platform` is. Raises ComposeError."""
    text = section.text("platform")
    if not text:
        return ()
    try:
        return (platform_constraint(text),)
    except ValueError as error:
        raise ComposeError(
            section.place_of("platform"), within(at, "platform"), str(error)
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
"""Field of a spec → the key of a service that it comes from, where the field's own name is not that
key. An error in the field is reported at the key's place in the file."""


def key_of_field(field: str) -> str:
    """The key of a service that a field of its spec, such as `task.container.env`, comes from."""
    prefix = field
    while prefix:
        if prefix in KEY_OF_FIELD:
            return KEY_OF_FIELD[prefix]
        prefix = prefix.rpartition(".")[0]
    return field.rpartition(".")[2]


def located(error: InvalidSpec, section: Map, at: str) -> ComposeError:
    """The validator's error, at the key that it is about."""
    key = key_of_field(error.field)
    if section.get(key) is None:
        return ComposeError(section.place, at, str(error))
    return ComposeError(section.place_of(key), within(at, key), str(error))
