# SPDX-License-Identifier: Apache-2.0
"""A container's spec from the body of `POST /containers/create`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator.dockerapi.http.errors import bad_parameter, unsupported
from orchestrator.dockerapi.http.routing import SAME
from orchestrator.dockerapi.parameters import Fields
from orchestrator.model.mounts import PROPAGATIONS, MountSpec, MountType
from orchestrator.model.names import parse_image
from orchestrator.model.placement import GenericResource, Resources
from orchestrator.model.specs import (
    CONTAINER_NETWORK,
    ContainerSpec,
    HealthCheck,
    LogConfig,
    NetworkAttachment,
    PortSpec,
    Protocol,
    RestartCondition,
    RestartPolicy,
    TaskSpec,
    Ulimit,
)
from orchestrator.model.units import SHARES_PER_CORE

NANOSECONDS = 10**9
STOP_TIMEOUT = 10
"""Seconds from the stop signal to SIGKILL, unless the container says otherwise."""

DEFAULT_NETWORKS = ("", "default", "bridge", "nat")
"""Network modes of containers that name no network: they get the cluster's default network, where
they are reachable from every node."""

CONSTRAINT_LABEL = "orc.constraint"
"""Label with placement rules, separated by commas: Docker's API has none for containers."""

_RESTART = {
    "": RestartCondition.NONE,
    "no": RestartCondition.NONE,
    "always": RestartCondition.ANY,
    "unless-stopped": RestartCondition.UNLESS_STOPPED,
    "on-failure": RestartCondition.ON_FAILURE,
}

IGNORED = "ignored"
NO_BLOCK_IO = "refused: nodes do not limit block I/O"
BLOCK_IO = (
    *("BlkioWeight", "BlkioWeightDevice", "BlkioDeviceReadBps", "BlkioDeviceWriteBps"),
    *("BlkioDeviceReadIOps", "BlkioDeviceWriteIOps"),
)

NOTES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("Hostname", "Domainname", "User", "Tty", "OpenStdin", "Env", "Cmd", "Entrypoint"),
            *("Image", "WorkingDir", "Labels", "StopSignal", "StopTimeout", "Healthcheck"),
            *("Volumes", "ExposedPorts", "NetworkDisabled", "MacAddress"),
            *("HostConfig.Memory", "HostConfig.MemoryReservation", "HostConfig.MemorySwap"),
            *("HostConfig.NanoCpus", "HostConfig.CpuShares", "HostConfig.CpusetCpus"),
            *("HostConfig.PidsLimit", "HostConfig.Ulimits", "HostConfig.OomScoreAdj"),
            *("HostConfig.ShmSize", "HostConfig.RestartPolicy", "HostConfig.AutoRemove"),
            *("HostConfig.Privileged", "HostConfig.ReadonlyRootfs", "HostConfig.CapAdd"),
            *("HostConfig.CapDrop", "HostConfig.Dns", "HostConfig.DnsOptions"),
            *("HostConfig.DnsSearch", "HostConfig.ExtraHosts", "HostConfig.GroupAdd"),
            *("HostConfig.Annotations", "HostConfig.Sysctls", "HostConfig.Tmpfs"),
            *("HostConfig.Init", "HostConfig.UsernsMode", "HostConfig.LogConfig"),
            *("HostConfig.Mounts", "HostConfig.VolumesFrom", "HostConfig.PublishAllPorts"),
            *("HostConfig.Runtime", "HostConfig.Devices", "HostConfig.StorageOpt"),
            *("NetworkingConfig.EndpointsConfig",),
        ),
        SAME,
    ),
    **dict.fromkeys(
        (
            *("AttachStdin", "AttachStdout", "AttachStderr", "StdinOnce", "ArgsEscaped"),
            *("OnBuild", "Shell"),
            *("HostConfig.ContainerIDFile", "HostConfig.VolumeDriver", "HostConfig.Isolation"),
            *(
                "HostConfig.MemorySwappiness",
                "HostConfig.KernelMemoryTCP",
                "HostConfig.CgroupParent",
            ),
            *("HostConfig.OomKillDisable", "HostConfig.Cgroup", "HostConfig.CpuCount"),
            *("HostConfig.CpuPercent", "HostConfig.IOMaximumIOps", "HostConfig.IOMaximumBandwidth"),
            *("HostConfig.CpuRealtimePeriod", "HostConfig.CpuRealtimeRuntime"),
            *("HostConfig.CpusetMems", "HostConfig.CgroupnsMode", "HostConfig.MaskedPaths"),
            *("HostConfig.ReadonlyPaths", "HostConfig.DeviceCgroupRules"),
        ),
        IGNORED,
    ),
    "HostConfig.ConsoleSize": "set when a client attaches before the start",
    "HostConfig.Binds": "a path is one of the container's node, not of the client's machine",
    "HostConfig.CpuPeriod": "only with CpuQuota: their ratio is the limit",
    "HostConfig.CpuQuota": "only with CpuPeriod, by default 100,000: their ratio is the limit",
    "HostConfig.PortBindings": "a port is published on all addresses; another HostIp is refused",
    "HostConfig.NetworkMode": "`bridge` and `default` are the cluster's default network, "
    "where containers reach each other over all nodes",
    "HostConfig.Links": "the linked container's name resolves on a shared network; an alias is "
    "an additional name there",
    "HostConfig.IpcMode": SAME,
    "HostConfig.PidMode": SAME,
    "HostConfig.UTSMode": "refused: `host`",
    "HostConfig.SecurityOpt": "seccomp, apparmor, no-new-privileges; `label` is ignored",
    "HostConfig.DeviceRequests": "GPUs: the generic resource `gpu` of a node",
    **dict.fromkeys((f"HostConfig.{name}" for name in BLOCK_IO), NO_BLOCK_IO),
}
"""Field of the body → how far it does what Docker's does."""


def read_spec(body: Fields, exposed: Iterable[str] = ()) -> TaskSpec:
    """The spec that the body describes. `exposed`: the image's ports. Raises ApiError."""
    host = body.object("HostConfig")
    _refuse(host)
    return TaskSpec(
        container=_container(body, host),
        reservation=Resources(0, host.number("MemoryReservation")),
        limit=Resources(cpu_limit(host), host.number("Memory")),
        shares=host.number("CpuShares"),
        ports=_ports(body, host, exposed),
        restart=read_restart(host.object("RestartPolicy")),
        networks=_networks(body, host),
        generic_resources=_devices(host),
    )


def console_size(body: Fields) -> tuple[int, int]:
    """(rows, columns) of the client's terminal; zeros without one. Raises ApiError."""
    size = body.numbers("ConsoleSize") or [0, 0]
    if len(size) != 2 or not all(0 <= each < 1 << 16 for each in size):
        raise bad_parameter(f"invalid ConsoleSize {size}: it is [HEIGHT, WIDTH]")
    return size[0], size[1]


def constraints(labels: Mapping[str, str]) -> list[str]:
    """Placement rules in a container's labels."""
    return [rule.strip() for rule in labels.get(CONSTRAINT_LABEL, "").split(",") if rule.strip()]


def _refuse(host: Fields) -> None:
    """Raise ApiError for what a cluster cannot do, where ignoring it would mislead."""
    refuse_block_io(host)
    if host.text("UTSMode") not in ("", "private"):
        raise unsupported("HostConfig.UTSMode: containers have a hostname of their own")
    restart = host.object("RestartPolicy").text("Name")
    if host.flag("AutoRemove") and restart not in ("", "no"):
        raise bad_parameter("can't create 'AutoRemove' container with restart policy")


def refuse_block_io(resources: Fields) -> None:
    """Raise ApiError for limits of block I/O."""
    if resources.number("BlkioWeight"):
        raise unsupported("BlkioWeight: nodes do not limit block I/O")
    for name in BLOCK_IO[1:]:
        if resources.items(name):
            raise unsupported(f"{name}: nodes do not limit block I/O")


def _container(body: Fields, host: Fields) -> ContainerSpec:
    image = body.text("Image")
    if not image:
        raise bad_parameter("no command specified" if body.texts("Cmd") else "no image specified")
    security = _Security.read(host.texts("SecurityOpt"))
    entrypoint = body.texts("Entrypoint")
    if "Entrypoint" in body and not any(entrypoint):
        entrypoint = [""]  # it clears that of the image
    return ContainerSpec(
        image=image_name(image),
        entrypoint=tuple(entrypoint),
        command=tuple(body.texts("Cmd")),
        env=tuple(_env(body.texts("Env"))),
        user=body.text("User"),
        workdir=body.text("WorkingDir"),
        hostname=body.text("Hostname"),
        domainname=body.text("Domainname"),
        labels=body.labels("Labels"),
        annotations=host.labels("Annotations"),
        stop_signal=body.text("StopSignal"),
        stop_grace=float(body.number("StopTimeout", STOP_TIMEOUT)),
        read_only=host.flag("ReadonlyRootfs"),
        pids_limit=host.number("PidsLimit"),
        tty=body.flag("Tty"),
        open_stdin=body.flag("OpenStdin"),
        hosts=tuple(host.texts("ExtraHosts")),
        dns=tuple(host.texts("Dns")),
        dns_search=tuple(host.texts("DnsSearch")),
        dns_options=tuple(host.texts("DnsOptions")),
        groups=tuple(host.texts("GroupAdd")),
        cap_add=_capabilities(host.texts("CapAdd")),
        cap_drop=_capabilities(host.texts("CapDrop")),
        privileged=host.flag("Privileged"),
        devices=tuple(_device(each) for each in host.items("Devices")),
        seccomp=security.seccomp,
        apparmor=security.apparmor,
        new_privileges=security.new_privileges,
        sysctls=host.labels("Sysctls"),
        ulimits=tuple(
            Ulimit(each.text("Name"), each.number("Soft"), each.number("Hard"))
            for each in host.items("Ulimits")
        ),
        shm_size=host.number("ShmSize"),
        tmpfs=tuple(
            f"{path}:{options}" if options else path
            for path, options in host.labels("Tmpfs").items()
        ),
        init=host.flag("Init"),
        oom_score_adj=host.number("OomScoreAdj"),
        cpuset_cpus=host.text("CpusetCpus"),
        memory_swap=host.number("MemorySwap"),
        userns=host.text("UsernsMode"),
        runtime="" if host.text("Runtime") in ("runc", "crun") else host.text("Runtime"),
        pid=host.text("PidMode"),
        ipc=host.text("IpcMode") if host.text("IpcMode") != "none" else "private",
        mounts=tuple(_mounts(body, host)),
        volumes_from=tuple(host.texts("VolumesFrom")),
        storage_size=_storage_size(host.labels("StorageOpt")),
        health=read_health(body.object("Healthcheck")),
        logging=_logging(host.object("LogConfig")),
    )


def image_name(text: str) -> str:
    """An image's name with its tag. Raises ApiError."""
    try:
        return str(parse_image(text))
    except ValueError:
        raise bad_parameter("invalid reference format") from None


def _env(entries: Iterable[str]) -> Iterable[str]:
    """`KEY` alone removes a variable in Docker; here it is not passed."""
    for entry in entries:
        key, equals, _ = entry.partition("=")
        if not key:
            raise bad_parameter(f"invalid environment variable: {entry}")
        if equals:
            yield entry


def _capabilities(names: Iterable[str]) -> tuple[str, ...]:
    found = []
    for name in names:
        word = name.upper()
        found.append(word if word == "ALL" or word.startswith("CAP_") else f"CAP_{word}")
    return tuple(found)


def cpu_limit(host: Fields) -> int:
    """CPU shares of the limit; 0: none."""
    nano, quota, period = (host.number(name) for name in ("NanoCpus", "CpuQuota", "CpuPeriod"))
    if nano and (quota or period):
        raise bad_parameter(
            "Conflicting options: Nano CPUs and CPU "
            f"{'Quota' if quota else 'Period'} cannot both be set."
        )
    if nano < 0 or quota < 0:
        return 0
    if quota:
        nano = quota * NANOSECONDS // (period or 100_000)
    return max(1, nano * SHARES_PER_CORE // NANOSECONDS) if nano else 0


def read_restart(policy: Fields) -> RestartPolicy:
    """A restart policy. Raises ApiError."""
    name, most = policy.text("Name"), policy.number("MaximumRetryCount")
    condition = _RESTART.get(name)
    if condition is None:
        raise bad_parameter(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', "
            "'on-failure', or 'unless-stopped'"
        )
    if most and condition is not RestartCondition.ON_FAILURE:
        raise bad_parameter(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if most < 0:
        raise bad_parameter("invalid restart policy: maximum retry count cannot be negative")
    return RestartPolicy(condition, delay=0.1, max_attempts=most)


def read_health(check: Fields) -> HealthCheck:
    """A health check; durations are nanoseconds."""
    return HealthCheck(
        test=tuple(check.texts("Test")),
        interval=check.number("Interval") / NANOSECONDS,
        timeout=check.number("Timeout") / NANOSECONDS,
        start_period=check.number("StartPeriod") / NANOSECONDS,
        start_interval=check.number("StartInterval") / NANOSECONDS,
        retries=check.number("Retries"),
    )


def _logging(config: Fields) -> LogConfig:
    return LogConfig(config.text("Type"), config.labels("Config"))


class _Security:
    """Docker's security options."""

    def __init__(self) -> None:
        self.seccomp = self.apparmor = ""
        self.new_privileges = True

    @classmethod
    def read(cls, options: Iterable[str]) -> _Security:
        """Raises ApiError for an unknown option."""
        found = cls()
        for option in options:
            name, separator, value = option.partition("=")
            if not separator:
                name, _, value = option.partition(":")
            match name:
                case "no-new-privileges":
                    found.new_privileges = value.lower() in ("false", "0")
                case "seccomp":
                    found.seccomp = "" if value in ("builtin", "default") else value
                case "apparmor":
                    found.apparmor = value
                case "label" | "systempaths":
                    pass
                case _:
                    raise bad_parameter(f"invalid --security-opt 2: {option!r}")
        return found


def _device(device: Fields) -> str:
    source = device.text("PathOnHost")
    target = device.text("PathInContainer") or source
    return f"{source}:{target}:{device.text('CgroupPermissions') or 'rwm'}"


def _devices(host: Fields) -> tuple[GenericResource, ...]:
    """GPUs, as `docker run --gpus` requests them."""
    found = []
    for request in host.items("DeviceRequests"):
        names, count = request.texts("DeviceIDs"), request.number("Count")
        driver = request.text("Driver")
        if driver not in ("", "nvidia", "amd"):
            raise bad_parameter(f'could not select device driver "{driver}"')
        if names:
            found.append(GenericResource("gpu", len(names), tuple(names)))
        else:
            found.append(GenericResource("gpu", max(count, 1), every=count < 0))
    return tuple(found)


def _storage_size(options: Mapping[str, str]) -> int:
    text = options.get("size", "")
    if not text:
        return 0
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)i?b?", text.lower())
    if found is None:
        raise bad_parameter(f"invalid storage option size={text}")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2]]


def _ports(body: Fields, host: Fields, exposed: Iterable[str]) -> tuple[PortSpec, ...]:
    """Published ports; 0 is chosen by a manager."""
    found: list[PortSpec] = []
    for text, bindings in host.mapping("PortBindings").items():
        for inside in _port_range(text):
            if bindings is None:
                continue
            if not isinstance(bindings, list):
                raise bad_parameter(f"invalid JSON: PortBindings of {text} must be a list")
            for binding in bindings or [{}]:
                fields = Fields(binding, "PortBindings")
                _check_address(fields.text("HostIp"))
                found.append(replace(inside, published=_published(fields.text("HostPort"))))
    if host.flag("PublishAllPorts"):
        taken = {(port.target, port.protocol) for port in found}
        for text in dict.fromkeys((*exposed, *body.mapping("ExposedPorts"))):
            for port in _port_range(text):
                if (port.target, port.protocol) not in taken:
                    taken.add((port.target, port.protocol))
                    found.append(port)
    # Docker's clients bind a port once for IPv4 and once for IPv6.
    return tuple(dict.fromkeys(found))


def _check_address(address: str) -> None:
    if address not in ("", "0.0.0.0", "::"):
        raise bad_parameter(
            f"a port cannot be published on the address {address} alone: the container may run on "
            "any node, and its port is published on all addresses; leave the address out"
        )


def _published(text: str) -> int:
    first = text.partition("-")[0]  # of a range, any is good: the first
    if not first:
        return 0
    if not (first.isascii() and first.isdecimal()) or int(first) > 65535:
        raise bad_parameter(f"invalid port specification: {text!r}")
    return int(first)


def _port_range(text: str) -> list[PortSpec]:
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(\w+))?", text, re.ASCII)
    if found is None:
        raise bad_parameter(f"invalid port specification: {text!r}")
    first, last = int(found[1]), int(found[2] or found[1])
    protocol = (found[3] or "tcp").upper()
    if not 1 <= first <= last <= 65535 or protocol not in Protocol.__members__:
        raise bad_parameter(f"invalid port specification: {text!r}")
    kind = Protocol[protocol]
    return [PortSpec(0, number, kind) for number in range(first, last + 1)]


def _mounts(body: Fields, host: Fields) -> Iterable[MountSpec]:
    targets = set()
    for text in host.texts("Binds"):
        mount = read_bind(text)
        targets.add(mount.target)
        yield mount
    for each in host.items("Mounts"):
        mount = read_mount(each)
        targets.add(mount.target)
        yield mount
    for target in body.mapping("Volumes"):
        if target not in targets:
            yield MountSpec(target=target)


def read_bind(text: str) -> MountSpec:
    """`/path:/target[:options]` or `volume:/target[:options]`. Raises ApiError."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts[:2]) or not parts[1].startswith("/"):
        raise bad_parameter(f"invalid volume specification: '{text}'")
    bind = parts[0].startswith("/")
    mount = MountSpec(
        type=MountType.BIND if bind else MountType.VOLUME,
        source=parts[0],
        target=parts[1],
        create_source=bind,
    )
    for option in filter(None, (parts[2] if len(parts) == 3 else "").split(",")):
        if option == "ro":
            mount = replace(mount, read_only=True)
        elif option == "nocopy":
            mount = replace(mount, no_copy=True)
        elif option in PROPAGATIONS and bind:
            mount = replace(mount, propagation=option)
        elif option not in ("rw", "z", "Z", "consistent", "cached", "delegated", "copy"):
            raise bad_parameter(f"invalid mode: {parts[2]}")
    return mount


def read_mount(mount: Fields) -> MountSpec:
    """An entry of `Mounts`, of a container or a service. Raises ApiError."""
    kind = mount.text("Type") or "volume"
    if kind not in ("bind", "volume", "tmpfs"):
        raise bad_parameter(f"mount type unknown: {kind!r}")
    target = mount.text("Target")
    if not target.startswith("/"):
        raise bad_parameter(
            f"invalid mount config for type {kind!r}: "
            + (
                "invalid mount path: must be absolute"
                if target
                else "field Target must not be empty"
            )
        )
    bind, volume = mount.object("BindOptions"), mount.object("VolumeOptions")
    memory, driver = mount.object("TmpfsOptions"), volume.object("DriverConfig")
    source = mount.text("Source")
    if kind == "bind" and not source.startswith("/"):
        raise bad_parameter(
            f"invalid mount config for type {kind!r}: "
            + (
                f"invalid mount path: '{source}' mount path must be absolute"
                if source
                else "field Source must not be empty"
            )
        )
    return MountSpec(
        type=MountType[kind.upper()],
        source=source,
        target=target,
        read_only=mount.flag("ReadOnly"),
        propagation=bind.text("Propagation"),
        non_recursive=bind.flag("NonRecursive"),
        create_source=bind.flag("CreateMountpoint"),
        no_copy=volume.flag("NoCopy"),
        driver="" if driver.text("Name") == "local" else driver.text("Name"),
        options=driver.labels("Options"),
        labels=volume.labels("Labels"),
        tmpfs_size=memory.number("SizeBytes"),
        tmpfs_mode=memory.number("Mode"),
        subpath=volume.text("Subpath"),
    )


def _networks(body: Fields, host: Fields) -> tuple[NetworkAttachment, ...]:
    mode = host.text("NetworkMode")
    endpoints = body.object("NetworkingConfig").mapping("EndpointsConfig")
    if mode.startswith(CONTAINER_NETWORK) or mode in ("none", "host"):
        return (NetworkAttachment(mode),)
    if body.flag("NetworkDisabled"):
        return (NetworkAttachment("none"),)
    names = dict.fromkeys([network_name(mode), *map(network_name, endpoints)])
    if len(names) > 1 and mode in DEFAULT_NETWORKS:
        # Clients that name their networks in the endpoints alone mean these.
        names.pop(network_name(mode), None)
    by_name = {network_name(name): Fields(each, name) for name, each in endpoints.items()}
    mac = body.text("MacAddress")
    found = [
        read_attachment(name, by_name.get(name, Fields({})), mac if number == 0 else "")
        for number, name in enumerate(names)
    ]
    if found == [NetworkAttachment(network_name(""))]:
        return ()
    return tuple(found)


def network_name(name: str) -> str:
    """Our name of a network in a request; that of the cluster's default network for Docker's."""
    return "default" if name in DEFAULT_NETWORKS else name


def read_attachment(name: str, endpoint: Fields, mac: str = "") -> NetworkAttachment:
    """An entry of `EndpointsConfig`."""
    own = endpoint.object("IPAMConfig")
    four, six = own.text("IPv4Address"), own.text("IPv6Address")
    return NetworkAttachment(
        network=name,
        aliases=tuple(dict.fromkeys(filter(None, endpoint.texts("Aliases")))),
        ip=(four,) if four else (),
        ip6=(six,) if six else (),
        mac=endpoint.text("MacAddress") or mac,
        options=_text_options(endpoint.mapping("DriverOpts")),
    )


def _text_options(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items()}
