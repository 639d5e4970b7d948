# SPDX-License-Identifier: Apache-2.0
"""Keys of a service and their kinds (services.md, build.md, deploy.md of the specification)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from orchestrator.compose.schema import short_forms
from orchestrator.compose.schema.collection_kinds import KeyedList, ListOf, MapOf, Object, StringMap
from orchestrator.compose.schema.extension import X_ORC, X_ORC_KEYS
from orchestrator.compose.schema.value_kinds import (
    NUMBER,
    AnyMap,
    Boolean,
    BuildContext,
    Choice,
    Command,
    FileMode,
    Ignored,
    Kind,
    Number,
    Path,
    ReadContext,
    Text,
    Unsupported,
)
from orchestrator.compose.tree import ComposeError, List, Map, Node, Place, Scalar, hint, key_path
from orchestrator.model.formats import log_options
from orchestrator.model.names import check_hostname, check_name, parse_image
from orchestrator.model.units import parse_cpus, parse_duration, parse_memory
from orchestrator.model.validation import confinement
from orchestrator.model.validation.service_specs import known_signal, validate_constraints
from orchestrator.model.validation.shared_namespaces import OF_CONTAINER, OF_SERVICE

_DURATION = Text(parse_duration, "a duration")
SIZE = Text(parse_memory, "a size", also=NUMBER)
LIMITS_CPUS = Text(parse_cpus, "a number of cores", also=NUMBER)


def _constraint(text: str) -> None:
    validate_constraints([text], ())


def _count(text: str) -> None:
    if text not in ("all", "-1") and not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of devices or 'all'")


DEVICE: dict[str, Kind] = {
    "capabilities": ListOf(),
    "count": Text(_count, also=NUMBER),
    "driver": Text(),
    "device_ids": ListOf(),
    "options": Unsupported("leave it out"),
}
"""Keys of a device request."""


def _policy(*actions: str) -> Object:
    return Object(
        {
            "parallelism": Number(),
            "delay": _DURATION,
            "failure_action": Choice(actions),
            "monitor": _DURATION,
            "max_failure_ratio": Number(whole=False, most=1),
            "order": Choice(("stop-first", "start-first")),
        },
        "an update's policy",
    )


DEPLOY = Object(
    {
        "mode": Choice(("replicated", "global", "replicated-job", "global-job")),
        "replicas": Number(),
        "endpoint_mode": Choice(("vip", "dnsrr")),
        "labels": StringMap(),
        "placement": Object(
            {
                "constraints": ListOf(Text(_constraint), unique=False),
                "preferences": ListOf(
                    Object({"spread": Text()}, required=("spread",)), unique=False
                ),
                "max_replicas_per_node": Number(),
            },
            "a placement",
        ),
        "resources": Object(
            {
                "limits": Object(
                    {"cpus": LIMITS_CPUS, "memory": SIZE, "pids": Number(-1)}, "the limits"
                ),
                "reservations": Object(
                    {
                        "cpus": LIMITS_CPUS,
                        "memory": SIZE,
                        "pids": Ignored(Number(-1), "pids can be limited but not reserved"),
                        "generic_resources": ListOf(
                            Object(
                                {
                                    "discrete_resource_spec": Object(
                                        {"kind": Text(), "value": Number(1)},
                                        required=("kind", "value"),
                                    )
                                },
                                required=("discrete_resource_spec",),
                            )
                        ),
                        "devices": ListOf(Object(DEVICE, "a device", required=("capabilities",))),
                    },
                    "the reservations",
                ),
            },
            "the resources",
        ),
        "restart_policy": Object(
            {
                "condition": Choice(("none", "on-failure", "any", "unless-stopped")),
                "delay": _DURATION,
                "max_attempts": Number(),
                "window": _DURATION,
            },
            "a restart policy",
        ),
        "update_config": _policy("pause", "continue", "rollback"),
        "rollback_config": _policy("pause", "continue"),
    },
    "a deployment",
)

DURATION = Text(parse_duration, "a duration")


def _signal(text: str) -> None:
    if not known_signal(text):
        raise ValueError(f"stop signal {text!r} is unknown; write, for example, SIGTERM or SIGINT")


_PULL_POLICIES = re.compile(
    "always|never|build|if_not_present|missing|refresh|daily|weekly|every_([0-9]+[wdhms])+"
)


def _pull_policy(text: str) -> None:
    if not _PULL_POLICIES.fullmatch(text):
        raise ValueError(
            f"{text!r} is not one of always, missing, never, build, daily, weekly, every_2d"
        )


def _container_name(text: str) -> None:
    if not re.fullmatch("[a-zA-Z0-9][a-zA-Z0-9_.-]+", text):
        raise ValueError(f"{text!r} is not a valid name: at least two letters, digits or _.-")


def _restart(text: str) -> None:
    word, colon, count = text.partition(":")
    known = ("no", "always", "on-failure", "unless-stopped")
    if word not in known or (colon and (word != "on-failure" or not count.isdecimal())):
        raise ValueError(f"{text!r} is not one of no, always, on-failure[:N], unless-stopped")


def _link(text: str) -> None:
    name, colon, alias = text.partition(":")
    if colon and alias != name:
        raise ValueError(
            f"aliases of links are not supported; give {name!r} the alias {alias!r}: "
            f"networks: {{NAME: {{aliases: [{alias}]}}}}"
        )


def _volumes_from(text: str) -> None:
    name, _, mode = text.partition(":")
    if name == "container":
        raise ValueError(f"{text!r}: only volumes of services of the file can be shared")
    if mode not in ("", "ro", "rw"):
        raise ValueError(f"{text!r} is not of the form SERVICE[:ro]")


def _namespace(text: str, known: tuple[str, ...], instead: str) -> None:
    if text.startswith((OF_CONTAINER, OF_SERVICE)):
        raise ValueError(
            f"{text!r} is not supported: tasks of a stack may run on different nodes; run both "
            f"programs in one container{instead}"
        )
    if text not in known:
        raise ValueError(f"{text!r} is unknown; {hint(text, known)}")


def _pid(text: str) -> None:
    _namespace(text, ("host", "private"), ", or this one by 'orc run --pid container:NAME'")


def _ipc(text: str) -> None:
    if text == "none":
        raise ValueError("none is not supported; leave it out: /dev/shm is private by default")
    _namespace(
        text,
        ("host", "private", "shareable"),
        ", or this one by 'orc run --ipc container:NAME'",
    )


def check_service_name(text: str) -> None:
    """Raises ValueError for an invalid service name."""
    check_name(text, "service name")


def _port_key(entry: Map) -> object:
    protocol = entry.text("protocol", "tcp")
    return entry.text("target"), entry.text("published"), protocol, entry.text("host_ip")


PORT = Object(
    {
        "target": Number(1, most=65535),
        "published": Text(also=NUMBER),
        "protocol": Choice(("tcp", "udp"), {"sctp": "use tcp or udp"}),
        "host_ip": Text(),
        "mode": Choice(("ingress", "host")),
        "name": Ignored(Text()),
        "app_protocol": Ignored(Text()),
    },
    "a port",
    required=("target",),
)


def _with_absolute_source(mount: Map, at: str, reading: ReadContext) -> Map:
    """A mount in which the source of a bind is an absolute path."""
    source = mount.get("source")
    if mount.text("type") != "bind" or not isinstance(source, Scalar):
        return mount
    short_forms.note_relative(source.text, mount.place, at, reading)
    return mount.with_entries(source=replace(source, text=reading.path(source.text)))


MOUNT = Object(
    {
        "type": Choice(
            ("volume", "bind", "tmpfs"),
            {
                "npipe": "it is for Windows",
                "cluster": "use type volume with a volume of a plugin",
                "image": "build the files into the service's image",
            },
        ),
        "source": Text(),
        "target": Text(),
        "read_only": Boolean(),
        "consistency": Ignored(Text()),
        "bind": Object(
            {
                "propagation": Choice(short_forms.PROPAGATIONS),
                "create_host_path": Boolean(),
                "recursive": Choice(
                    ("enabled", "disabled"),
                    {
                        "readonly": "write enabled or disabled",
                        "writable": "write enabled or disabled",
                    },
                ),
                "selinux": Ignored(Choice(("z", "Z")), "Orc does not use SELinux labels"),
            },
            "a bind mount",
        ),
        "volume": Object(
            {"nocopy": Boolean(), "subpath": Text(), "labels": StringMap()}, "a volume's mount"
        ),
        "tmpfs": Object({"size": SIZE, "mode": FileMode()}, "a tmpfs"),
        "image": Unsupported("use a volume, bind or tmpfs mount"),
    },
    "a volume",
    required=("type", "target"),
    finish=_with_absolute_source,
)

GRANT = Object(
    {"source": Text(), "target": Text(), "uid": Text(), "gid": Text(), "mode": FileMode()},
    required=("source",),
)


def _grant_key(entry: Map) -> object:
    return entry.text("target") or entry.text("source")


HEALTHCHECK = Object(
    {
        "test": Command(shell=True),
        "interval": DURATION,
        "timeout": DURATION,
        "retries": Number(),
        "start_period": DURATION,
        "start_interval": DURATION,
        "disable": Boolean(),
    },
    "a health check",
)


def _with_command(hook: Map, at: str, _reading: ReadContext) -> Map:
    """A hook with a command. Raises ComposeError."""
    if not hook.texts("command"):
        message = "the command is empty; write, for example, [/bin/prepare]"
        raise ComposeError(hook.place_of("command"), key_path(at, "command"), message)
    return hook


HOOK = Object(
    {
        "command": Command(),
        "user": Text(),
        "privileged": Boolean(),
        "working_dir": Text(),
        "environment": StringMap(),
    },
    "a lifecycle hook",
    required=("command",),
    finish=_with_command,
)

NETWORK_OF_SERVICE = Object(
    {
        "aliases": ListOf(Text(check_hostname)),
        "ipv4_address": Text(),
        "ipv6_address": Text(),
        "mac_address": Text(),
        "link_local_ips": Unsupported("a container has one IPv4 and one IPv6 address per network"),
        "priority": Ignored(
            Number(whole=False, least=float("-inf")),
            "networks are attached in file order",
        ),
        "gw_priority": Unsupported("the first network in the file is the default gateway"),
        "interface_name": Unsupported("interfaces are named eth0, eth1, … in file order"),
        "driver_opts": Unsupported("set options of the network under networks"),
    },
    "a service's network",
)

DEPENDENCY = Object(
    {
        "condition": Choice(
            ("service_started", "service_healthy", "service_completed_successfully")
        ),
        "required": Boolean(),
        "restart": Ignored(Boolean(), "dependents are not restarted together with a service"),
    },
    "a dependency",
)


def _default_dependency(place: Place) -> Map:
    """The dependency for a service that is only named: wait until it has started."""
    condition = Scalar("service_started", place, False)
    return Map({"condition": condition, "required": Scalar("true", place)}, place)


@dataclass(frozen=True, slots=True)
class Logging(Object):
    """A logging driver and its options, which are not merged with those of another driver."""

    def merge(self, old: Node, new: Node) -> Node:
        if isinstance(old, Map) and isinstance(new, Map):
            drivers = {old.text("driver"), new.text("driver")} - {""}
            if len(drivers) > 1:
                return new
        return Object.merge(self, old, new)


@dataclass(frozen=True, slots=True)
class Gpus(ListOf):
    """Requests for GPUs: `all`, or a list."""

    def read(self, node: Node, at: str, reading: ReadContext) -> Node | None:
        if isinstance(node, Scalar) and node.text == "all":
            count = Map({"count": Scalar("all", node.place, False)}, node.place)
            node = List((count,), node.place)
        return ListOf.read(self, node, at, reading)


WATCH = Object(
    {
        "path": Path(),
        "action": Choice(("rebuild", "sync", "restart", "sync+restart", "sync+exec")),
        "target": Text(),
        "ignore": ListOf(),
        "include": ListOf(),
        "initial_sync": Boolean(),
        "exec": AnyMap(),
    },
    "a watch",
    required=("path", "action"),
)

ULIMITS = MapOf(
    Object(
        {"soft": Number(-1), "hard": Number(-1)},
        short=short_forms.ulimit,
        required=("soft", "hard"),
    )
)

BUILD = Object(
    {
        "context": BuildContext(),
        "dockerfile": Text(),
        "dockerfile_inline": Text(),
        "args": StringMap(),
        "target": Text(),
        "labels": StringMap(),
        "tags": ListOf(Text(parse_image)),
        "network": Choice(("default", "host", "none")),
        "extra_hosts": StringMap("=:", many=True, valued=True),
        "no_cache": Boolean(),
        "pull": Boolean(),
        "platforms": ListOf(Text()),
        "cache_from": Ignored(ListOf(), "nodes use their own build caches"),
        "cache_to": Ignored(ListOf(), "nodes use their own build caches"),
        "additional_contexts": Unsupported("copy the files into the context"),
        "ssh": Unsupported("use a build secret ('orc build --secret')"),
        "secrets": Unsupported(
            "build the image with 'orc build --secret' and refer to it by image"
        ),
        "isolation": Unsupported("it is for Windows", ("default",)),
        "privileged": Unsupported("builds are unprivileged", ("false",)),
        "entitlements": Unsupported("builds are unprivileged"),
        "shm_size": Text(parse_memory, "a size", also=(int,)),
        "ulimits": ULIMITS,
        "provenance": Ignored(Text(also=(bool,)), "images are built without attestations"),
        "sbom": Ignored(Text(also=(bool,)), "images are built without attestations"),
    },
    "a build",
    short=short_forms.build,
)

SERVICE = Object(
    {
        "image": Text(parse_image),
        "build": BUILD,
        "pull_policy": Ignored(Text(_pull_policy), "nodes pull images by digest, once"),
        "platform": Text(),
        "command": Command(),
        "entrypoint": Command(),
        "environment": StringMap(),
        "env_file": KeyedList(
            Object(
                {"path": Path(), "required": Boolean(), "format": Choice(("raw",))},
                "an env file",
                required=("path",),
            ),
            short_forms.env_files,
            lambda entry: entry.text("path"),
            single=True,
        ),
        "extends": Object(
            {"service": Text(), "file": Path()}, short=short_forms.extends, required=("service",)
        ),
        "profiles": ListOf(),
        "depends_on": MapOf(DEPENDENCY, check_service_name, names=True, listed=_default_dependency),
        "deploy": DEPLOY,
        "scale": Number(),
        "restart": Text(_restart),
        "ports": KeyedList(PORT, short_forms.ports, _port_key),
        "expose": Ignored(ListOf(Text(also=NUMBER))),
        "networks": MapOf(NETWORK_OF_SERVICE, names=True),
        "network_mode": Text(),
        "links": ListOf(Text(_link)),
        "external_links": Unsupported("attach both services to a network"),
        "hostname": Text(),
        "domainname": Text(),
        "mac_address": Unsupported("set it per network: networks: {NAME: {mac_address: …}}"),
        "dns": ListOf(single=True),
        "dns_search": ListOf(single=True),
        "dns_opt": ListOf(),
        "extra_hosts": StringMap("=:", many=True),
        "volumes": KeyedList(MOUNT, short_forms.volumes, lambda entry: entry.text("target")),
        "volumes_from": ListOf(Text(_volumes_from)),
        "tmpfs": ListOf(Text(confinement.parse_tmpfs), single=True),
        "secrets": KeyedList(GRANT, short_forms.grants, _grant_key),
        "configs": KeyedList(GRANT, short_forms.grants, _grant_key),
        "healthcheck": HEALTHCHECK,
        "labels": StringMap(),
        "label_file": ListOf(Path(), single=True),
        "annotations": StringMap(),
        "logging": Logging(
            {
                "driver": Choice(log_options.DRIVERS, log_options.UNSUPPORTED),
                "options": MapOf(Text(also=NUMBER)),
            },
            "logging",
        ),
        "stop_grace_period": DURATION,
        "stop_signal": Text(_signal),
        "user": Text(),
        "group_add": ListOf(Text(also=NUMBER)),
        "working_dir": Text(),
        "stdin_open": Boolean(),
        "tty": Boolean(),
        "init": Boolean(),
        "read_only": Boolean(),
        "privileged": Boolean(),
        "cap_add": ListOf(Text(confinement.parse_capability)),
        "cap_drop": ListOf(Text(confinement.parse_capability)),
        "security_opt": ListOf(),
        "userns_mode": Text(),
        "devices": KeyedList(
            Object(
                {"source": Text(), "target": Text(), "permissions": Text()}, required=("source",)
            ),
            short_forms.devices,
            lambda entry: entry.text("target") or entry.text("source"),
        ),
        "sysctls": StringMap(check=confinement.check_sysctl),
        "ulimits": ULIMITS,
        "shm_size": SIZE,
        "runtime": Text(),
        "oom_score_adj": Number(-1000, most=1000),
        "cpus": LIMITS_CPUS,
        "cpu_shares": Number(),
        "cpuset": Text(confinement.check_cpus),
        "mem_limit": SIZE,
        "mem_reservation": SIZE,
        "memswap_limit": Text(also=NUMBER),
        "pids_limit": Number(-1),
        "storage_opt": MapOf(Text(also=NUMBER)),
        "container_name": Ignored(Text(_container_name), "tasks are named SERVICE.SLOT"),
        "attach": Ignored(Boolean(), "use 'orc service logs -f'"),
        "develop": Ignored(Object({"watch": ListOf(WATCH)}), "it is for 'docker compose watch'"),
        "blkio_config": Unsupported("Orc does not limit block I/O"),
        "cgroup": Unsupported("each container has its own cgroup namespace", ("private",)),
        "cgroup_parent": Unsupported("containers are in Orc's cgroup"),
        "cpu_count": Unsupported("it is for Windows; use cpus"),
        "cpu_percent": Unsupported("it is for Windows; use cpus"),
        "cpu_period": Unsupported("use cpus, such as 0.5 for half a core"),
        "cpu_quota": Unsupported("use cpus, such as 0.5 for half a core"),
        "cpu_rt_period": Unsupported("Orc has no real-time scheduling"),
        "cpu_rt_runtime": Unsupported("Orc has no real-time scheduling"),
        "credential_spec": Unsupported("it is for Windows"),
        "device_cgroup_rules": Unsupported("list the devices under devices"),
        "gpus": Gpus(Object(DEVICE, "GPUs")),
        "ipc": Text(_ipc),
        "isolation": Unsupported("it is for Windows", ("default",)),
        "mem_swappiness": Unsupported("containers have no swap by default; use memswap_limit"),
        "models": Unsupported("run the model as a service"),
        "oom_kill_disable": Unsupported(
            "containers over their memory limit are killed", ("false",)
        ),
        "pid": Text(_pid),
        "pre_start": Unsupported(
            "run it as a separate service and depend on it with service_completed_successfully"
        ),
        "post_start": ListOf(HOOK, unique=False),
        "pre_stop": ListOf(HOOK, unique=False),
        "provider": Unsupported("Orc runs containers only"),
        "pull_refresh_after": Ignored(Text(), "'orc stack deploy' resolves tags each time"),
        "use_api_socket": Unsupported("nodes have no Docker socket"),
        "uts": Unsupported("each container has its own UTS namespace"),
        X_ORC: X_ORC_KEYS,
    },
    "a service",
)
