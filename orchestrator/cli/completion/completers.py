# SPDX-License-Identifier: Apache-2.0
"""Completers: names of objects in the cluster for a shell, with a description of each.

On any error there are no names: a shell that completes must neither hang nor print. `shells` has
the protocol between `orc` and the shells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.app.completion_names import Items, register
from orchestrator.cli.app.contexts import list_contexts, load_context

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

TIMEOUT = 1.0
"""Timeout of a completion in seconds."""


def nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Hostnames of nodes."""
    from orchestrator.cli.output.listings import enum_word
    from orchestrator.model.convert import recognized
    from orchestrator.model.nodes import NodeState
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListNodes", control_pb2.ListNodesRequest())
    found = [
        (row.node.description.hostname, enum_word(recognized(NodeState, row.node.state)))
        for row in (reply.nodes if reply else ())
    ]
    return _matching(found, incomplete)


def services(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of services."""
    found = [(spec.name, spec.task.container.image) for spec in _specs(ctx)]
    return _matching(found, incomplete)


def jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of jobs."""
    from orchestrator.model.convert import recognized
    from orchestrator.model.specs import ServiceMode

    found = [
        (spec.name, spec.job.schedule or spec.task.container.image)
        for spec in _specs(ctx)
        if recognized(ServiceMode, spec.mode).is_job
    ]
    return _matching(found, incomplete)


def stacks(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of stacks."""
    from orchestrator.model.specs import STACK_LABEL

    labels = [spec.labels for spec in _specs(ctx)]
    return _matching(
        [(each[STACK_LABEL], "") for each in labels if STACK_LABEL in each], incomplete
    )


def service_scales(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of services with the `=` of `orc service scale`."""
    found = [(f"{spec.name}=", f"{spec.replicas} now") for spec in _specs(ctx)]
    return _matching(found, incomplete)


def services_and_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of services, and of tasks once there is a dot."""
    if "." in incomplete:
        return containers(ctx, param, incomplete)
    return services(ctx, param, incomplete)


def containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of all containers."""
    return _containers(ctx, incomplete, lambda state: True)


def running_containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of running containers, including paused ones."""
    return _containers(ctx, incomplete, lambda state: state in ("running", "paused", "restarting"))


def stopped_containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of stopped containers."""
    return _containers(ctx, incomplete, lambda state: state in ("created", "exited", "failed"))


def paused_containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of paused containers."""
    return _containers(ctx, incomplete, lambda state: state == "paused")


def copy_paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Source or destination of `orc cp`: `CONTAINER:` or a file."""
    if ":" in incomplete or incomplete.startswith((".", "/", "~")):
        return files(ctx, param, incomplete)
    names = _containers(ctx, incomplete, lambda state: True)
    for item in names:
        item.value += ":"
    return names + files(ctx, param, incomplete)


def networks(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of networks."""
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListNetworks", control_pb2.ListNetworksRequest())
    found = [(each.name, each.subnet) for each in (reply.networks if reply else ())]
    return _matching(found, incomplete)


def queues(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of queues of jobs."""
    from orchestrator.pb import jobs_pb2

    reply = _call(ctx, "Jobs.ListQueues", jobs_pb2.ListQueuesRequest())
    found = [
        (each.queue.name, f"weight {each.queue.weight}") for each in (reply.queues if reply else ())
    ]
    return _matching(found, incomplete)


def images(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of images."""
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListImages", control_pb2.ListImagesRequest())
    found = [(name, "") for image in (reply.images if reply else ()) for name in image.names]
    return _matching(found, incomplete)


def volumes(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of volumes."""
    from orchestrator.pb import volumes_pb2

    reply = _call(ctx, "Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
    found = [(row.volume.id, row.node) for row in (reply.volumes if reply else ())]
    return _matching(found, incomplete)


def stacks_and_folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of stacks, and folders, for `orc stack deploy`."""
    return stacks(ctx, param, incomplete) + folders(ctx, param, incomplete)


def volumes_and_folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Sources of `-v`: `VOLUME:` or a folder."""
    if ":" in incomplete or incomplete.startswith(("/", ".", "~")):
        return folders(ctx, param, incomplete)
    found = volumes(ctx, param, incomplete)
    for item in found:
        item.value += ":"
    return found


def secrets(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of secrets."""
    return _documents(ctx, 0, incomplete)


def configs(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of configs."""
    return _documents(ctx, 1, incomplete)


def _documents(ctx: click.Context, kind: int, incomplete: str) -> Items:
    from orchestrator.pb import documents_pb2

    request = documents_pb2.ListDocumentsRequest(kind=kind)  # type: ignore[arg-type]
    reply = _call(ctx, "Documents.ListDocuments", request)
    found = [(row.document.name, "") for row in (reply.documents if reply else ())]
    return _matching(found, incomplete)


def orphans(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of orphans."""
    from orchestrator.model.convert import from_proto
    from orchestrator.pb import containers_pb2

    reply = _call(ctx, "Containers.ListOrphans", containers_pb2.ListOrphansRequest())
    listed = [from_proto(each) for each in reply.orphans] if reply else []
    return _matching([(each.name, each.id) for each in listed], incomplete)


def contexts(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Names of contexts."""
    return _matching([(name, "") for name in list_contexts()], incomplete)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Files of this host, completed by the shell."""
    return [_item(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Folders of this host."""
    return [_item(incomplete, type="dir")]


def _specs(ctx: click.Context) -> list[Any]:
    from orchestrator.pb import control_pb2

    reply = _call(ctx, "ListServices", control_pb2.ListServicesRequest())
    return [row.service.spec for row in reply.services] if reply else []


def _containers(ctx: click.Context, incomplete: str, wanted: Callable[[str], bool]) -> Items:
    from orchestrator.cli.container.container_rows import container_state
    from orchestrator.model.convert import from_proto
    from orchestrator.pb import containers_pb2

    reply = _call(ctx, "Containers.ListContainers", containers_pb2.ListContainersRequest())
    found = []
    for row in reply.containers if reply else ():
        task = from_proto(row.task)
        state = container_state(task)
        if task.name.startswith(incomplete) and wanted(state):
            found.append((task.name, f"{state} on {row.node.description.hostname}"))
    return _matching(found, incomplete)


def revocable_identities(ctx: click.Context, param: click.Parameter, incomplete: str) -> Items:
    """Nodes, certificates, sessions or users that `orc cluster revoke KIND` accepts."""
    from orchestrator.pb import access_pb2, dashboard_pb2

    kind = ctx.params.get("kind")
    if kind == "node":
        return nodes(ctx, param, incomplete)
    if kind == "session":
        opened = _call(ctx, "Dashboard.ListSessions", dashboard_pb2.ListSessionsRequest())
        return _matching(
            [(each.id, each.user) for each in (opened.sessions if opened else ())], incomplete
        )
    reply = _call(ctx, "Access.ListCertificates", access_pb2.ListCertificatesRequest())
    found = [row.certificate for row in (reply.certificates if reply else ()) if not row.revoked_at]
    if kind == "certificate":
        named = [(each.id, each.hostname or each.name) for each in found]
    else:
        named = [(each.name, each.address) for each in found if each.role == kind]
    return _matching(named, incomplete)


def _call(ctx: click.Context, method: str, request: Any) -> Any:
    from orchestrator.cli.rpc.client import Client

    name = ctx.params.get("context_name") or ctx.find_root().params.get("context_name")
    try:
        with Client(load_context(name), reach=TIMEOUT) as client:
            return client.call(method, request, timeout=TIMEOUT)
    except click.ClickException:
        return None


def _matching(found: Iterable[tuple[str, str]], incomplete: str) -> Items:
    about = {name: text for name, text in found if name.startswith(incomplete)}
    return [_item(name, help=about[name] or None) for name in sorted(about)]


def _item(value: str, **about: Any) -> CompletionItem[str]:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, **about)


register(
    {
        "configs": configs,
        "containers": containers,
        "contexts": contexts,
        "copy_paths": copy_paths,
        "files": files,
        "folders": folders,
        "images": images,
        "jobs": jobs,
        "networks": networks,
        "nodes": nodes,
        "orphans": orphans,
        "paused_containers": paused_containers,
        "queues": queues,
        "revocable_identities": revocable_identities,
        "running_containers": running_containers,
        "secrets": secrets,
        "service_scales": service_scales,
        "services": services,
        "services_and_tasks": services_and_tasks,
        "stacks": stacks,
        "stacks_and_folders": stacks_and_folders,
        "stopped_containers": stopped_containers,
        "volumes": volumes,
        "volumes_and_folders": volumes_and_folders,
    }
)
