# SPDX-License-Identifier: Apache-2.0
"""Conversion of a service to the spec of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from orchestrator.compose.schema.value_kinds import ReadContext
from orchestrator.compose.tree import ComposeError, List, Map, Scalar, key_path
from orchestrator.model.formats import log_options
from orchestrator.model.formats.cdi_names import is_cdi
from orchestrator.model.formats.generic_resources import parse_generic
from orchestrator.model.hooks import POST_START, PRE_STOP, Hook
from orchestrator.model.names import parse_image
from orchestrator.model.placement import GenericResource
from orchestrator.model.specs import (
    ContainerSpec,
    HealthCheck,
    LogConfig,
    PortSpec,
    Protocol,
    PublishMode,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    Ulimit,
)
from orchestrator.model.units import parse_cpus, parse_duration, parse_memory
from orchestrator.model.validation import confinement
from orchestrator.model.validation.job_specs import DEFAULT_RETRIES

_ANYWHERE = ("", "0.0.0.0", "::")
_RESTARTS = {
    "no": RestartCondition.NONE,
    "none": RestartCondition.NONE,
    "always": RestartCondition.ANY,
    "any": RestartCondition.ANY,
    "on-failure": RestartCondition.ON_FAILURE,
    "unless-stopped": RestartCondition.UNLESS_STOPPED,
}


def container_of(
    service: Map, at: str, image: str, profiles: Mapping[str, str], reading: ReadContext
) -> ContainerSpec:
    """The container's spec without mounts. `profiles` is the content of its seccomp profiles, by
    name. Raises ComposeError."""
    spec = ContainerSpec(
        image=str(parse_image(image)),
        entrypoint=_entrypoint(service, "entrypoint"),
        command=service.texts("command"),
        env=_environment(service),
        user=service.text("user"),
        workdir=service.text("working_dir"),
        hostname=service.text("hostname"),
        labels=service.pairs("labels"),
        annotations=service.pairs("annotations"),
        stop_signal=service.text("stop_signal"),
        stop_grace=parse_duration(service.text("stop_grace_period", "10s")),
        read_only=service.flag("read_only"),
        pids_limit=_pids(service, at),
        tty=service.flag("tty"),
        open_stdin=service.flag("stdin_open"),
        domainname=service.text("domainname"),
        hosts=_hosts(service, at),
        dns=service.texts("dns"),
        dns_search=service.texts("dns_search"),
        dns_options=service.texts("dns_opt"),
        groups=service.texts("group_add"),
        cap_add=tuple(map(confinement.parse_capability, service.texts("cap_add"))),
        cap_drop=tuple(map(confinement.parse_capability, service.texts("cap_drop"))),
        privileged=service.flag("privileged"),
        devices=_devices(service, at),
        sysctls=service.pairs("sysctls"),
        ulimits=ulimits_of(service, at),
        shm_size=_size(service, "shm_size"),
        tmpfs=service.texts("tmpfs"),
        init=service.flag("init"),
        oom_score_adj=int(service.text("oom_score_adj", "0")),
        cpuset_cpus=service.text("cpuset"),
        memory_swap=_swap(service, at),
        userns=service.text("userns_mode"),
        runtime=service.text("runtime"),
        pid=service.text("pid"),
        ipc=service.text("ipc"),
        storage_size=_storage(service, at),
        health=_health(service, at),
        logging=_logging(service, at),
        post_start=_hooks(service, POST_START),
        pre_stop=_hooks(service, PRE_STOP),
    )
    return _with_security(spec, service, at, profiles, reading)


def _entrypoint(service: Map, key: str) -> tuple[str, ...]:
    """The entrypoint. An empty one overrides the image's with none."""
    found = service.get(key)
    return (service.texts(key) or ("",)) if isinstance(found, List) else ()


def _environment(service: Map) -> tuple[str, ...]:
    """The variables that have a value; others come from the image."""
    entries = service.section("environment").entries.items()
    found = [(key, node) for key, node in entries if isinstance(node, Scalar) and not node.is_null]
    return tuple(f"{key}={node.text}" for key, node in found)


def _hooks(service: Map, key: str) -> tuple[Hook, ...]:
    hooks = (cast(Map, each) for each in service.items_of(key))
    return tuple(
        Hook(
            command=hook.texts("command"),
            user=hook.text("user"),
            privileged=hook.flag("privileged"),
            workdir=hook.text("working_dir"),
            env=tuple(_variables(hook)),
        )
        for hook in hooks
    )


def _variables(hook: Map) -> Iterator[str]:
    """A hook's variables; one without a value is unset, as in Compose."""
    for key, node in hook.section("environment").entries.items():
        if isinstance(node, Scalar):
            yield key if node.is_null else f"{key}={node.text}"


def _size(section: Map, key: str) -> int:
    text = section.text(key)
    return parse_memory(text) if text else 0


def _swap(service: Map, at: str) -> int:
    text = service.text("memswap_limit")
    if text in ("", "-1"):
        return int(text or 0)
    try:
        return parse_memory(text, "memory swap")
    except ValueError as error:
        raise ComposeError(
            service.place_of("memswap_limit"), key_path(at, "memswap_limit"), str(error)
        ) from None


def _storage(service: Map, at: str) -> int:
    options = service.pairs("storage_opt")
    for key, value in options.items():
        if key != "size":
            message = f"storage option {key!r} is unknown; use size"
            raise ComposeError(
                service.place_of("storage_opt"), key_path(at, "storage_opt"), message
            )
        try:
            return parse_memory(value)
        except ValueError as error:
            raise ComposeError(
                service.place_of("storage_opt"), key_path(at, "storage_opt"), str(error)
            ) from None
    return 0


def _hosts(service: Map, at: str) -> tuple[str, ...]:
    found = []
    for name, addresses in service.pairs("extra_hosts").items():
        for address in addresses.split(","):
            place, where = service.place_of("extra_hosts"), key_path(at, "extra_hosts")
            if address == "host-gateway":
                message = f"{name}: host-gateway is not supported in a cluster; write an address"
                raise ComposeError(place, where, message)
            try:
                found.append(confinement.parse_host(f"{name}:{address}"))
            except ValueError as error:
                raise ComposeError(place, where, str(error)) from None
    return tuple(found)


def _devices(service: Map, at: str) -> tuple[str, ...]:
    found = []
    for index, each in enumerate(service.items_of("devices")):
        entry = cast(Map, each)
        source, where = entry.text("source"), key_path(f"{at}.devices", index)
        if is_cdi(source):
            found.append(source)
            continue
        target, access = entry.text("target", source), entry.text("permissions", "rwm")
        try:
            found.append(str(confinement.parse_device(f"{source}:{target}:{access}")))
        except ValueError as error:
            raise ComposeError(entry.place, where, str(error)) from None
    return tuple(found)


def ulimits_of(service: Map, at: str) -> tuple[Ulimit, ...]:
    """The `ulimits` of a service, or of its build. Raises ComposeError."""
    found = []
    section = service.section("ulimits")
    for name, value in section.entries.items():
        entry = cast(Map, value)
        limit = Ulimit(name, int(entry.text("soft")), int(entry.text("hard")))
        try:
            found.append(confinement.checked_ulimit(limit))
        except ValueError as error:
            raise ComposeError(entry.place, key_path(f"{at}.ulimits", name), str(error)) from None
    return tuple(found)


def _pids(service: Map, at: str) -> int:
    own = service.text("pids_limit")
    limits = service.section("deploy").section("resources").section("limits")
    return int(_either(service, "pids_limit", own, limits.text("pids"), at) or 0)


def _either(
    service: Map,
    key: str,
    own: str,
    deployed: str,
    at: str,
    parse: Callable[[str], object] = int,
) -> str:
    """The value of a key or of its counterpart under deploy.resources. Raises ComposeError if both
    are set and differ."""
    if own and deployed and parse(own) != parse(deployed):
        message = f"{own} conflicts with {deployed} under deploy.resources; leave one out"
        raise ComposeError(service.place_of(key), key_path(at, key), message)
    return own or deployed


def resources_of(service: Map, at: str) -> tuple[Resources, Resources, int]:
    """Reservation, limit and CPU weight. Raises ComposeError."""
    resources = service.section("deploy").section("resources")
    limits, reserved = resources.section("limits"), resources.section("reservations")
    cpus = _either(service, "cpus", service.text("cpus"), limits.text("cpus"), at, parse_cpus)
    own = service.text("mem_limit")
    most = _either(service, "mem_limit", own, limits.text("memory"), at, parse_memory)
    own = service.text("mem_reservation")
    memory = _either(service, "mem_reservation", own, reserved.text("memory"), at, parse_memory)
    reservation = Resources(
        parse_cpus(reserved.text("cpus", "0")), parse_memory(memory) if memory else 0
    )
    limit = Resources(parse_cpus(cpus or "0"), parse_memory(most) if most else 0)
    return reservation, limit, int(service.text("cpu_shares", "0"))


def generic_of(service: Map, at: str, reading: ReadContext) -> tuple[GenericResource, ...]:
    """A service's generic resources. A device request becomes one, named after its first
    capability, such as `gpu`."""
    reserved = service.section("deploy").section("resources").section("reservations")
    found = []
    for each in reserved.items_of("generic_resources"):
        one = cast(Map, each).section("discrete_resource_spec")
        found.append(GenericResource(one.text("kind"), int(one.text("value"))))
    requests = [
        *((f"{at}.gpus[{i}]", each) for i, each in enumerate(service.items_of("gpus"))),
        *(
            (f"{at}.deploy.resources.reservations.devices[{i}]", each)
            for i, each in enumerate(reserved.items_of("devices"))
        ),
    ]
    for where, each in requests:
        entry = cast(Map, each)
        kind, *others = entry.texts("capabilities") or ("gpu",)
        if others or entry.text("driver"):
            message = f"only the capability {kind} is used ('orc agent --generic-resource')"
            reading.note(entry.place, where, message)
        found.append(_device_request(kind, entry, where))
    return tuple(found)


def _device_request(kind: str, entry: Map, at: str) -> GenericResource:
    """Devices of a kind: a count, or those with the given IDs; all by default, as in Compose."""
    names, count = entry.texts("device_ids"), entry.text("count")
    if names and count:
        raise ComposeError(entry.place, at, "count and device_ids exclude each other")
    value = f"device={','.join(names)}" if names else count or "all"
    try:
        return parse_generic(f"{kind}={'all' if value == '-1' else value}")
    except ValueError as error:
        raise ComposeError(entry.place, at, str(error)) from None


def restart_of(service: Map, mode: ServiceMode, completes: bool) -> RestartPolicy:
    """A service's restart policy. By default, jobs and services that others wait for to complete
    restart on failure only."""
    policy = service.section("deploy").section("restart_policy")
    word, _, count = service.text("restart").partition(":")
    default = "on-failure" if completes or mode.is_job else "any"
    defaults = RestartPolicy(max_attempts=DEFAULT_RETRIES if mode.is_job else 0)
    return RestartPolicy(
        condition=_RESTARTS[policy.text("condition") or word or default],
        delay=parse_duration(policy.text("delay", f"{defaults.delay}s")),
        max_attempts=int(policy.text("max_attempts") or count or defaults.max_attempts),
        window=parse_duration(policy.text("window", "0")),
    )


def _health(service: Map, at: str) -> HealthCheck:
    section = service.section("healthcheck")
    if section.flag("disable"):
        return HealthCheck(test=("NONE",))
    test = section.texts("test")
    if test == ("NONE",):
        return HealthCheck(test=test)
    if test and test[0] not in ("CMD", "CMD-SHELL", "HTTP", "TCP", "GRPC"):
        raise ComposeError(
            section.place_of("test"),
            f"{at}.healthcheck.test",
            f"a test list begins with CMD, CMD-SHELL, HTTP, TCP, GRPC or NONE, not {test[0]!r}",
        )
    times: dict[str, Any] = {
        key: parse_duration(section.text(key, "0"))
        for key in ("interval", "timeout", "start_period", "start_interval")
    }
    return HealthCheck(test=test, retries=int(section.text("retries", "0")), **times)


def _with_security(
    spec: ContainerSpec, service: Map, at: str, profiles: Mapping[str, str], reading: ReadContext
) -> ContainerSpec:
    for index, option in enumerate(service.texts("security_opt")):
        place, where = service.items_of("security_opt")[index].place, f"{at}.security_opt[{index}]"
        key, _, value = option.replace(":", "=", 1).partition("=")
        if key == "seccomp":
            spec = replace(spec, seccomp=profiles.get(value, value))
        elif key == "no-new-privileges" and value in ("", "true", "false"):
            spec = replace(spec, new_privileges=value == "false")
        elif key == "apparmor" and value:
            spec = replace(spec, apparmor=value)
        elif key == "label":
            if value != "disable":
                reading.note(place, where, f"{option} is ignored: Orc does not use SELinux")
        else:
            message = (
                f"{option!r} is unknown; seccomp=FILE|unconfined, apparmor=PROFILE|unconfined, "
                "label=disable, no-new-privileges[:false] are"
            )
            raise ComposeError(place, where, message)
    return spec


def ports_of(service: Map, at: str) -> tuple[PortSpec, ...]:
    """The published ports. Raises ComposeError."""
    return tuple(
        port
        for index, each in enumerate(service.items_of("ports"))
        for port in _ports(cast(Map, each), key_path(f"{at}.ports", index))
    )


def _ports(entry: Map, at: str) -> list[PortSpec]:
    place, target, published = entry.place, int(entry.text("target")), entry.text("published")
    address = entry.text("host_ip")
    if address not in _ANYWHERE:
        message = f"host_ip {address} is not supported: ports are published at all addresses"
        raise ComposeError(entry.place_of("host_ip"), at, message)
    if not published:
        message = (
            f"the published port is missing; write, for example, {_suggestion(target)}:{target}"
        )
        raise ComposeError(place, at, message)
    if "-" in published:
        message = f"published {published} is a range; write one port, or the short form A-B:C-D"
        raise ComposeError(place, at, message)
    if not published.isdecimal() or not 1 <= int(published) <= 65535:
        raise ComposeError(place, at, f"published port {published!r} is not in 1-65535")
    mode = PublishMode[entry.text("mode", "ingress").upper()]
    return [PortSpec(int(published), target, Protocol[entry.text("protocol", "tcp").upper()], mode)]


def _suggestion(target: int) -> int:
    return target + 8000 if target < 1024 else target


def _logging(service: Map, at: str) -> LogConfig:
    section = service.section("logging")
    config = LogConfig(section.text("driver"), section.pairs("options"))
    for option, text in config.options.items():
        try:
            log_options.check(replace(config, options={option: text}))
        except ValueError as error:
            place = section.section("options").place_of(option)
            raise ComposeError(
                place, key_path(at, f"logging.options.{option}"), str(error)
            ) from None
    return config
