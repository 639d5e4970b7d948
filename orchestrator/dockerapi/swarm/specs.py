# SPDX-License-Identifier: Apache-2.0
"""Specs of services: from Docker's documents to ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.dockerapi.containers.creation import (
    NANOSECONDS,
    STOP_TIMEOUT,
    image_name,
    read_health,
    read_mount,
)
from orchestrator.dockerapi.http.errors import bad_parameter, unsupported
from orchestrator.dockerapi.ids import swarm_id
from orchestrator.dockerapi.parameters import Fields
from orchestrator.model.documents import DocumentKind, FileReference
from orchestrator.model.jobs import JobSpec
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.placement import GenericResource, Resources
from orchestrator.model.specs import (
    ContainerSpec,
    EndpointMode,
    FailureAction,
    HealthCheck,
    LogConfig,
    NetworkAttachment,
    PortSpec,
    Protocol,
    PublishMode,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    Ulimit,
    UpdateOrder,
    UpdatePolicy,
)
from orchestrator.model.units import SHARES_PER_CORE

_CONDITIONS = {
    "": RestartCondition.ANY,
    "any": RestartCondition.ANY,
    "on-failure": RestartCondition.ON_FAILURE,
    "none": RestartCondition.NONE,
}
_ACTIONS = {
    "": FailureAction.PAUSE,
    "pause": FailureAction.PAUSE,
    "continue": FailureAction.CONTINUE,
    "rollback": FailureAction.ROLLBACK,
}
_ORDERS = {
    "": UpdateOrder.STOP_FIRST,
    "stop-first": UpdateOrder.STOP_FIRST,
    "start-first": UpdateOrder.START_FIRST,
}

NOTES: Mapping[str, str] = {
    "Name": "same",
    "Labels": "same",
    "TaskTemplate.ContainerSpec": "without Privileges.CredentialSpec and Isolation",
    "TaskTemplate.Resources": "same",
    "TaskTemplate.RestartPolicy": "same",
    "TaskTemplate.Placement": "Platforms are ignored",
    "TaskTemplate.Networks": "same",
    "TaskTemplate.LogDriver": "same",
    "TaskTemplate.ForceUpdate": "same",
    "TaskTemplate.Runtime": "`container`",
    "TaskTemplate.PluginSpec": "refused",
    "TaskTemplate.NetworkAttachmentSpec": "refused",
    "Mode": "same",
    "UpdateConfig": "same",
    "RollbackConfig": "same",
    "EndpointSpec": "same",
    "Networks": "same",
    "X-Registry-Auth": "logs in the cluster, as `POST /auth` does; no identity tokens",
}


def read_service(
    body: Fields, network: Callable[[str], str], documents: Callable[[DocumentKind, str], str]
) -> ServiceSpec:
    """A service's spec from Docker's. `network` and `documents` give the names of what the body
    names by id. Raises ApiError."""
    template = body.object("TaskTemplate")
    for name in ("PluginSpec", "NetworkAttachmentSpec"):
        if template.mapping(name):
            raise unsupported(f"TaskTemplate.{name} is not supported: a service runs containers")
    placement, endpoint = template.object("Placement"), body.object("EndpointSpec")
    mode, replicas, job = _mode(body.object("Mode"))
    return ServiceSpec(
        name=body.text("Name"),
        labels=body.labels("Labels"),
        mode=mode,
        replicas=replicas,
        task=_task(template, endpoint, body, network, documents),
        update=_policy(body.object("UpdateConfig")),
        rollback=_policy(body.object("RollbackConfig")),
        constraints=tuple(placement.texts("Constraints")),
        endpoint_mode=EndpointMode.DNSRR if endpoint.text("Mode") == "dnsrr" else EndpointMode.VIP,
        max_per_node=placement.number("MaxReplicas"),
        spread=tuple(
            each.object("Spread").text("SpreadDescriptor")
            for each in placement.items("Preferences")
        ),
        job=job,
    )


def _mode(mode: Fields) -> tuple[ServiceMode, int, JobSpec]:
    if "Global" in mode:
        return ServiceMode.GLOBAL, 1, JobSpec()
    if "GlobalJob" in mode:
        return ServiceMode.GLOBAL_JOB, 1, JobSpec()
    if "ReplicatedJob" in mode:
        job = mode.object("ReplicatedJob")
        most = job.number("MaxConcurrent", 1)
        total = job.number("TotalCompletions", most)
        return ServiceMode.REPLICATED_JOB, total, JobSpec(parallelism=most)
    return ServiceMode.REPLICATED, mode.object("Replicated").number("Replicas", 1), JobSpec()


def _task(
    template: Fields,
    endpoint: Fields,
    body: Fields,
    network: Callable[[str], str],
    documents: Callable[[DocumentKind, str], str],
) -> TaskSpec:
    resources = template.object("Resources")
    limit, reserved = resources.object("Limits"), resources.object("Reservations")
    container = template.object("ContainerSpec")
    attachments = template.items("Networks") or body.items("Networks")
    return TaskSpec(
        container=_container(container, template, limit, documents),
        reservation=_amount(reserved),
        limit=_amount(limit),
        ports=tuple(_port(each) for each in endpoint.items("Ports")),
        restart=_restart(template.object("RestartPolicy")),
        force=template.number("ForceUpdate"),
        networks=tuple(
            NetworkAttachment(
                network(each.text("Target")),
                aliases=tuple(each.texts("Aliases")),
                options=each.labels("DriverOpts"),
            )
            for each in attachments
        ),
        generic_resources=tuple(_generic(reserved.items("GenericResources"))),
    )


def _amount(found: Fields) -> Resources:
    return Resources(
        found.number("NanoCPUs") * SHARES_PER_CORE // NANOSECONDS, found.number("MemoryBytes")
    )


def _generic(rows: Iterable[Fields]) -> Iterable[GenericResource]:
    names: dict[str, list[str]] = {}
    for row in rows:
        named, counted = row.object("NamedResourceSpec"), row.object("DiscreteResourceSpec")
        if named.text("Kind"):
            names.setdefault(named.text("Kind"), []).append(named.text("Value"))
        elif counted.text("Kind"):
            yield GenericResource(counted.text("Kind"), counted.number("Value"))
    for kind, values in names.items():
        yield GenericResource(kind, len(values), tuple(values))


def _container(
    spec: Fields,
    template: Fields,
    limit: Fields,
    documents: Callable[[DocumentKind, str], str],
) -> ContainerSpec:
    if not spec.text("Image"):
        raise bad_parameter("ContainerSpec: image reference must be provided")
    dns, log, privileges = (
        spec.object("DNSConfig"),
        template.object("LogDriver"),
        spec.object("Privileges"),
    )
    grace = spec.number("StopGracePeriod", STOP_TIMEOUT * NANOSECONDS)
    seccomp, apparmor = privileges.object("Seccomp"), privileges.object("AppArmor")
    return ContainerSpec(
        image=image_name(spec.text("Image")),
        entrypoint=tuple(spec.texts("Command")),
        command=tuple(spec.texts("Args")),
        env=tuple(spec.texts("Env")),
        user=spec.text("User"),
        workdir=spec.text("Dir"),
        hostname=spec.text("Hostname"),
        labels=spec.labels("Labels"),
        stop_signal=spec.text("StopSignal"),
        stop_grace=grace / NANOSECONDS,
        read_only=spec.flag("ReadOnly"),
        pids_limit=limit.number("Pids"),
        tty=spec.flag("TTY"),
        open_stdin=spec.flag("OpenStdin"),
        hosts=tuple(_host(each) for each in spec.texts("Hosts")),
        dns=tuple(dns.texts("Nameservers")),
        dns_search=tuple(dns.texts("Search")),
        dns_options=tuple(dns.texts("Options")),
        groups=tuple(spec.texts("Groups")),
        cap_add=tuple(spec.texts("CapabilityAdd")),
        cap_drop=tuple(spec.texts("CapabilityDrop")),
        seccomp="unconfined" if seccomp.text("Mode") == "unconfined" else "",
        apparmor="unconfined" if apparmor.text("Mode") == "disabled" else "",
        new_privileges=not privileges.flag("NoNewPrivileges"),
        sysctls=spec.labels("Sysctls"),
        ulimits=tuple(
            Ulimit(each.text("Name"), each.number("Soft"), each.number("Hard"))
            for each in spec.items("Ulimits")
        ),
        init=spec.flag("Init"),
        oom_score_adj=spec.number("OomScoreAdj"),
        mounts=tuple(read_mount(each) for each in spec.items("Mounts")),
        health=read_health(spec.object("Healthcheck")),
        secrets=_references(DocumentKind.SECRET, spec.items("Secrets"), documents),
        configs=_references(DocumentKind.CONFIG, spec.items("Configs"), documents),
        logging=LogConfig(log.text("Name"), log.labels("Options")),
    )


def _host(entry: str) -> str:
    """`IP NAME` of a service is `NAME:IP` of a container."""
    address, _, name = entry.partition(" ")
    return f"{name}:{address}" if name else entry


def _references(
    kind: DocumentKind,
    rows: Iterable[Fields],
    documents: Callable[[DocumentKind, str], str],
) -> tuple[FileReference, ...]:
    word = "Secret" if kind is DocumentKind.SECRET else "Config"
    found = []
    for row in rows:
        file = row.object("File")
        name = row.text(f"{word}Name") or documents(kind, row.text(f"{word}ID"))
        target = file.text("Name")
        mode = file.number("Mode", 0o444)
        found.append(
            FileReference(
                name,
                "" if target == name else target,
                _id(file.text("UID")),
                _id(file.text("GID")),
                0 if mode == 0o444 else mode & 0o777,
            )
        )
    return tuple(found)


def _id(text: str) -> int:
    if text and not (text.isascii() and text.isdecimal()):
        raise bad_parameter(f"invalid owner of a file: {text!r} is not a number")
    return int(text or 0)


def _port(row: Fields) -> PortSpec:
    protocol = (row.text("Protocol") or "tcp").upper()
    if protocol not in Protocol.__members__:
        raise bad_parameter(f"invalid protocol: {protocol.lower()}")
    mode = PublishMode.HOST if row.text("PublishMode") == "host" else PublishMode.INGRESS
    return PortSpec(row.number("PublishedPort"), row.number("TargetPort"), Protocol[protocol], mode)


def _restart(policy: Fields) -> RestartPolicy:
    condition = _CONDITIONS.get(policy.text("Condition"))
    if condition is None:
        raise bad_parameter(f"invalid restart condition: {policy.text('Condition')}")
    return RestartPolicy(
        condition,
        policy.number("Delay", 5 * NANOSECONDS) / NANOSECONDS,
        policy.number("MaxAttempts"),
        policy.number("Window") / NANOSECONDS,
    )


def _policy(policy: Fields) -> UpdatePolicy:
    action, order = _ACTIONS.get(policy.text("FailureAction")), _ORDERS.get(policy.text("Order"))
    if action is None or order is None:
        raise bad_parameter("invalid FailureAction or Order of an update")
    default = UpdatePolicy()
    return UpdatePolicy(
        parallelism=policy.number("Parallelism", default.parallelism),
        delay=policy.number("Delay") / NANOSECONDS,
        order=order,
        monitor=policy.number("Monitor", round(default.monitor * NANOSECONDS)) / NANOSECONDS
        or default.monitor,
        failure_action=action,
        max_failure_ratio=policy.real("MaxFailureRatio"),
    )


def kept(spec: ServiceSpec, before: ServiceSpec) -> ServiceSpec:
    """A spec that a Docker client sent, with what its documents cannot say from the one before."""
    container, old = spec.task.container, before.task.container
    container = replace(
        container,
        annotations=old.annotations,
        privileged=old.privileged,
        devices=old.devices,
        shm_size=old.shm_size,
        tmpfs=old.tmpfs,
        post_start=old.post_start,
        pre_stop=old.pre_stop,
        storage_size=old.storage_size,
        cpuset_cpus=old.cpuset_cpus,
        userns=old.userns,
        runtime=old.runtime,
    )
    return replace(
        spec,
        task=replace(spec.task, container=container, shares=before.task.shares),
        depends_on=before.depends_on,
        affinities=before.affinities,
        strategy=before.strategy,
        on_disconnect=before.on_disconnect,
        update=replace(spec.update, canary=before.update.canary),
    )


# -- to Docker's documents ---------------------------------------------------------------------


def service_spec(
    spec: ServiceSpec,
    network_ids: Mapping[str, str],
    document_ids: Mapping[tuple[DocumentKind, str], str],
) -> dict[str, Any]:
    """Docker's spec of a service. `network_ids`: Docker's id of each network's name;
    `document_ids`: Swarm ids by kind and name."""
    document: dict[str, Any] = {
        "Name": spec.name,
        "Labels": dict(spec.labels),
        "TaskTemplate": task_template(spec, network_ids, document_ids),
        "Mode": _mode_document(spec),
        "UpdateConfig": _policy_document(spec.update),
        "RollbackConfig": _policy_document(spec.rollback),
        "EndpointSpec": {
            "Mode": spec.endpoint_mode.name.lower(),
            **({"Ports": ports(spec.task.ports)} if spec.task.ports else {}),
        },
    }
    return document


def ports(found: Iterable[PortSpec]) -> list[dict[str, Any]]:
    """`PortConfig`s."""
    return [
        {
            "Protocol": port.protocol.name.lower(),
            "TargetPort": port.target,
            "PublishedPort": port.published,
            "PublishMode": port.mode.name.lower(),
        }
        for port in found
    ]


def _mode_document(spec: ServiceSpec) -> dict[str, Any]:
    match spec.mode:
        case ServiceMode.GLOBAL:
            return {"Global": {}}
        case ServiceMode.GLOBAL_JOB:
            return {"GlobalJob": {}}
        case ServiceMode.REPLICATED_JOB:
            return {
                "ReplicatedJob": {
                    "MaxConcurrent": spec.job.parallelism or spec.replicas,
                    "TotalCompletions": spec.replicas,
                }
            }
    return {"Replicated": {"Replicas": spec.replicas}}


def _policy_document(policy: UpdatePolicy) -> dict[str, Any]:
    return {
        "Parallelism": policy.parallelism,
        "Delay": round(policy.delay * NANOSECONDS),
        "FailureAction": policy.failure_action.name.lower(),
        "Monitor": round(policy.monitor * NANOSECONDS),
        "MaxFailureRatio": policy.max_failure_ratio,
        "Order": policy.order.name.lower().replace("_", "-"),
    }


def task_template(
    spec: ServiceSpec,
    network_ids: Mapping[str, str],
    document_ids: Mapping[tuple[DocumentKind, str], str],
) -> dict[str, Any]:
    """`TaskTemplate` of a service."""
    task = spec.task
    placement: dict[str, Any] = {}
    if spec.constraints:
        placement["Constraints"] = list(spec.constraints)
    if spec.max_per_node:
        placement["MaxReplicas"] = spec.max_per_node
    if spec.spread:
        placement["Preferences"] = [{"Spread": {"SpreadDescriptor": each}} for each in spec.spread]
    document: dict[str, Any] = {
        "ContainerSpec": container_spec(task.container, document_ids),
        "Resources": _resources(task),
        "RestartPolicy": {
            "Condition": "any"
            if task.restart.condition is RestartCondition.UNLESS_STOPPED
            else task.restart.condition.name.lower().replace("_", "-"),
            "Delay": round(task.restart.delay * NANOSECONDS),
            "MaxAttempts": task.restart.max_attempts,
            **({"Window": round(task.restart.window * NANOSECONDS)} if task.restart.window else {}),
        },
        "Placement": placement,
        "ForceUpdate": task.force,
        "Runtime": "container",
    }
    if task.networks:
        document["Networks"] = [
            {
                "Target": network_ids.get(each.network, each.network),
                **({"Aliases": list(each.aliases)} if each.aliases else {}),
                **({"DriverOpts": dict(each.options)} if each.options else {}),
            }
            for each in task.networks
        ]
    if task.container.logging.driver:
        document["LogDriver"] = {
            "Name": task.container.logging.driver,
            "Options": dict(task.container.logging.options),
        }
    return document


def _resources(task: TaskSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    limits = _amount_document(task.limit)
    if task.container.pids_limit:
        limits["Pids"] = task.container.pids_limit
    if limits:
        found["Limits"] = limits
    reserved = _amount_document(task.reservation)
    generic: list[dict[str, Any]] = []
    for each in task.generic_resources:
        generic += [{"NamedResourceSpec": {"Kind": each.kind, "Value": v}} for v in each.names]
        if not each.names:
            generic.append({"DiscreteResourceSpec": {"Kind": each.kind, "Value": each.count}})
    if generic:
        reserved["GenericResources"] = generic
    if reserved:
        found["Reservations"] = reserved
    return found


def _amount_document(amount: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if amount.shares:
        found["NanoCPUs"] = amount.shares * NANOSECONDS // SHARES_PER_CORE
    if amount.memory:
        found["MemoryBytes"] = amount.memory
    return found


def container_spec(
    spec: ContainerSpec, document_ids: Mapping[tuple[DocumentKind, str], str]
) -> dict[str, Any]:
    """`ContainerSpec` of a service or task."""
    document: dict[str, Any] = {
        "Image": spec.image,
        "Labels": dict(spec.labels),
        "Command": list(spec.entrypoint),
        "Args": list(spec.command),
        "Hostname": spec.hostname,
        "Env": list(spec.env),
        "Dir": spec.workdir,
        "User": spec.user,
        "Groups": list(spec.groups),
        "TTY": spec.tty,
        "OpenStdin": spec.open_stdin,
        "ReadOnly": spec.read_only,
        "StopSignal": spec.stop_signal,
        "Hosts": [_host_document(each) for each in spec.hosts],
        "CapabilityAdd": list(spec.cap_add),
        "CapabilityDrop": list(spec.cap_drop),
        "Sysctls": dict(spec.sysctls),
        "Mounts": [_mount_document(each) for each in spec.mounts],
        "Ulimits": [
            {"Name": each.name, "Soft": each.soft, "Hard": each.hard} for each in spec.ulimits
        ],
    }
    document = {key: value for key, value in document.items() if value}
    document |= {
        "Image": spec.image,
        "Init": spec.init,
        "StopGracePeriod": round(spec.stop_grace * NANOSECONDS),
        "DNSConfig": {
            key: value
            for key, value in (
                ("Nameservers", list(spec.dns)),
                ("Search", list(spec.dns_search)),
                ("Options", list(spec.dns_options)),
            )
            if value
        },
        "Isolation": "default",
    }
    if spec.health.test:
        document["Healthcheck"] = health_document(spec.health)
    for kind, references, word in (
        (DocumentKind.SECRET, spec.secrets, "Secret"),
        (DocumentKind.CONFIG, spec.configs, "Config"),
    ):
        if references:
            document[f"{word}s"] = [
                {
                    "File": {
                        "Name": each.target or each.source,
                        "UID": str(each.uid),
                        "GID": str(each.gid),
                        "Mode": each.mode or 0o444,
                    },
                    f"{word}ID": document_ids.get((kind, each.source), ""),
                    f"{word}Name": each.source,
                }
                for each in references
            ]
    return document


def health_document(check: HealthCheck) -> dict[str, Any]:
    """A health check; durations are nanoseconds."""
    return {
        "Test": list(check.test),
        "Interval": round(check.interval * NANOSECONDS),
        "Timeout": round(check.timeout * NANOSECONDS),
        "StartPeriod": round(check.start_period * NANOSECONDS),
        "StartInterval": round(check.start_interval * NANOSECONDS),
        "Retries": check.retries,
    }


def _host_document(entry: str) -> str:
    name, _, address = entry.partition(":")
    return f"{address} {name}"


def _mount_document(spec: MountSpec) -> dict[str, Any]:
    document: dict[str, Any] = {"Type": spec.type.name.lower(), "Target": spec.target}
    if spec.source:
        document["Source"] = spec.source
    if spec.read_only:
        document["ReadOnly"] = True
    if spec.type is MountType.BIND and spec.propagation:
        document["BindOptions"] = {"Propagation": spec.propagation}
    if spec.type is MountType.VOLUME and (spec.no_copy or spec.labels or spec.driver):
        document["VolumeOptions"] = {
            "NoCopy": spec.no_copy,
            "Labels": dict(spec.labels),
            "DriverConfig": {"Name": spec.driver or "local", "Options": dict(spec.options)},
        }
    if spec.type is MountType.TMPFS and (spec.tmpfs_size or spec.tmpfs_mode):
        document["TmpfsOptions"] = {"SizeBytes": spec.tmpfs_size, "Mode": spec.tmpfs_mode}
    return document


def version(revision: int) -> dict[str, int]:
    """The version of an object, which its next update names."""
    return {"Index": revision}


def reference_ids(documents: Iterable[Any]) -> dict[tuple[DocumentKind, str], str]:
    """Swarm ids of secrets and configs by kind and name, from DocumentRows."""
    return {
        (DocumentKind(row.document.kind), row.document.name): swarm_id(row.document.id)
        for row in documents
    }
