"""Which port of its node leads to a port of a container whose user named none."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.refusal import precondition
from orchestrator.model.specs import PortSpec, TaskSpec

FIRST, LAST = 32768, 60999
"""Where they are chosen from, as in Docker."""


def numbered(view: ClusterView, spec: TaskSpec, id: str) -> TaskSpec:
    """The spec with a port of the node for each that has none: one that no task of the cluster
    has, so that the container fits on any node. The search begins at a place made from the
    container's `id`, so that two that are made at a time do not get the same. Raises Refusal."""
    if all(port.published for port in spec.ports):
        return spec
    specs = [task.spec for task in view.tasks.values()]
    specs += [service.spec.task for service in view.services.values()]
    taken = {(port.published, port.protocol) for each in specs for port in each.ports}
    taken |= {(port.published, port.protocol) for port in spec.ports}
    start, size = crc32(id.encode()), LAST - FIRST + 1
    ports: list[PortSpec] = []
    for port in spec.ports:
        if not port.published:
            candidates = (FIRST + (start + turn) % size for turn in range(size))
            number = next((n for n in candidates if (n, port.protocol) not in taken), None)
            if number is None:
                raise precondition(
                    f"every port of {FIRST}-{LAST} is published; name one, as in -p 8080:80"
                )
            port = replace(port, published=number)
            taken.add((number, port.protocol))
        ports.append(port)
    return replace(spec, ports=tuple(ports))
