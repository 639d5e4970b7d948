# SPDX-License-Identifier: Apache-2.0
"""Namespaces that a container shares with another one on its node."""

from __future__ import annotations

from orchestrator.model.specs import ContainerSpec
from orchestrator.model.validation import confinement

OF_CONTAINER, OF_SERVICE = "container:", "service:"
"""Begin a namespace that is another container's, or that of another service's tasks."""

SHAREABLE = "shareable"
"""An IPC namespace that other containers may join."""


def shared_kinds(spec: ContainerSpec) -> tuple[str, ...]:
    """Which namespaces it shares with another container: `pid`, `ipc`."""
    kinds = ("pid", spec.pid), ("ipc", spec.ipc)
    return tuple(kind for kind, value in kinds if value.startswith(OF_CONTAINER))


def namespace_container(spec: ContainerSpec) -> str:
    """The container whose PID or IPC namespace it shares; empty: its own."""
    named = [getattr(spec, kind).removeprefix(OF_CONTAINER) for kind in shared_kinds(spec)]
    return named[0] if named else ""


def check_sharing(spec: ContainerSpec, kind: str) -> None:
    """Raise ValueError if the spec's namespace of this kind is invalid."""
    value = getattr(spec, kind)
    if value.startswith(OF_SERVICE):
        raise ValueError(
            f"{kind} {value!r} is not supported: the tasks of two services may be on any nodes; "
            f"run both programs in one container, or one by 'orc run --{kind} container:NAME'"
        )
    if value == OF_CONTAINER:
        raise ValueError(f"{kind} {value!r} names no container; write container:NAME")
    if len(shared_kinds(spec)) == 2 and spec.pid != spec.ipc:
        raise ValueError(
            f"pid {spec.pid!r} and ipc {spec.ipc!r} are of two containers; name one, whose users "
            "it has too"
        )
    if kind == "ipc" and value.startswith(OF_CONTAINER):
        for name in filter(confinement.is_ipc, spec.sysctls):
            raise ValueError(f"with ipc {value!r} the sysctl {name!r} is the other container's")


def not_shared(spec: ContainerSpec, other: ContainerSpec) -> str:
    """Why it cannot share the namespaces of the container that it names; empty: it can."""
    name = namespace_container(spec)
    for kind in shared_kinds(spec):
        if getattr(other, kind) == "host":
            return f"container {name} has the node's {kind} namespace; use --{kind} host"
    shares = other.ipc == SHAREABLE or other.ipc.startswith(OF_CONTAINER)
    if "ipc" in shared_kinds(spec) and not shares:
        return f"container {name} does not share its ipc namespace; run it with --ipc shareable"
    return ""
