"""Namespaces that a container shares with another one on its node."""

from __future__ import annotations

from orchestrator.model.specs import ContainerSpec

OF_CONTAINER, OF_SERVICE = "container:", "service:"
"""Begin a namespace that is another container's, or that of another service's tasks."""


def joined_container(spec: ContainerSpec) -> str:
    """The container whose PID namespace it shares; empty: none's."""
    return spec.pid.removeprefix(OF_CONTAINER) if spec.pid.startswith(OF_CONTAINER) else ""


def check_sharing(spec: ContainerSpec) -> None:
    """Raises ValueError for what cannot be shared."""
    if spec.pid.startswith(OF_SERVICE):
        raise ValueError(
            f"pid {spec.pid!r} cannot be had: the tasks of two services may be on any nodes; run "
            "both programs in one container, or one of them by 'orc run --pid container:NAME'"
        )
    if spec.pid == OF_CONTAINER:
        raise ValueError(f"pid {spec.pid!r} names no container; write container:NAME")
