# SPDX-License-Identifier: Apache-2.0
"""Validation of services and tasks. Pure; the CLI calls it before it sends, the manager before it
stores.

Only errors that do not depend on the cluster are found here. Whether a name is taken, a network
exists or a node has the capacity is for the manager and its scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import isfinite

from orchestrator.model.bounds import MAX_REPLICAS as MAX_REPLICAS
from orchestrator.model.dependencies import check_dependencies
from orchestrator.model.documents import check_references
from orchestrator.model.formats import log_options
from orchestrator.model.formats.generic_resources import check_generic
from orchestrator.model.formats.task_templates import with_examples
from orchestrator.model.hooks import check_hooks
from orchestrator.model.names import check_hostname, check_name, parse_image
from orchestrator.model.networks import check_attachments
from orchestrator.model.placement import Disconnect, check_disconnect
from orchestrator.model.scheduling.affinities import Affinity, check_affinities
from orchestrator.model.scheduling.autoscaling import check_autoscale
from orchestrator.model.scheduling.constraints import check_agreement, check_node_attribute
from orchestrator.model.scheduling.disruptions import DisruptionBudget, check_budget, check_priority
from orchestrator.model.signals import signal_number
from orchestrator.model.specs import (
    ContainerSpec,
    FailureAction,
    PortSpec,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from orchestrator.model.units import format_memory
from orchestrator.model.validation import confinement
from orchestrator.model.validation.health_checks import check_health
from orchestrator.model.validation.job_specs import job_faults
from orchestrator.model.validation.mount_specs import check_mounts
from orchestrator.model.validation.shared_namespaces import (
    OF_CONTAINER,
    check_sharing,
    shared_kinds,
)

_PID = ("", "host", "private")
_IPC = ("", "host", "private", "shareable")

MIN_MEMORY = 6 << 20
"""Bytes; below this a container cannot start (Docker's limit)."""

MIN_SHARES = 2
MAX_SHARES = 262144
"""The kernel's range of a CPU weight (`cpu.shares`, kernel/sched/sched.h)."""

MIN_LIMIT_SHARES = 11
"""The minimum CPU limit: the kernel accepts no quota below 1 ms in 100 ms."""

LONGEST = 10 * 365 * 86400.0
"""Maximum seconds of any duration that a user may set."""


class InvalidSpec(ValueError):
    """An invalid spec. `str()` is one line for the user; `field` is where the error is."""

    def __init__(self, field: str, words: str) -> None:
        super().__init__(words)
        self.field = field
        """Path in the spec, such as `task.limit.memory`."""


def validate_service(spec: ServiceSpec) -> None:
    """Raise InvalidSpec for the first invalid field of `spec`."""
    _guard("name", check_name, spec.name, "service name")
    _labels("labels", spec.labels)
    count = "completions" if spec.mode.is_job else "replicas"
    if spec.replicas < 0:
        raise InvalidSpec("replicas", f"{count} {spec.replicas} is negative; 0 is the least")
    replicated = (ServiceMode.REPLICATED, ServiceMode.REPLICATED_JOB)
    if spec.replicas > MAX_REPLICAS and spec.mode in replicated:
        raise InvalidSpec("replicas", f"{count} {spec.replicas} is over {MAX_REPLICAS}, the most")
    try:
        container = with_examples(spec.task.container)
    except ValueError as error:
        raise InvalidSpec("task.container", str(error)) from None
    validate_task(replace(spec.task, container=container))
    _policy("update", spec.update)
    _policy("rollback", spec.rollback)
    for field, words in job_faults(spec):
        raise InvalidSpec(field, words)
    validate_constraints(spec.constraints, spec.affinities)
    _not_negative("max_per_node", spec.max_per_node, "replicas max per node")
    for key in spec.spread:
        _guard("spread", check_node_attribute, key, f"placement preference spread={key}")
    _guard("on_disconnect", check_disconnect, spec.on_disconnect)
    if spec.mode.is_job and spec.on_disconnect != Disconnect():
        raise InvalidSpec(
            "on_disconnect", "on-disconnect is for services that run on, not for jobs"
        )
    _guard("disruption", check_budget, spec.disruption)
    if spec.mode is not ServiceMode.REPLICATED and spec.disruption != DisruptionBudget():
        raise InvalidSpec(
            "disruption", "min available and max unavailable are for services with replicas"
        )
    validate_priority(spec.priority)
    _guard("autoscale", check_autoscale, spec.autoscale)
    if spec.mode is not ServiceMode.REPLICATED and spec.autoscale.enabled:
        raise InvalidSpec("autoscale", "only services with replicas are autoscaled")
    _guard("depends_on", check_dependencies, spec.name, spec.depends_on)


def validate_priority(priority: int) -> None:
    """Raise InvalidSpec for a priority out of range."""
    _guard("priority", check_priority, priority)


def validate_tasks_of_service(spec: ContainerSpec) -> None:
    """Raise InvalidSpec for fields that only standalone containers may have: another container's
    namespaces."""
    for kind in shared_kinds(spec):
        raise InvalidSpec(
            f"task.container.{kind}",
            f"{kind} {getattr(spec, kind)!r} is not supported for a service: its tasks may be "
            "on any node; run both programs in one container, or this one by "
            f"'orc run --{kind} container:NAME'",
        )


def validate_task(spec: TaskSpec) -> None:
    """Raise InvalidSpec for the first invalid field of a task's spec; paths begin with `task.`."""
    _container(spec.container)
    validate_resources(spec)
    _ports(spec.ports)
    _restart(spec.restart)
    _guard("task.container.health", check_health, spec)
    _guard("task.networks", check_attachments, spec)
    _guard("task.generic_resources", check_generic, spec.generic_resources)


def validate_constraints(constraints: Iterable[str], affinities: Iterable[Affinity]) -> None:
    """Raise InvalidSpec for the first placement rule that cannot be parsed, or that contradicts
    others so that no node can satisfy all."""
    _guard("affinities", check_affinities, affinities)
    insisted = [
        each.rule
        for each in affinities
        if each.hard and not each.anti and not each.parsed.of_services
    ]
    _guard("constraints", check_agreement, (*constraints, *insisted))


def known_signal(text: str) -> bool:
    """Whether `text` names a signal: `SIGTERM`, `TERM`, `15`, `RTMIN+3`."""
    try:
        signal_number(text)
    except ValueError:
        return False
    return True


def _container(spec: ContainerSpec) -> None:
    where = "task.container"
    _root(spec)
    for entry in spec.env:
        key, equals, _ = entry.partition("=")
        if not equals or not key:
            raise InvalidSpec(f"{where}.env", f"env {entry!r} is not of the form KEY=value")
    for name in ("command", "entrypoint", "env"):
        if any("\0" in text for text in getattr(spec, name)):
            raise InvalidSpec(f"{where}.{name}", f"{name} contains a NUL character")
    _labels(f"{where}.labels", spec.labels)
    _guard(f"{where}.annotations", check_labels, spec.annotations, "annotation")
    try:
        check_mounts(spec)
    except ValueError as error:
        raise InvalidSpec(f"{where}.mounts", str(error)) from None
    targets = [mount.target for mount in spec.mounts]
    _guard(f"{where}.secrets", check_references, spec, targets)
    if spec.workdir and (not spec.workdir.startswith("/") or "\0" in spec.workdir):
        raise InvalidSpec(
            f"{where}.workdir", f"workdir {spec.workdir!r} is not an absolute path; begin with '/'"
        )
    if re.search(r"\s|\0", spec.user) or spec.user.count(":") > 1:
        raise InvalidSpec(
            f"{where}.user", f"user {spec.user!r} is not of the form USER[:GROUP], names or ids"
        )
    if spec.hostname:
        _guard(f"{where}.hostname", check_hostname, spec.hostname)
    if spec.stop_signal and not known_signal(spec.stop_signal):
        raise InvalidSpec(
            f"{where}.stop_signal",
            f"stop signal {spec.stop_signal!r} is unknown; write such as SIGTERM or SIGINT",
        )
    _duration(f"{where}.stop_grace", spec.stop_grace, "stop grace period")
    _guard(f"{where}.post_start", check_hooks, spec.post_start)
    _guard(f"{where}.pre_stop", check_hooks, spec.pre_stop)
    if spec.pids_limit < -1:
        raise InvalidSpec(
            f"{where}.pids_limit", f"pids limit {spec.pids_limit} is negative; -1 is no limit"
        )
    _guard(f"{where}.logging", log_options.check, spec.logging)
    _names(spec)
    _confinement(spec)


def _root(spec: ContainerSpec) -> None:
    if spec.rootfs not in ("", "host"):
        raise InvalidSpec(
            "task.container.rootfs", f"rootfs {spec.rootfs!r} is unknown; only `host` is there"
        )
    if not spec.rootfs:
        _guard("task.container.image", _image, spec.image)
    elif spec.image:
        raise InvalidSpec(
            "task.container.image", "with rootfs host there is no image; leave one of both out"
        )
    elif not spec.entrypoint and not spec.command:
        raise InvalidSpec("task.container.command", "with rootfs host a command must be given")
    elif spec.userns == "private":
        raise InvalidSpec(
            "task.container.userns",
            "with rootfs host the files are the host's users'; leave out userns private",
        )


def _names(spec: ContainerSpec) -> None:
    """Its hostname, and names of other hosts."""
    where = "task.container"
    if spec.domainname:
        _guard(f"{where}.domainname", check_hostname, spec.domainname)
    for text in spec.hosts:
        _guard(f"{where}.hosts", confinement.parse_host, text)
    for text in spec.dns:
        _guard(f"{where}.dns", confinement.check_address, text)
    for text in spec.dns_search:
        _guard(f"{where}.dns_search", confinement.check_domain, text)
    for text in spec.dns_options:
        _guard(f"{where}.dns_options", confinement.check_dns_option, text)
    for text in spec.groups:
        if not text or re.search(r"[\s:,\0]", text):
            raise InvalidSpec(f"{where}.groups", f"group {text!r} is neither a name nor an id")


def _confinement(spec: ContainerSpec) -> None:
    """Privileges and limits."""
    where = "task.container"
    for text in (*spec.cap_add, *spec.cap_drop):
        _guard(f"{where}.cap_add", confinement.parse_capability, text)
    for text in spec.devices:
        _guard(f"{where}.devices", confinement.parse_device, text)
    for name in spec.sysctls:
        _guard(f"{where}.sysctls", confinement.check_sysctl, name)
    for limit in spec.ulimits:
        _guard(f"{where}.ulimits", confinement.checked_ulimit, limit)
    for text in spec.tmpfs:
        _guard(f"{where}.tmpfs", confinement.parse_tmpfs, text)
    if spec.cpuset_cpus:
        _guard(f"{where}.cpuset_cpus", confinement.check_cpus, spec.cpuset_cpus)
    if spec.apparmor:
        _guard(f"{where}.apparmor", confinement.check_apparmor, spec.apparmor)
    if spec.seccomp not in ("", "unconfined"):
        _guard(f"{where}.seccomp", confinement.check_seccomp, spec.seccomp)
    _not_negative(f"{where}.shm_size", spec.shm_size, "shm size")
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise InvalidSpec(
            f"{where}.oom_score_adj",
            f"oom score {spec.oom_score_adj} is not between -1000 and 1000",
        )
    if spec.userns not in ("", "host", "private"):
        raise InvalidSpec(
            f"{where}.userns", f"userns {spec.userns!r} is unknown; host and private are there"
        )
    for name, known in (("pid", _PID), ("ipc", _IPC)):
        _guard(f"{where}.{name}", check_sharing, spec, name)
        value = getattr(spec, name)
        if value not in known and not value.startswith(OF_CONTAINER):
            raise InvalidSpec(
                f"{where}.{name}", f"{name} {value!r} is unknown; {', '.join(known[1:])} are there"
            )
        if value == "host" and spec.userns == "private":
            raise InvalidSpec(
                f"{where}.userns",
                f"with {name} host the users are the host's; leave out userns private",
            )
    if spec.ipc == "host" and (name := next(filter(confinement.is_ipc, spec.sysctls), "")):
        raise InvalidSpec(f"{where}.sysctls", f"with ipc host the sysctl {name!r} is the node's")
    if spec.runtime and spec.runtime not in confinement.RUNTIMES:
        raise InvalidSpec(
            f"{where}.runtime",
            f"runtime {spec.runtime!r} is unknown; known are {', '.join(confinement.RUNTIMES)}",
        )


def _image(text: str) -> None:
    if not text:
        raise ValueError("no image is named; write such as hello:1")
    parse_image(text)


def validate_resources(spec: TaskSpec) -> None:
    """Raise InvalidSpec for invalid reservations, limits or weights."""
    _shares("task.shares", spec.shares, "cpu shares", MIN_SHARES)
    _shares("task.reservation.shares", spec.reservation.shares, "cpu reservation", MIN_SHARES)
    _shares("task.limit.shares", spec.limit.shares, "cpu limit", MIN_LIMIT_SHARES)
    _memory("task.reservation.memory", spec.reservation, "memory reservation")
    _memory("task.limit.memory", spec.limit, "memory limit")
    if 0 < spec.limit.memory < spec.reservation.memory:
        raise InvalidSpec(
            "task.limit.memory",
            f"memory limit {format_memory(spec.limit.memory)} is below the reservation of "
            f"{format_memory(spec.reservation.memory)}; raise the limit or reserve less",
        )
    _swap(spec.container.memory_swap, spec.limit.memory)


def _swap(swap: int, limit: int) -> None:
    where = "task.container.memory_swap"
    if swap < -1:
        raise InvalidSpec(where, f"memory swap {swap} is negative; -1 is no limit")
    if swap > 0 and not limit:
        raise InvalidSpec(
            where, "memory swap counts memory and swap together; give a memory limit as well"
        )
    if 0 < swap < limit:
        raise InvalidSpec(
            where,
            f"memory swap {format_memory(swap)} is below the memory limit of "
            f"{format_memory(limit)}; it counts both together",
        )


def _shares(field: str, shares: int, what: str, least: int) -> None:
    if shares and shares < least:
        raise InvalidSpec(field, f"{what} of {shares} shares must be at least {least}")
    if shares > MAX_SHARES:
        raise InvalidSpec(field, f"{what} of {shares} shares is over {MAX_SHARES}, the most")


def _memory(field: str, resources: Resources, what: str) -> None:
    if resources.memory and resources.memory < MIN_MEMORY:
        size = format_memory(resources.memory) if resources.memory > 0 else str(resources.memory)
        raise InvalidSpec(field, f"{what} {size} must be at least 6MiB")


def _ports(ports: tuple[PortSpec, ...]) -> None:
    seen = set()
    for port in ports:
        for what, number in (("published", port.published), ("target", port.target)):
            if not 1 <= number <= 65535:
                raise InvalidSpec("task.ports", f"{what} port {number} is not in 1-65535")
        protocol = port.protocol.name.lower()
        if (port.published, protocol) in seen:
            raise InvalidSpec("task.ports", f"port {port.published}/{protocol} is published twice")
        seen.add((port.published, protocol))


def _policy(word: str, policy: UpdatePolicy) -> None:
    for name in ("parallelism", "delay", "monitor", "canary", "max_failure_ratio"):
        check = _duration if name in ("delay", "monitor") else _not_negative
        check(f"{word}.{name}", getattr(policy, name), f"{word} {name.replace('_', ' ')}")
    if policy.max_failure_ratio > 1:
        raise InvalidSpec(
            f"{word}.max_failure_ratio",
            f"{word} max failure ratio {policy.max_failure_ratio:g} is over 1, which is all tasks",
        )
    if word == "rollback" and policy.failure_action is FailureAction.ROLLBACK:
        raise InvalidSpec(
            "rollback.failure_action", "a rollback is not rolled back; pause or continue"
        )


def _restart(policy: RestartPolicy) -> None:
    _duration("task.restart.delay", policy.delay, "restart delay")
    _not_negative("task.restart.max_attempts", policy.max_attempts, "restart max attempts")
    _duration("task.restart.window", policy.window, "restart window")


def check_labels(labels: Mapping[str, str], what: str = "label") -> None:
    """Raise ValueError for a label without a name, or with characters that programs cannot take."""
    for key, value in labels.items():
        if not key.strip():
            raise ValueError(f"a {what} has no name; write KEY=value")
        if not key.isprintable():
            raise ValueError(f"{what} {key!r} has a character that cannot be shown in its name")
        if "\0" in value:
            raise ValueError(f"{what} {key!r} contains a NUL character")


def _labels(field: str, labels: Mapping[str, str]) -> None:
    _guard(field, check_labels, labels)


def _not_negative(field: str, value: float, what: str) -> None:
    if value < 0 or not isfinite(value):
        raise InvalidSpec(field, f"{what} {value:g} is not valid; 0 is the least")


def _duration(field: str, seconds: float, what: str) -> None:
    _not_negative(field, seconds, what)
    if seconds > LONGEST:
        raise InvalidSpec(field, f"{what} is over ten years; write something shorter")


def _guard(field: str, check: Callable[..., object], *arguments: object) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise InvalidSpec(field, str(error)) from None
