"""`orc container prune` and `orc system prune`: what nobody needs any more, removed."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.client import Client, pass_client
from orchestrator.cli.container_rows import container_state
from orchestrator.cli.container_watch import await_removal
from orchestrator.cli.groups import CliError, error_line, example
from orchestrator.cli.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.model.convert import from_proto
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_size
from orchestrator.pb import containers_pb2, images_pb2, networks_pb2, system_pb2, volumes_pb2

_STOPPED = ("created", "exited", "failed")
_LONG = 300.0
"""Seconds for what each node has to remove."""


@click.command("prune", epilog=example("orc container prune", "orc container prune -f"))
@prune_options
@pass_client
def containers(client: Client, filters: PruneFilters, force: bool) -> None:
    """Remove the containers that do not run, with their files."""
    if not force:
        confirm(["all containers that do not run"], filters)
    _report(prune_containers(client, filters))


@click.command("prune", epilog=example("orc system prune", "orc system prune -a --volumes -f"))
@click.option("--all", "-a", "all_", is_flag=True, help="Also images with a name that none uses.")
@click.option("--volumes", is_flag=True, help="Also volumes without a name that nobody uses.")
@prune_options
@pass_client
def system(client: Client, all_: bool, volumes: bool, filters: PruneFilters, force: bool) -> None:
    """Remove what nobody needs: containers that do not run, networks,
    images, what builds have left."""
    if volumes and filters.until:
        raise click.UsageError("--filter until says nothing of volumes; leave --volumes out")
    if not force:
        what = [
            "all containers that do not run",
            "all networks that nobody uses",
            "all images that nothing uses" if all_ else "all images without a name",
            *(["all volumes without a name that nobody uses"] if volumes else []),
            "what builds have left to be quick the next time",
        ]
        confirm(what, filters)
    freed = prune_containers(client, filters)
    if volumes:
        freed += _volumes(client, filters)
    _networks(client, filters)
    freed += _images(client, filters, all_)
    freed += _builds(client)
    _report(freed)


def prune_containers(client: Client, filters: PruneFilters) -> int:
    """Remove those that do not run, printing the name of each; the bytes that their own files
    took. One that was started meanwhile stays."""
    request = containers_pb2.ListContainersRequest()
    tasks: list[Task] = [
        from_proto(row.task) for row in client.call("Containers.ListContainers", request).containers
    ]
    doomed = [
        task
        for task in tasks
        if task.standalone
        and container_state(task) in _STOPPED
        and filters.hold(task.spec.container.labels, task.created_at)
    ]
    if not doomed:
        return 0
    usage = client.call("System.DiskUsage", system_pb2.DiskUsageRequest(containers_only=True))
    sizes = {row.task_id: row.size for node in usage.nodes for row in node.containers}
    ordered = []
    for task in doomed:
        order = containers_pb2.RemoveContainerRequest(container=task.id)
        try:
            ordered.append(client.call("Containers.RemoveContainer", order))
        except CliError as error:
            click.echo(f"orc: {error_line(error)}", err=True)
    freed = 0
    for removed in ordered:
        await_removal(client, removed)
        click.echo(removed.container_name)
        freed += sizes.get(removed.id, 0)
    return freed


def _volumes(client: Client, filters: PruneFilters) -> int:
    request = filters.put_into(volumes_pb2.PruneVolumesRequest())
    reply = client.call("Volumes.PruneVolumes", request, timeout=_LONG)
    for name in reply.names:
        click.echo(f"volume {name}")
    _tell(reply.notices)
    return int(reply.reclaimed)


def _networks(client: Client, filters: PruneFilters) -> None:
    request = filters.put_into(networks_pb2.PruneNetworksRequest())
    reply = client.call("Networks.PruneNetworks", request)
    for name in reply.names:
        click.echo(f"network {name}")
    _tell(reply.notices)


def _images(client: Client, filters: PruneFilters, all_: bool) -> int:
    request = filters.put_into(images_pb2.PruneImagesRequest(all=all_))
    reply = client.call("Images.Prune", request, timeout=_LONG)
    for name in reply.untagged:
        click.echo(f"untagged: {name}")
    for digest in reply.deleted:
        click.echo(f"deleted: {digest}")
    _tell(reply.notices)
    return int(reply.freed)


def _builds(client: Client) -> int:
    request = images_pb2.BuildCachesRequest(prune=True, all=True)
    reply = client.call("Images.BuildCaches", request, timeout=_LONG)
    _tell(reply.notices)
    return sum(cache.freed for cache in reply.caches.values())


def _tell(notices: Any) -> None:
    for notice in notices:
        click.echo(f"orc: {notice}", err=True)


def _report(freed: int) -> None:
    click.echo(f"Total reclaimed space: {format_size(freed)}")
