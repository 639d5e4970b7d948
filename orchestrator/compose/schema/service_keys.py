# SPDX-License-Identifier: Apache-2.0
"""The keys of a service (the compose specification's services.md, build.md and deploy.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from orchestrator.compose.schema import short_forms
from orchestrator.compose.schema.collection_kinds import Entries, Keyed, Keys, Many, Pairs
from orchestrator.compose.schema.extension import KEY, OWN
from orchestrator.compose.schema.value_kinds import (
    NUMBER,
    AnyMap,
    BuildContext,
    Choice,
    FileMode,
    Kind,
    Noted,
    Number,
    Path,
    Reading,
    Refused,
    Text,
    Truth,
    Words,
)
from orchestrator.compose.tree import ComposeError, List, Map, Node, Place, Scalar, hint, within
from orchestrator.model.formats import log_options
from orchestrator.model.names import check_hostname, check_name, parse_image
from orchestrator.model.units import parse_cpus, parse_duration, parse_memory
from orchestrator.model.validation import confinement
from orchestrator.model.validation.service_specs import known_signal, validate_constraints
from orchestrator.model.validation.shared_namespaces import OF_CONTAINER, OF_SERVICE

_DURATION = Text(parse_duration, "a length of time")
SIZE = Text(parse_memory, "a size", also=NUMBER)
LIMITS_CPUS = Text(parse_cpus, "a number of cores", also=NUMBER)


def _constraint(text: str) -> None:
    validate_constraints([text], ())


def _count(text: str) -> None:
    if text not in ("all", "-1") and not text.isdecimal():
        raise ValueError(f"{text!r} is not a number of devices, nor all")


DEVICE: dict[str, Kind] = {
    "capabilities": Many(),
    "count": Text(_count, also=NUMBER),
    "driver": Text(),
    "device_ids": Many(),
    "options": Refused("leave them out"),
}
"""What a task needs of devices."""


def _policy(*actions: str) -> Keys:
    return Keys(
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


DEPLOY = Keys(
    {
        "mode": Choice(("replicated", "global", "replicated-job", "global-job")),
        "replicas": Number(),
        "endpoint_mode": Choice(("vip", "dnsrr")),
        "labels": Pairs(),
        "placement": Keys(
            {
                "constraints": Many(Text(_constraint), unique=False),
                "preferences": Many(Keys({"spread": Text()}, required=("spread",)), unique=False),
                "max_replicas_per_node": Number(),
            },
            "a placement",
        ),
        "resources": Keys(
            {
                "limits": Keys(
                    {"cpus": LIMITS_CPUS, "memory": SIZE, "pids": Number(-1)}, "the limits"
                ),
                "reservations": Keys(
                    {
                        "cpus": LIMITS_CPUS,
                        "memory": SIZE,
                        "pids": Noted(Number(-1), "processes are limited, not reserved"),
                        "generic_resources": Many(
                            Keys(
                                {
                                    "discrete_resource_spec": Keys(
                                        {"kind": Text(), "value": Number(1)},
                                        required=("kind", "value"),
                                    )
                                },
                                required=("discrete_resource_spec",),
                            )
                        ),
                        "devices": Many(Keys(DEVICE, "a device", required=("capabilities",))),
                    },
                    "the reservations",
                ),
            },
            "the resources",
        ),
        "restart_policy": Keys(
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

DURATION = Text(parse_duration, "a length of time")


def _signal(text: str) -> None:
    if not known_signal(text):
        raise ValueError(f"stop signal {text!r} is unknown; write such as SIGTERM or SIGINT")


_PULLS = re.compile(
    "always|never|build|if_not_present|missing|refresh|daily|weekly|every_([0-9]+[wdhms])+"
)


def _pull_policy(text: str) -> None:
    if not _PULLS.fullmatch(text):
        raise ValueError(
            f"{text!r} is none of always, missing, never, build, daily, weekly, every_2d"
        )


def _container_name(text: str) -> None:
    if not re.fullmatch("[a-zA-Z0-9][a-zA-Z0-9_.-]+", text):
        raise ValueError(f"{text!r} is no name: letters, digits and _.-, two of them at least")


def _restart(text: str) -> None:
    word, colon, count = text.partition(":")
    known = ("no", "always", "on-failure", "unless-stopped")
    if word not in known or (colon and (word != "on-failure" or not count.isdecimal())):
        raise ValueError(f"{text!r} is none of no, always, on-failure[:N], unless-stopped")


def _link(text: str) -> None:
    name, colon, alias = text.partition(":")
    if colon and alias != name:
        raise ValueError(
            f"give {name!r} the alias {alias!r} instead: networks: {{NAME: {{aliases: [{alias}]}}}}"
        )


def _volumes_from(text: str) -> None:
    name, _, mode = text.partition(":")
    if name == "container":
        raise ValueError(f"{text!r}: only services of the file share their volumes")
    if mode not in ("", "ro", "rw"):
        raise ValueError(f"{text!r} is not of the form SERVICE[:ro]")


def _namespace(text: str, known: tuple[str, ...], instead: str) -> None:
    if text.startswith((OF_CONTAINER, OF_SERVICE)):
        raise ValueError(
            f"{text!r} is not supported: tasks of a stack may be on any nodes; run both programs "
            f"in one container{instead}"
        )
    if text not in known:
        raise ValueError(f"{text!r} is unknown; {hint(text, known)}")


def _pid(text: str) -> None:
    _namespace(text, ("host", "private"), ", or this one by 'orc run --pid container:NAME'")


def _ipc(text: str) -> None:
    if text == "none":
        raise ValueError("none is not supported; leave it out: /dev/shm is the container's")
    _namespace(
        text,
        ("host", "private", "shareable"),
        ", or this one by 'orc run --ipc container:NAME'",
    )


def check_service_name(text: str) -> None:
    """Refuse a name that no service can have. Raises ValueError."""
    check_name(text, "service name")


def _port_key(entry: Map) -> object:
    protocol = entry.text("protocol", "tcp")
    return entry.text("target"), entry.text("published"), protocol, entry.text("host_ip")


PORT = Keys(
    {
        "target": Number(1, most=65535),
        "published": Text(also=NUMBER),
        "protocol": Choice(("tcp", "udp"), {"sctp": "tcp and udp are published"}),
        "host_ip": Text(),
        "mode": Choice(("ingress", "host")),
        "name": Noted(Text()),
        "app_protocol": Noted(Text()),
    },
    "a port",
    required=("target",),
)


def _absolute(mount: Map, at: str, reading: Reading) -> Map:
    """A mount whose source, if it is a file or folder, has an absolute path."""
    source = mount.get("source")
    if mount.text("type") != "bind" or not isinstance(source, Scalar):
        return mount
    short_forms.note_relative(source.text, mount.place, at, reading)
    return mount.with_entries(source=replace(source, text=reading.path(source.text)))


MOUNT = Keys(
    {
        "type": Choice(
            ("volume", "bind", "tmpfs"),
            {
                "npipe": "it is of Windows",
                "cluster": "name a volume of a plugin with type volume",
                "image": "build what is needed into the service's own image",
            },
        ),
        "source": Text(),
        "target": Text(),
        "read_only": Truth(),
        "consistency": Noted(Text()),
        "bind": Keys(
            {
                "propagation": Choice(short_forms.PROPAGATIONS),
                "create_host_path": Truth(),
                "recursive": Choice(
                    ("enabled", "disabled"),
                    {
                        "readonly": "write enabled or disabled",
                        "writable": "write enabled or disabled",
                    },
                ),
                "selinux": Noted(
                    Choice(("z", "Z")), "this asks for nothing: Orc uses no SELinux labels"
                ),
            },
            "a bind mount",
        ),
        "volume": Keys(
            {"nocopy": Truth(), "subpath": Text(), "labels": Pairs()}, "a volume's mount"
        ),
        "tmpfs": Keys({"size": SIZE, "mode": FileMode()}, "a tmpfs"),
        "image": Refused("only volumes, binds and tmpfs are mounted"),
    },
    "a volume",
    required=("type", "target"),
    finish=_absolute,
)

GRANT = Keys(
    {"source": Text(), "target": Text(), "uid": Text(), "gid": Text(), "mode": FileMode()},
    required=("source",),
)


def _grant_key(entry: Map) -> object:
    return entry.text("target") or entry.text("source")


HEALTHCHECK = Keys(
    {
        "test": Words(shell=True),
        "interval": DURATION,
        "timeout": DURATION,
        "retries": Number(),
        "start_period": DURATION,
        "start_interval": DURATION,
        "disable": Truth(),
    },
    "a health check",
)


def _with_command(hook: Map, at: str, _reading: Reading) -> Map:
    """A hook that runs something. Raises ComposeError."""
    if not hook.texts("command"):
        words = "this is nothing; write what to run, such as [/bin/prepare]"
        raise ComposeError(hook.place_of("command"), within(at, "command"), words)
    return hook


HOOK = Keys(
    {
        "command": Words(),
        "user": Text(),
        "privileged": Truth(),
        "working_dir": Text(),
        "environment": Pairs(),
    },
    "a lifecycle hook",
    required=("command",),
    finish=_with_command,
)

NETWORK_OF_SERVICE = Keys(
    {
        "aliases": Many(Text(check_hostname)),
        "ipv4_address": Text(),
        "ipv6_address": Text(),
        "mac_address": Text(),
        "link_local_ips": Refused("a container has one address of each kind on a network"),
        "priority": Noted(
            Number(whole=False, least=float("-inf")),
            "networks are joined in the order in which they are named",
        ),
        "gw_priority": Refused("the way out is by the first network that is named"),
        "interface_name": Refused("interfaces are named eth0, eth1, … in the networks' order"),
        "driver_opts": Refused("give options to the network, under networks"),
    },
    "a service's network",
)

DEPENDENCY = Keys(
    {
        "condition": Choice(
            ("service_started", "service_healthy", "service_completed_successfully")
        ),
        "required": Truth(),
        "restart": Noted(Truth(), "what depends on a service is not restarted with it"),
    },
    "a dependency",
)


def _depended(place: Place) -> Map:
    """What a service in a list of dependencies is waited for."""
    condition = Scalar("service_started", place, False)
    return Map({"condition": condition, "required": Scalar("true", place)}, place)


@dataclass(frozen=True, slots=True)
class Logging(Keys):
    """Options of a log driver, which are not those of another driver in a later file."""

    def merge(self, old: Node, new: Node) -> Node:
        if isinstance(old, Map) and isinstance(new, Map):
            drivers = {old.text("driver"), new.text("driver")} - {""}
            if len(drivers) > 1:
                return new
        return Keys.merge(self, old, new)


@dataclass(frozen=True, slots=True)
class Gpus(Many):
    """Requests for GPUs: `all`, or a list."""

    def read(self, node: Node, at: str, reading: Reading) -> Node | None:
        if isinstance(node, Scalar) and node.text == "all":
            count = Map({"count": Scalar("all", node.place, False)}, node.place)
            node = List((count,), node.place)
        return Many.read(self, node, at, reading)


WATCH = Keys(
    {
        "path": Path(),
        "action": Choice(("rebuild", "sync", "restart", "sync+restart", "sync+exec")),
        "target": Text(),
        "ignore": Many(),
        "include": Many(),
        "initial_sync": Truth(),
        "exec": AnyMap(),
    },
    "a watch",
    required=("path", "action"),
)

ULIMITS = Entries(
    Keys(
        {"soft": Number(-1), "hard": Number(-1)},
        short=short_forms.ulimit,
        required=("soft", "hard"),
    )
)

BUILD = Keys(
    {
        "context": BuildContext(),
        "dockerfile": Text(),
        "dockerfile_inline": Text(),
        "args": Pairs(),
        "target": Text(),
        "labels": Pairs(),
        "tags": Many(Text(parse_image)),
        "network": Choice(("default", "host", "none")),
        "extra_hosts": Pairs("=:", many=True, valued=True),
        "no_cache": Truth(),
        "pull": Truth(),
        "platforms": Many(Text()),
        "cache_from": Noted(Many(), "the nodes' own build caches are used"),
        "cache_to": Noted(Many(), "the nodes' own build caches are used"),
        "additional_contexts": Refused("copy what is needed into the context"),
        "ssh": Refused("builds have no SSH agent; use a secret of 'orc build'"),
        "secrets": Refused("build it beforehand with 'orc build --secret', and name the image"),
        "isolation": Refused("it is of Windows", ("default",)),
        "privileged": Refused("builds are not privileged", ("false",)),
        "entitlements": Refused("builds are not privileged"),
        "shm_size": Text(parse_memory, "a size", also=(int,)),
        "ulimits": ULIMITS,
        "provenance": Noted(Text(also=(bool,)), "images are built without attestations"),
        "sbom": Noted(Text(also=(bool,)), "images are built without attestations"),
    },
    "a build",
    short=short_forms.build,
)

SERVICE = Keys(
    {
        "image": Text(parse_image),
        "build": BUILD,
        "pull_policy": Noted(
            Text(_pull_policy), "nodes fetch the image that the service's digest names"
        ),
        "platform": Text(),
        "command": Words(),
        "entrypoint": Words(),
        "environment": Pairs(),
        "env_file": Keyed(
            Keys(
                {"path": Path(), "required": Truth(), "format": Choice(("raw",))},
                "an env file",
                required=("path",),
            ),
            short_forms.env_files,
            lambda entry: entry.text("path"),
            single=True,
        ),
        "extends": Keys(
            {"service": Text(), "file": Path()}, short=short_forms.extends, required=("service",)
        ),
        "profiles": Many(),
        "depends_on": Entries(DEPENDENCY, check_service_name, names=True, listed=_depended),
        "deploy": DEPLOY,
        "scale": Number(),
        "restart": Text(_restart),
        "ports": Keyed(PORT, short_forms.ports, _port_key),
        "expose": Noted(Many(Text(also=NUMBER))),
        "networks": Entries(NETWORK_OF_SERVICE, names=True),
        "network_mode": Text(),
        "links": Many(Text(_link)),
        "external_links": Refused("put both services on one network, under networks"),
        "hostname": Text(),
        "domainname": Text(),
        "mac_address": Refused("write it at the network: networks: {NAME: {mac_address: …}}"),
        "dns": Many(single=True),
        "dns_search": Many(single=True),
        "dns_opt": Many(),
        "extra_hosts": Pairs("=:", many=True),
        "volumes": Keyed(MOUNT, short_forms.volumes, lambda entry: entry.text("target")),
        "volumes_from": Many(Text(_volumes_from)),
        "tmpfs": Many(Text(confinement.parse_tmpfs), single=True),
        "secrets": Keyed(GRANT, short_forms.grants, _grant_key),
        "configs": Keyed(GRANT, short_forms.grants, _grant_key),
        "healthcheck": HEALTHCHECK,
        "labels": Pairs(),
        "label_file": Many(Path(), single=True),
        "annotations": Pairs(),
        "logging": Logging(
            {
                "driver": Choice(log_options.DRIVERS, log_options.UNSUPPORTED),
                "options": Entries(Text(also=NUMBER)),
            },
            "logging",
        ),
        "stop_grace_period": DURATION,
        "stop_signal": Text(_signal),
        "user": Text(),
        "group_add": Many(Text(also=NUMBER)),
        "working_dir": Text(),
        "stdin_open": Truth(),
        "tty": Truth(),
        "init": Truth(),
        "read_only": Truth(),
        "privileged": Truth(),
        "cap_add": Many(Text(confinement.parse_capability)),
        "cap_drop": Many(Text(confinement.parse_capability)),
        "security_opt": Many(),
        "userns_mode": Text(),
        "devices": Keyed(
            Keys({"source": Text(), "target": Text(), "permissions": Text()}, required=("source",)),
            short_forms.devices,
            lambda entry: entry.text("target") or entry.text("source"),
        ),
        "sysctls": Pairs(check=confinement.check_sysctl),
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
        "storage_opt": Entries(Text(also=NUMBER)),
        "container_name": Noted(
            Text(_container_name), "tasks are named after their service and slot"
        ),
        "attach": Noted(Truth(), "'orc service logs -f' shows what a service prints"),
        "develop": Noted(Keys({"watch": Many(WATCH)}), "it is for 'docker compose watch'"),
        "blkio_config": Refused("Orc limits no block devices"),
        "cgroup": Refused("each container has a cgroup namespace of its own", ("private",)),
        "cgroup_parent": Refused("Orc has a cgroup of its own for containers"),
        "cpu_count": Refused("it is of Windows; write cpus"),
        "cpu_percent": Refused("it is of Windows; write cpus"),
        "cpu_period": Refused("write cpus: such as 0.5 for half a core"),
        "cpu_quota": Refused("write cpus: such as 0.5 for half a core"),
        "cpu_rt_period": Refused("Orc schedules nothing in real time"),
        "cpu_rt_runtime": Refused("Orc schedules nothing in real time"),
        "credential_spec": Refused("it is of Windows"),
        "device_cgroup_rules": Refused("name the devices, under devices"),
        "gpus": Gpus(Keys(DEVICE, "GPUs")),
        "ipc": Text(_ipc),
        "isolation": Refused("it is of Windows", ("default",)),
        "mem_swappiness": Refused("containers have no swap; memswap_limit gives them some"),
        "models": Refused("Orc runs no models; run them as a service"),
        "oom_kill_disable": Refused("a container over its memory limit is killed", ("false",)),
        "pid": Text(_pid),
        "pre_start": Refused(
            "run it as a service of its own, for which this one waits: depends_on with "
            "service_completed_successfully"
        ),
        "post_start": Many(HOOK, unique=False),
        "pre_stop": Many(HOOK, unique=False),
        "provider": Refused("Orc runs containers only"),
        "pull_refresh_after": Noted(Text(), "'orc stack deploy' looks tags up each time"),
        "use_api_socket": Refused("there is no daemon's socket on nodes"),
        "uts": Refused("each container has a hostname of its own"),
        KEY: OWN,
    },
    "a service",
)
