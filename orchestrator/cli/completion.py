"""Names that live in the cluster, for the shell's completion.

Whatever goes wrong, a shell that completes must not hang or print: then there are no names.
"""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.context import list_contexts, load_context

TIMEOUT = 1.0
"""Seconds that a user who pressed Tab will wait."""


def nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Hostnames of nodes."""
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListNodes", control_pb2.ListNodesRequest())
    names = [row.node.description.hostname for row in reply.nodes] if reply else []
    return _starting(names, incomplete)


def services(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of services."""
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListServices", control_pb2.ListServicesRequest())
    names = [row.service.spec.name for row in reply.services] if reply else []
    return _starting(names, incomplete)


def jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of jobs."""
    from orchestrator.model.convert import from_proto
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListServices", control_pb2.ListServicesRequest())
    found = [from_proto(row.service).spec for row in reply.services] if reply else []
    return _starting([spec.name for spec in found if spec.mode.is_job], incomplete)


def stacks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of stacks."""
    from orchestrator.model.specs import STACK_LABEL
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListServices", control_pb2.ListServicesRequest())
    labels = [row.service.spec.labels for row in reply.services] if reply else []
    return _starting([each[STACK_LABEL] for each in labels if STACK_LABEL in each], incomplete)


def scales(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of services with the `=` of `orc service scale`."""
    return [f"{name}=" for name in services(ctx, param, incomplete)]


def containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of containers that run."""
    from orchestrator.model.convert import from_proto
    from orchestrator.model.states import TaskState
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListTasks", control_pb2.ListTasksRequest())
    tasks = map(from_proto, reply.tasks) if reply else ()
    running = [task.name for task in tasks if task.status.state is TaskState.RUNNING]
    return _starting(running, incomplete)


def networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of networks."""
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListNetworks", control_pb2.ListNetworksRequest())
    return _starting([network.name for network in reply.networks] if reply else [], incomplete)


def images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of images."""
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListImages", control_pb2.ListImagesRequest())
    names = [name for image in reply.images for name in image.names] if reply else []
    return _starting(names, incomplete)


def volumes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of volumes."""
    from orchestrator.pb import volumes_pb2

    reply = _call(ctx, "Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
    return _starting([row.volume.id for row in reply.volumes] if reply else [], incomplete)


def secrets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of secrets."""
    return _documents(ctx, 0, incomplete)


def configs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of configs."""
    return _documents(ctx, 1, incomplete)


def _documents(ctx: click.Context, kind: int, incomplete: str) -> list[str]:
    from orchestrator.pb import documents_pb2

    request = documents_pb2.ListDocumentsRequest(kind=kind)  # type: ignore[arg-type]
    reply = _call(ctx, "Documents.ListDocuments", request)
    return _starting([row.document.name for row in reply.documents] if reply else [], incomplete)


def contexts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of contexts."""
    return _starting(list_contexts(), incomplete)


def _call(ctx: click.Context, method: str, request: Any) -> Any:
    from orchestrator.cli.client import Client

    name = ctx.params.get("context_name") or ctx.find_root().params.get("context_name")
    try:
        with Client(load_context(name)) as client:
            return client.call(method, request, timeout=TIMEOUT)
    except click.ClickException:
        return None


def _starting(names: list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
