# SPDX-License-Identifier: Apache-2.0
"""Docker's documents of a container: a row of its list, and what `inspect` returns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cli.container.container_rows import container_state
from orchestrator.cli.service.service_rows import has_exit_code, health_text, task_error
from orchestrator.dockerapi.containers.creation import NANOSECONDS
from orchestrator.dockerapi.ids import docker_id, swarm_id
from orchestrator.dockerapi.parameters import ZERO_TIME, rfc3339
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.nodes import Node
from orchestrator.model.objects import Image, Network
from orchestrator.model.specs import CONTAINER_NETWORK, HealthCheck, PortSpec, RestartCondition
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task
from orchestrator.model.units import SHARES_PER_CORE, format_age

_RESTART = {
    RestartCondition.NONE: "no",
    RestartCondition.ANY: "always",
    RestartCondition.UNLESS_STOPPED: "unless-stopped",
    RestartCondition.ON_FAILURE: "on-failure",
}

_STATES = {"pending": "created", "starting": "created", "failed": "exited", "orphan": "running"}
"""States of ours that Docker does not have."""

STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")

NO_EXIT_STATUS = 128
"""Exit status of a container that could not be started, as in Docker."""


@dataclass(frozen=True, slots=True)
class Found:
    """A container, with what its documents take from other objects."""

    task: Task
    node: Node | None
    command: tuple[str, ...]
    """Effective command line, with the image's defaults."""

    @property
    def id(self) -> str:
        """Docker's id."""
        return docker_id(self.task.id)

    @property
    def name(self) -> str:
        """Without the slash before it that Docker's documents have."""
        return self.task.name

    @property
    def state(self) -> str:
        """In Docker's words."""
        state = container_state(self.task)
        return _STATES.get(state, state)

    @property
    def address(self) -> str:
        """Of its node; empty without one."""
        return self.node.description.address if self.node else ""

    @property
    def exit_code(self) -> int:
        """As Docker has it: 0 while it has not ended."""
        if has_exit_code(self.task):
            return self.task.status.exit_code
        return NO_EXIT_STATUS if self.state == "exited" else 0

    @property
    def labels(self) -> dict[str, str]:
        """Its own, and Swarm's of a service's task or of a node."""
        task = self.task
        added = {"com.docker.swarm.node.id": swarm_id(task.node_id)} if task.node_id else {}
        if self.node is not None:
            added["orc.node"] = self.node.description.hostname
        if task.service_id:
            added |= {
                "com.docker.swarm.service.id": swarm_id(task.service_id),
                "com.docker.swarm.service.name": task.service_name,
                "com.docker.swarm.task": "",
                "com.docker.swarm.task.id": swarm_id(task.id),
                "com.docker.swarm.task.name": f"{task.name}.{swarm_id(task.id)}",
            }
        else:
            added.pop("com.docker.swarm.node.id", None)
        return {**added, **task.spec.container.labels}


def summary(
    found: Found,
    images: Mapping[str, Image],
    networks: Mapping[str, Network],
    now: float,
    sizes: Mapping[str, tuple[int, int]] | None,
) -> dict[str, Any]:
    """A row of `GET /containers/json`. `images` by digest, `networks` by name. `sizes`: bytes of
    the writable layer and of the image, by task id."""
    task, spec = found.task, found.task.spec.container
    image = images.get(task.image_digest)
    row = {
        "Id": found.id,
        "Names": [f"/{found.name}"],
        "Image": spec.image or "scratch",
        "ImageID": f"{image.config_digest}" if image else task.image_digest,
        "Command": _joined(found.command or spec.arguments((), ())),
        "Created": int(task.created_at),
        "Ports": [*_ports(found)],
        "Labels": found.labels,
        "State": found.state,
        "Status": status_text(found, now),
        "HostConfig": {"NetworkMode": network_mode(task)},
        "NetworkSettings": {"Networks": endpoints(found, networks)},
        "Mounts": [mount(each) for each in spec.mounts],
    }
    if sizes is not None:
        own, below = sizes.get(task.id, (0, 0))
        row |= {"SizeRw": own, "SizeRootFs": own + below}
    return row


def _joined(words: Iterable[str]) -> str:
    return " ".join(word if word and " " not in word else f"'{word}'" for word in words)


def status_text(found: Found, now: float) -> str:
    """Docker's STATUS."""
    task, state = found.task, found.state
    status = task.status
    match state:
        case "running" | "paused":
            text = f"Up {format_age(now - status.started_at)}"
            return text + (" (Paused)" if state == "paused" else health_text(task))
        case "restarting":
            return f"Restarting ({found.exit_code}) {format_age(now - status.at)} ago"
        case "removing":
            return "Removal In Progress"
        case "created":
            return "Created"
    return f"Exited ({found.exit_code}) {format_age(now - (status.finished_at or status.at))} ago"


def _ports(found: Found) -> Iterable[dict[str, Any]]:
    for port in found.task.spec.ports:
        yield {
            "IP": "0.0.0.0",
            "PrivatePort": port.target,
            "PublicPort": port.published,
            "Type": port.protocol.name.lower(),
        }


def network_mode(task: Task) -> str:
    """`HostConfig.NetworkMode`."""
    names = task.spec.network_names
    return names[0] if names else "none"


def endpoints(found: Found, networks: Mapping[str, Network]) -> dict[str, Any]:
    """`NetworkSettings.Networks`."""
    status = found.task.status
    live = found.state in ("running", "paused")
    attachments = {each.network: each for each in found.task.spec.networks}
    result = {}
    for name in found.task.spec.network_names:
        if name.startswith(CONTAINER_NETWORK):
            continue
        network, given = networks.get(name), attachments.get(name)
        four = status.addresses.get(name, "") if live else ""
        six = status.addresses6.get(name, "") if live else ""
        prefix = int(network.subnet.partition("/")[2] or 0) if network and four else 0
        result[name] = {
            "IPAMConfig": {
                key: value
                for key, value in (
                    ("IPv4Address", given.ip[0] if given and given.ip else ""),
                    ("IPv6Address", given.ip6[0] if given and given.ip6 else ""),
                )
                if value
            }
            or None,
            "Links": None,
            "Aliases": list(given.aliases) if given and given.aliases else None,
            "MacAddress": given.mac if given else "",
            "DriverOpts": dict(given.options) if given and given.options else None,
            "NetworkID": docker_id(network.id) if network else "",
            "EndpointID": docker_id(found.task.id[:12] + name[:11]) if four else "",
            "Gateway": network.gateway if network and four else "",
            "IPAddress": four,
            "IPPrefixLen": prefix,
            "IPv6Gateway": "",
            "GlobalIPv6Address": six,
            "GlobalIPv6PrefixLen": int(network.subnet6.partition("/")[2]) if network and six else 0,
            "DNSNames": [found.name, *(given.aliases if given else ()), found.id[:12]],
        }
    return result


def mount(spec: MountSpec) -> dict[str, Any]:
    """A `MountPoint`."""
    row: dict[str, Any] = {
        "Type": spec.type.name.lower(),
        "Source": spec.source if spec.type is MountType.BIND else "",
        "Destination": spec.target,
        "Mode": "ro" if spec.read_only else "",
        "RW": not spec.read_only,
        "Propagation": spec.propagation or ("rprivate" if spec.type is MountType.BIND else ""),
    }
    if spec.type is MountType.VOLUME:
        row |= {"Name": spec.source, "Driver": spec.driver or "local"}
    return row


def details(
    found: Found, image: Image | None, config: Mapping[str, Any], networks: Mapping[str, Network]
) -> dict[str, Any]:
    """What `GET /containers/{id}/json` returns. `config`: the image's own, as in its JSON."""
    task, status = found.task, found.task.status
    spec = task.spec.container
    command = found.command or tuple(spec.arguments((), ()))
    ports = bindings(task.spec.ports) if found.state in ("running", "paused") else {}
    attached = endpoints(found, networks)
    first: Mapping[str, Any] = next(iter(attached.values()), {})
    node = found.node
    return {
        "Id": found.id,
        "Created": rfc3339(task.created_at),
        "Path": command[0] if command else "",
        "Args": list(command[1:]),
        "State": _state(found),
        "Image": image.config_digest if image else task.image_digest,
        "ResolvConfPath": "",
        "HostnamePath": "",
        "HostsPath": "",
        "LogPath": "",
        "Name": f"/{found.name}",
        "RestartCount": task.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": spec.apparmor,
        "ExecIDs": None,
        "HostConfig": _host_config(found),
        "GraphDriver": {"Data": None, "Name": "overlay2"},
        "Mounts": [mount(each) for each in spec.mounts],
        "Config": _config(found, config),
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": found.id if status.pid else "",
            "SandboxKey": "",
            "Ports": {
                **{port: None for port in config.get("ExposedPorts") or {}},
                **ports,
            },
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            **{
                key: first.get(key, 0 if key.endswith("Len") else "")
                for key in (
                    *("EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen"),
                    *("IPAddress", "IPPrefixLen", "IPv6Gateway", "MacAddress"),
                )
            },
            "Networks": attached,
        },
        # As Swarm's standalone predecessor had it: where the container is.
        "Node": {
            "ID": swarm_id(node.id),
            "Name": node.description.hostname,
            "IP": node.description.address,
            "Addr": node.description.address,
            "Cpus": node.description.resources.shares // SHARES_PER_CORE,
            "Memory": node.description.resources.memory,
            "Labels": node.labels,
        }
        if node is not None
        else None,
    }


def _state(found: Found) -> dict[str, Any]:
    task, status = found.task, found.task.status
    state = found.state
    up = state in ("running", "paused")
    document: dict[str, Any] = {
        "Status": state,
        "Running": up or state == "restarting",
        "Paused": state == "paused",
        "Restarting": state == "restarting",
        "OOMKilled": status.oom_killed,
        "Dead": False,
        "Pid": status.pid if up else 0,
        "ExitCode": found.exit_code,
        "Error": _error(task) if state in ("exited", "created", "restarting") else "",
        "StartedAt": rfc3339(status.started_at),
        "FinishedAt": rfc3339(status.finished_at) if not up else ZERO_TIME,
    }
    if status.health is not Health.NONE:
        failing = status.health is Health.UNHEALTHY
        document["Health"] = {
            "Status": status.health.name.lower(),
            "FailingStreak": 1 if failing else 0,
            "Log": [
                {
                    "Start": rfc3339(status.at),
                    "End": rfc3339(status.at),
                    "ExitCode": 1,
                    "Output": status.health_output,
                }
            ]
            if status.health_output
            else [],
        }
    return document


def _error(task: Task) -> str:
    error = task_error(task)
    return "" if error == f"exit status {task.status.exit_code}" else error


def _config(found: Found, image: Mapping[str, Any]) -> dict[str, Any]:
    """`Config`: the container's, over that of its image."""
    task, spec = found.task, found.task.spec.container
    entrypoint = list(spec.entrypoint) if spec.entrypoint else image.get("Entrypoint")
    command = list(spec.command)
    if not command and not spec.entrypoint:
        command = list(image.get("Cmd") or [])
    names = {entry.partition("=")[0] for entry in spec.env}
    inherited = [entry for entry in image.get("Env") or [] if entry.partition("=")[0] not in names]
    exposed = dict.fromkeys(
        (
            *(image.get("ExposedPorts") or {}),
            *(f"{port.target}/{port.protocol.name.lower()}" for port in task.spec.ports),
        )
    )
    return {
        "Hostname": spec.hostname or task.id[:12],
        "Domainname": spec.domainname,
        "User": spec.user or image.get("User") or "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        **({"ExposedPorts": {port: {} for port in exposed}} if exposed else {}),
        "Tty": spec.tty,
        "OpenStdin": spec.open_stdin,
        "StdinOnce": spec.open_stdin,
        "Env": [*spec.env, *inherited],
        "Cmd": command or None,
        **({"Healthcheck": _health(spec.health)} if spec.health.test else {}),
        "Image": spec.image,
        "Volumes": image.get("Volumes"),
        "WorkingDir": spec.workdir or image.get("WorkingDir") or "",
        "Entrypoint": entrypoint if any(entrypoint or ()) else None,
        "OnBuild": None,
        "Labels": {**(image.get("Labels") or {}), **found.labels},
        **({"StopSignal": spec.stop_signal} if spec.stop_signal else {}),
        "StopTimeout": round(spec.stop_grace),
    }


def _health(check: HealthCheck) -> dict[str, Any]:
    return {
        "Test": list(check.test),
        "Interval": round(check.interval * NANOSECONDS),
        "Timeout": round(check.timeout * NANOSECONDS),
        "StartPeriod": round(check.start_period * NANOSECONDS),
        "StartInterval": round(check.start_interval * NANOSECONDS),
        "Retries": check.retries,
    }


def bindings(ports: Iterable[PortSpec]) -> dict[str, list[dict[str, str]]]:
    """A port map."""
    found: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        binding = {"HostIp": "0.0.0.0", "HostPort": str(port.published or "")}
        found.setdefault(f"{port.target}/{port.protocol.name.lower()}", []).append(binding)
    return found


def _bind(spec: MountSpec) -> str:
    options = ["ro"] if spec.read_only else []
    options += [spec.propagation] if spec.propagation else []
    options += ["nocopy"] if spec.no_copy else []
    return ":".join([spec.source, spec.target, *([",".join(options)] if options else [])])


def _host_config(found: Found) -> dict[str, Any]:
    task, spec = found.task, found.task.spec.container
    named = [
        each
        for each in spec.mounts
        if each.source and each.type is not MountType.TMPFS and not each.options
    ]
    return {
        "Binds": [_bind(each) for each in named] or None,
        "ContainerIDFile": "",
        "LogConfig": {
            "Type": spec.logging.driver or "json-file",
            "Config": dict(spec.logging.options),
        },
        "NetworkMode": network_mode(task),
        "PortBindings": bindings(task.spec.ports),
        "RestartPolicy": {
            "Name": _RESTART[task.spec.restart.condition],
            "MaximumRetryCount": task.spec.restart.max_attempts,
        },
        "AutoRemove": task.auto_remove,
        "VolumeDriver": "",
        "VolumesFrom": list(spec.volumes_from) or None,
        "ConsoleSize": [0, 0],
        "CapAdd": [name.removeprefix("CAP_") for name in spec.cap_add] or None,
        "CapDrop": list(spec.cap_drop) or None,
        "CgroupnsMode": "private",
        "Dns": list(spec.dns),
        "DnsOptions": list(spec.dns_options),
        "DnsSearch": list(spec.dns_search),
        "ExtraHosts": list(spec.hosts) or None,
        "GroupAdd": list(spec.groups) or None,
        "IpcMode": spec.ipc or "private",
        "Cgroup": "",
        "Links": None,
        "OomScoreAdj": spec.oom_score_adj,
        "PidMode": spec.pid,
        "Privileged": spec.privileged,
        "PublishAllPorts": False,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": _security(found) or None,
        "StorageOpt": {"size": str(spec.storage_size)} if spec.storage_size else None,
        "Tmpfs": dict(_tmpfs(spec.tmpfs)) or None,
        "UTSMode": "",
        "UsernsMode": spec.userns,
        "ShmSize": spec.shm_size or 64 << 20,
        "Sysctls": dict(spec.sysctls) or None,
        "Runtime": spec.runtime or "crun",
        "Isolation": "",
        "CpuShares": task.spec.shares,
        "Memory": task.spec.limit.memory,
        "NanoCpus": task.spec.limit.shares * NANOSECONDS // SHARES_PER_CORE,
        "CgroupParent": "",
        "BlkioWeight": 0,
        "BlkioWeightDevice": None,
        "BlkioDeviceReadBps": None,
        "BlkioDeviceWriteBps": None,
        "BlkioDeviceReadIOps": None,
        "BlkioDeviceWriteIOps": None,
        "CpuPeriod": 0,
        "CpuQuota": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "CpusetCpus": spec.cpuset_cpus,
        "CpusetMems": "",
        "Devices": [_device(each) for each in spec.devices],
        "DeviceCgroupRules": None,
        "DeviceRequests": None,
        "MemoryReservation": task.spec.reservation.memory,
        "MemorySwap": spec.memory_swap,
        "MemorySwappiness": None,
        "OomKillDisable": None,
        "PidsLimit": spec.pids_limit or None,
        "Ulimits": [
            {"Name": each.name, "Soft": each.soft, "Hard": each.hard} for each in spec.ulimits
        ],
        "CpuCount": 0,
        "CpuPercent": 0,
        "IOMaximumIOps": 0,
        "IOMaximumBandwidth": 0,
        "Init": spec.init or None,
        "Annotations": dict(spec.annotations) or None,
        "MaskedPaths": None if spec.privileged else [],
        "ReadonlyPaths": None if spec.privileged else [],
        **(
            {"Mounts": [_request(each) for each in spec.mounts if each.options]}
            if any(each.options for each in spec.mounts)
            else {}
        ),
    }


def _security(found: Found) -> list[str]:
    spec = found.task.spec.container
    options = [] if spec.new_privileges else ["no-new-privileges"]
    options += [f"seccomp={spec.seccomp}"] if spec.seccomp else []
    return options + ([f"apparmor={spec.apparmor}"] if spec.apparmor else [])


def _tmpfs(entries: Iterable[str]) -> Iterable[tuple[str, str]]:
    for entry in entries:
        path, _, options = entry.partition(":")
        yield path, options


def _device(text: str) -> dict[str, str]:
    source, _, rest = text.partition(":")
    target, _, permissions = rest.partition(":")
    return {
        "PathOnHost": source,
        "PathInContainer": target or source,
        "CgroupPermissions": permissions or "rwm",
    }


def _request(spec: MountSpec) -> dict[str, Any]:
    """A mount as it was requested."""
    return {
        "Type": spec.type.name.lower(),
        "Source": spec.source,
        "Target": spec.target,
        "ReadOnly": spec.read_only,
        "VolumeOptions": {
            "NoCopy": spec.no_copy,
            "Labels": spec.labels,
            "DriverConfig": {"Name": spec.driver or "local", "Options": spec.options},
        },
    }


def is_up(task: Task) -> bool:
    """Whether its process runs, paused or not."""
    return task.status.state is TaskState.RUNNING
