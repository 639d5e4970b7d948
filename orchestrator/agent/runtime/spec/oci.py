# SPDX-License-Identifier: Apache-2.0
"""From a container and the facts of its node to the OCI runtime's `config.json`. Pure.

Source: the OCI runtime-spec 1.0 (config.md, config-linux.md); where that leaves a choice, Docker's
defaults, so that an image behaves as its author saw it, with no new privileges besides.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from orchestrator.agent.runtime.interface import Container, Mount, RuntimeFailure
from orchestrator.agent.runtime.resources import cgroup_limits
from orchestrator.agent.runtime.spec import apparmor, privileges
from orchestrator.agent.runtime.spec.container_devices import DeviceNode
from orchestrator.agent.runtime.spec.etcfiles import ETC_FILES, hostname
from orchestrator.agent.runtime.spec.image_users import (
    User,
    UserTables,
    resolve_groups,
    resolve_user,
)
from orchestrator.agent.runtime.spec.node_facts import NodeFacts
from orchestrator.agent.runtime.spec.seccomp import SeccompProfile
from orchestrator.linux.priority import IO_PRIORITY
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.validation.confinement import parse_tmpfs
from orchestrator.model.validation.host_access import steers_runtime

_SHARED, _SLAVE = ("shared", "rshared"), ("slave", "rslave")


def merge_mounts(
    defaults: Iterable[dict[str, Any]], mounts: Sequence[Mount], *, idmapped: bool
) -> Any:
    """The default mounts of every container and its own ones, which replace a default one at the
    same path, in an order in which none hides another.

    `idmapped`: the container has a user namespace, and its volumes are mounted through its
    mapping, so that files of the container's user 0 are stored with owner 0.
    """
    own = sorted(mounts, key=lambda mount: _mount_depth(mount.target))
    taken = {posixpath.normpath(mount.target) for mount in own}
    kept = [each for each in defaults if each["destination"] not in taken]
    return kept + [mount_entry(mount, idmapped=idmapped) for mount in own]


def mount_entry(mount: Mount, *, idmapped: bool) -> dict[str, Any]:
    """One mount, as `config.json` has it."""
    target = posixpath.normpath(mount.target)
    if not mount.source:
        options = [*mount.tmpfs, "nosuid", "nodev", *(["ro"] if mount.read_only else [])]
        return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}
    if mount.exact:
        options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]
        return {"destination": target, "type": "bind", "source": mount.source, "options": options}
    options = ["rbind" if mount.recursive else "bind", mount.propagation or "rprivate"]
    if mount.read_only:
        options += ["ro", "rro"] if mount.recursive else ["ro"]
    else:
        options.append("rw")
    options += mount.flags
    if idmapped and mount.owned:
        options.append("idmap")
    return {"destination": target, "type": "bind", "source": mount.source, "options": options}


def root_propagation(mounts: Iterable[Mount]) -> str:
    """The propagation of the container's root that its mounts require; empty: the default."""
    wanted = {mount.propagation for mount in mounts}
    if wanted & set(_SHARED):
        return "rshared"
    return "rslave" if wanted & set(_SLAVE) else ""


def _mount_depth(target: str) -> tuple[int, str]:
    path = posixpath.normpath(target)
    return path.count("/"), path


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM = 64 << 20
"""Bytes of /dev/shm."""
INIT = "/dev/init"
"""Path of the `--init` program in the container: on a tmpfs, so that the root is not modified."""

_HARMLESS = ("nosuid", "noexec", "nodev")
_MOUNTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", "proc", _HARMLESS),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", (*_HARMLESS, "mode=1777")),
    ("/dev/mqueue", "mqueue", "mqueue", _HARMLESS),
    ("/sys", "sysfs", "sysfs", (*_HARMLESS, "ro")),
    ("/sys/fs/cgroup", "cgroup", "cgroup", (*_HARMLESS, "relatime", "ro")),
)
_SHM = "/dev/shm"
"""Belongs to an IPC namespace by convention only: unlike mqueue, it is an ordinary tmpfs."""
_HOST_ROOT_MOUNTS = (
    ("/run", (*_HARMLESS, "mode=755")),
    ("/tmp", ("nosuid", "nodev", "mode=1777")),
    ("/var/tmp", ("nosuid", "nodev", "mode=1777")),
)


@dataclass(frozen=True, slots=True)
class Places:
    """Host paths of a container's parts."""

    root: Path
    """The mount point of its root."""
    etc: Path
    """The folder that holds `ETC_FILES`."""
    cgroup: str
    """Its cgroup within each tree."""
    etc_names: tuple[str, ...] = ETC_FILES
    """Names of the files that are mounted."""
    secret: tuple[str, ...] = field(default=())
    """Folders of its root that are always masked, also when it is privileged."""
    shm: Path | None = None
    """The /dev/shm of another container to share."""


@dataclass(frozen=True, slots=True)
class OwnUsers:
    """A container's user namespace and network namespace: paths to join them by."""

    userns: str
    netns: str
    """The network namespace to join."""
    foreign: bool = False
    """Whether another user namespace owns the network namespace, so that the container cannot
    configure it."""


def arguments(container: Container) -> list[str]:
    """The process's argv. Raises RuntimeFailure when neither spec nor image has a command."""
    image = container.image.config
    argv = container.spec.container.arguments(image.entrypoint, image.command)
    if not argv or not argv[0]:
        raise RuntimeFailure("the image names no command; give one after the image's name")
    return argv


def environment(container: Container, home: str) -> list[str]:
    """`KEY=value` of the process: defaults, the node's, the image's, then the spec's; a later one
    wins, and a key alone in the spec unsets the variable."""
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname(container)}
    if container.spec.container.tty:
        variables["TERM"] = "xterm"
    for entry in (*container.env, *container.image.config.env, *container.spec.container.env):
        key, equals, value = entry.partition("=")
        if equals:
            variables[key] = value
        else:
            variables.pop(key, None)
    variables.setdefault("HOME", home)
    return [f"{key}={value}" for key, value in variables.items()]


_DEFAULT_PRIORITY = {
    "scheduler": {"policy": "SCHED_OTHER", "nice": 0},
    "ioPriority": IO_PRIORITY,
}


def workdir(container: Container) -> str:
    """The process's working folder, absolute; relative ones count from `/`."""
    chosen = container.spec.container.workdir or container.image.config.workdir
    return posixpath.normpath(posixpath.join("/", chosen)).replace("//", "/")


def process(
    container: Container, node: NodeFacts, user: User, groups: tuple[int, ...] = ()
) -> dict[str, Any]:
    """The first process (config.md, "Process"); `groups` are additional group ids."""
    spec = container.spec.container
    argv = arguments(container)
    profile = apparmor.profile(spec.apparmor, node.apparmor, privileged=spec.privileged)
    return {
        **(_DEFAULT_PRIORITY if node.custom_priority else {}),
        **({"apparmorProfile": profile} if profile else {}),
        "terminal": container.spec.container.tty,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": 0o022,
            "additionalGids": sorted({*user.groups, *groups}),
        },
        "args": [INIT, "--", *argv] if spec.init else argv,
        "env": environment(container, user.home),
        "cwd": workdir(container),
        "capabilities": privileges.capability_sets(
            privileges.capabilities(spec, node.capabilities), user.uid
        ),
        "noNewPrivileges": not (spec.new_privileges or spec.privileged),
        "oomScoreAdj": cgroup_limits.oom_score(container.spec, node),
        "rlimits": cgroup_limits.process_limits(spec, node),
    }


def namespaces(
    container: Container,
    users: OwnUsers | None = None,
    joined: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, str]]:
    """Namespaces of the container: new ones, except those that the spec shares with the node.
    `joined` has the paths of those shared with another container; the network namespace is joined
    where the network setup made one."""
    found = [{"type": "user", "path": users.userns}] if users is not None else []
    spec = container.spec.container
    hosts = {kind for kind, of in (("pid", spec.pid), ("ipc", spec.ipc)) if of == privileges.HOST}
    kinds = ("pid", "ipc", "uts", "mount", "cgroup")
    found += [{"type": kind} for kind in kinds if kind not in hosts]
    for each in found:
        if path := joined.get(each["type"]):
            each["path"] = path
    if container.host_network:
        return found
    network = {"type": "network"}
    if users is not None:
        network["path"] = users.netns
    elif container.netns is not None:
        network["path"] = str(container.netns)
    return [*found, network]


def runtime_annotations(container: Container) -> dict[str, str]:
    """Labels and annotations, for hooks and tools. A label never controls the OCI runtime; an
    annotation may, where the node's operator allows it."""
    labels = {key: text for key, text in container.labels.items() if not steers_runtime(key)}
    return {**labels, **container.spec.container.annotations, "orc.name": container.name}


def mounts(
    spec: ContainerSpec, node: NodeFacts, places: Places, devices: tuple[DeviceNode, ...]
) -> list[dict[str, Any]]:
    """Mounts in the root, in mount order, without the container's own ones."""
    found: list[dict[str, Any]] = []
    for where, kind, source, options in _MOUNTS:
        if spec.ipc == privileges.HOST and where == _SHM:
            found.append(_bind(where, Path(where), "rw"))
            continue
        if places.shm is not None and where == _SHM:
            found.append(_bind(where, places.shm, "rw"))
            continue
        given = list(options)
        if where == _SHM:
            given.append(f"size={spec.shm_size or DEFAULT_SHM}")
        if spec.privileged and where.startswith("/sys"):
            given.remove("ro")
        found.append({"destination": where, "type": kind, "source": source, "options": given})
    if spec.rootfs:
        found += [_tmpfs(where, options) for where, options in _HOST_ROOT_MOUNTS]
    found += [_bind(f"/etc/{name}", places.etc / name, "rw") for name in places.etc_names]
    found += [_bind(each.path, Path(each.source), "rw") for each in devices if each.source]
    if spec.init:
        found.append(_bind(INIT, node.init, "ro"))
    for text in spec.tmpfs:
        tmpfs = parse_tmpfs(text)
        found.append(_tmpfs(tmpfs.path, (*_HARMLESS, *tmpfs.options)))
    return found


def _bind(where: str, source: Path, access: str) -> dict[str, Any]:
    options = ["bind", "rprivate", access]
    return {"destination": where, "type": "bind", "source": str(source), "options": options}


def _tmpfs(where: str, options: tuple[str, ...]) -> dict[str, Any]:
    return {"destination": where, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def config(
    container: Container,
    node: NodeFacts,
    places: Places,
    files: UserTables,
    *,
    devices: tuple[DeviceNode, ...] = (),
    users: OwnUsers | None = None,
    joined: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """The complete runtime configuration except `linux.seccomp`, which `render` adds.

    `devices` are the requested ones as they are on the host; `users` is the container's user
    namespace, None for the host's users. Raises RuntimeFailure for errors that the user can fix.
    """
    spec = container.spec.container
    user = resolve_user(spec.user or container.image.config.user, files.passwd, files.group)
    groups = resolve_groups(spec.groups, files.group)
    linux = {
        "cgroupsPath": places.cgroup,
        "namespaces": namespaces(container, users, joined),
        "resources": cgroup_limits.resources(container.spec, node, devices),
        "devices": [each.node for each in devices if not each.source],
        "sysctl": privileges.sysctls(spec, network=users is None or not users.foreign),
        **privileges.paths(spec, places.secret),
    }
    if propagation := root_propagation(container.mounts):
        linux["rootfsPropagation"] = propagation
    defaults = mounts(spec, node, places, devices)
    return {
        "ociVersion": "1.0.2",
        "process": process(container, node, user, groups),
        "root": {"path": str(places.root), "readonly": spec.read_only or bool(spec.rootfs)},
        "hostname": hostname(container),
        "domainname": spec.domainname,
        "mounts": merge_mounts(defaults, container.mounts, idmapped=users is not None),
        "annotations": runtime_annotations(container),
        "linux": linux,
    }


def render(document: dict[str, Any], seccomp: SeccompProfile | None) -> str:
    """The text of `config.json`: the document with the pre-rendered seccomp part, if any."""
    if seccomp is None:
        return json.dumps(document, separators=(",", ":"))
    rest = {key: value for key, value in document.items() if key != "linux"}
    head = json.dumps(rest, separators=(",", ":"))[:-1]
    linux = json.dumps(document["linux"], separators=(",", ":"))[:-1]
    return f'{head},"linux":{linux},"seccomp":{seccomp.text}}}}}'
