# SPDX-License-Identifier: Apache-2.0
"""Privileges of a container: capabilities, masked paths, sysctls, user namespace. Pure.

Source: capabilities(7), the OCI runtime-spec; the sets are Docker's defaults.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.model.specs import ContainerSpec
from orchestrator.model.validation.confinement import ALL, CAPABILITIES

HOST = "host"
"""Value of a namespace option: use the node's."""
DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
"""Docker's default set."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = (
    *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
    # On cgroup v1 also the folder of the trees, which the OCI runtime leaves to be written.
    "/sys/fs/cgroup",
)


def own_users(spec: ContainerSpec) -> bool:
    """Whether the container gets a user namespace.

    As in Docker, a privileged container has the host's users, since a user namespace would revoke
    its privileges; so has one whose root is the node's own files, or that shares another namespace
    with the node. `private` overrides this.
    """
    if spec.userns:
        return spec.userns == "private"
    return not spec.privileged and not spec.rootfs and HOST not in (spec.pid, spec.ipc)


def capabilities(spec: ContainerSpec, grantable: frozenset[str]) -> tuple[str, ...]:
    """The capabilities of the container's root, sorted. `grantable` are those that the agent can
    grant to a container with the host's users; in its own user namespace all can be granted.

    `ALL` adds or drops every one, and the other list then makes exceptions, as in Docker. Raises
    RuntimeFailure for a capability that is requested by name and cannot be granted.
    """
    within = frozenset(CAPABILITIES) if own_users(spec) else grantable
    added = within if spec.privileged or ALL in spec.cap_add else frozenset(spec.cap_add)
    if lacking := sorted(added - within):
        raise RuntimeFailure(f"this node's agent does not hold {lacking[0]}, so it cannot grant it")
    if spec.privileged:
        return tuple(sorted(added))
    base = frozenset[str]() if ALL in spec.cap_drop else frozenset(DEFAULT_CAPABILITIES)
    if ALL in spec.cap_add:
        return tuple(sorted(added - frozenset(spec.cap_drop)))
    return tuple(sorted(((base & within) - frozenset(spec.cap_drop)) | added))


def capability_sets(held: Iterable[str], uid: int) -> dict[str, list[str]]:
    """The sets for the OCI runtime. A user other than root has none effective, and gets them only
    through a set-user-id program."""
    bounding = list(held)
    active = bounding if uid == 0 else []
    return {"bounding": bounding, "effective": active, "permitted": active}


def paths(spec: ContainerSpec, secret: Iterable[str]) -> dict[str, Any]:
    """Masked and read-only paths; those in `secret` are always masked."""
    if spec.privileged:
        return {"maskedPaths": [*secret], "readonlyPaths": []}
    return {"maskedPaths": [*MASKED_PATHS, *secret], "readonlyPaths": list(READONLY_PATHS)}


def sysctls(spec: ContainerSpec, *, network: bool = True) -> dict[str, str]:
    """The sysctls of the container's namespaces; without its own `network` namespace, no network
    defaults.

    As in Docker, any user may listen on port 80 and ping, since the network namespace is the
    container's own. A user namespace has no groups above its range.
    """
    if not network:
        return dict(spec.sysctls)
    last_group = 65_535 if own_users(spec) else 2_147_483_647
    return {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": f"0 {last_group}",
    } | spec.sysctls
