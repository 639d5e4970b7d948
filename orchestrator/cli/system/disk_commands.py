# SPDX-License-Identifier: Apache-2.0
"""`orc system df`, `orc system prune` and `orc container prune`: disk usage, and unused objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from orchestrator.cli.app.command_groups import error_line, example
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.container.container_rows import LIVE, container_state
from orchestrator.cli.container.foreground import await_removal
from orchestrator.cli.flags.prune_flags import PruneFilters, confirm, prune_options
from orchestrator.cli.output.listings import (
    Column,
    Row,
    column,
    format_option,
    print_json,
    print_rows,
    print_table,
    public_row,
)
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.cli.storage.volume_commands import volume_row
from orchestrator.model.convert import from_proto
from orchestrator.model.names import short_id
from orchestrator.model.objects import Image
from orchestrator.model.tasks import Task
from orchestrator.model.units import format_size
from orchestrator.pb import (
    containers_pb2,
    control_pb2,
    images_pb2,
    networks_pb2,
    system_pb2,
    volumes_pb2,
)

DISK_TIMEOUT = 60.0
"""Timeout in seconds: the nodes scan their files."""


@click.command(epilog=example("orc system df", "orc system df -v"))
@click.option("--verbose", "-v", is_flag=True, help="List each object, and each node's disk.")
@format_option(templates=True)
@pass_client
def df(client: Client, verbose: bool, form: str) -> None:
    """Show the disk usage of the nodes, and how much is reclaimable."""
    picture = DiskUsage.of(client)
    for notice in picture.notices:
        click.echo(f"orc: {notice}", err=True)
    if not verbose:
        print_rows(picture.totals(), _TOTALS, form)
        return
    tables = {
        "nodes": (picture.nodes, _NODES),
        "images": (picture.images, _IMAGES),
        "containers": (picture.containers, _CONTAINERS),
        "volumes": (picture.volumes, _VOLUMES),
    }
    if form == "json":
        print_json({name: list(map(public_row, rows)) for name, (rows, _) in tables.items()})
        return
    for number, (name, (rows, columns)) in enumerate(tables.items()):
        if number:
            click.echo()
        click.echo(f"{name.capitalize()}:")
        print_table(rows, columns)


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """A row per object and node."""

    nodes: list[Row]
    images: list[Row]
    containers: list[Row]
    volumes: list[Row]
    notices: list[str]

    @classmethod
    def of(cls, client: Client) -> DiskUsage:
        """Query the nodes. Raises CliError."""
        usage = client.call("System.DiskUsage", system_pb2.DiskUsageRequest(), timeout=DISK_TIMEOUT)
        volumes = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
        listing = client.call("Containers.ListContainers", containers_pb2.ListContainersRequest())
        tasks: dict[str, Task] = {row.task.id: from_proto(row.task) for row in listing.containers}
        reply = client.call("ListImages", control_pb2.ListImagesRequest())
        images: dict[str, Image] = {each.id: from_proto(each) for each in reply.images}
        return cls(
            nodes=[_node(node) for node in usage.nodes if not node.notice],
            images=[
                _image(node.node, each, images.get(each.id), _users(tasks, node, images, each.id))
                for node in usage.nodes
                for each in node.images
            ],
            containers=[
                _container(node.node, each, tasks.get(each.task_id))
                for node in usage.nodes
                for each in node.containers
            ],
            volumes=[volume_row(row) for row in volumes.volumes],
            notices=[node.notice for node in usage.nodes if node.notice],
        )

    def totals(self) -> list[Row]:
        """A row per kind of object, over all nodes."""
        builds = sum(node["builds"] for node in self.nodes)
        return [
            _total(
                "Images",
                self.images,
                [row for row in self.images if row["containers"]],
                sum(node["images_size"] for node in self.nodes),
                sum(self._spare(node) for node in self.nodes),
            ),
            _total(
                "Containers",
                self.containers,
                [row for row in self.containers if row["state"] in LIVE],
                _sum(self.containers),
                _sum(row for row in self.containers if row["state"] not in LIVE),
            ),
            _total(
                "Volumes",
                self.volumes,
                [row for row in self.volumes if row["used_by"]],
                _sum(self.volumes),
                _sum(row for row in self.volumes if not row["used_by"]),
            ),
            _total("Build cache", [row for row in self.nodes if row["builds"]], [], builds, builds),
        ]

    def _spare(self, node: Row) -> int:
        """Bytes freed by removing a node's images without containers."""
        here = [row for row in self.images if row["node"] == node["node"]]
        if not any(row["containers"] for row in here):
            return int(node["images_size"])
        return sum(row["unique"] for row in here if not row["containers"])


def _total(
    kind: str, rows: Sequence[Row], active: Sequence[Row], size: int, reclaimable: int
) -> Row:
    return {
        "type": kind,
        "total": len(rows),
        "active": len(active),
        "size": size,
        "reclaimable": reclaimable,
    }


def _sum(rows: Iterable[Row]) -> int:
    return sum(row["size"] or 0 for row in rows)


def _node(message: Any) -> Row:
    return {
        "node": message.node,
        "total": message.total,
        "free": message.free,
        "builds": message.builds,
        "images_size": message.images_size,
        "images": len(message.images),
        "containers": len(message.containers),
    }


def _image(node: str, message: Any, image: Image | None, users: int) -> Row:
    return {
        "id": message.id,
        "names": list(image.names) if image else [],
        "node": node,
        "size": message.size,
        "shared": message.size - message.unique,
        "unique": message.unique,
        "containers": users,
    }


def _users(tasks: dict[str, Task], node: Any, images: dict[str, Image], digest: str) -> int:
    """The number of a node's containers of an image."""
    image = images.get(digest)
    known = {digest, *(image.indexes if image else ())}
    here = (tasks.get(row.task_id) for row in node.containers)
    return sum(task is not None and task.image_digest in known for task in here)


def _container(node: str, message: Any, task: Task | None) -> Row:
    return {
        "id": message.task_id,
        "name": task.name if task else "",
        "node": node,
        "image": task.spec.container.image if task else "",
        "state": container_state(task) if task else "removing",
        "size": message.size,
        "image_size": message.image_size,
    }


def _size(heading: str, key: str) -> Column:
    return Column(heading, lambda row: "" if row[key] is None else format_size(row[key]))


def _reclaimable(row: Row) -> str:
    share = f" ({100 * row['reclaimable'] // row['size']}%)" if row["size"] else ""
    return format_size(row["reclaimable"]) + share


_TOTALS = (
    column("TYPE", "type"),
    column("TOTAL", "total"),
    column("ACTIVE", "active"),
    _size("SIZE", "size"),
    Column("RECLAIMABLE", _reclaimable),
)
_NODES = (
    column("NODE", "node"),
    column("IMAGES", "images"),
    column("CONTAINERS", "containers"),
    _size("BUILD CACHE", "builds"),
    _size("FREE", "free"),
    _size("DISK", "total"),
)
_IMAGES = (
    Column("IMAGE", lambda row: ", ".join(row["names"]) or "<none>"),
    Column("IMAGE ID", lambda row: short_id(row["id"])),
    column("NODE", "node"),
    _size("SIZE", "size"),
    _size("SHARED SIZE", "shared"),
    _size("UNIQUE SIZE", "unique"),
    column("CONTAINERS", "containers"),
)
_CONTAINERS = (
    Column("CONTAINER ID", lambda row: short_id(row["id"])),
    column("IMAGE", "image"),
    column("NODE", "node"),
    column("STATUS", "state"),
    _size("SIZE", "size"),
    column("NAMES", "name"),
)
_VOLUMES = (
    Column("VOLUME NAME", lambda row: row["name"]),
    Column("NODE", lambda row: row["node"]),
    Column("LINKS", lambda row: str(len(row["used_by"]))),
    _size("SIZE", "size"),
)

_STOPPED = ("created", "exited", "failed")
_LONG = 300.0
"""Timeout in seconds of the removal on each node."""


@click.command("prune", epilog=example("orc container prune", "orc container prune -f"))
@prune_options
@pass_client
def containers(client: Client, filters: PruneFilters, force: bool) -> None:
    """Remove stopped containers and their files."""
    if not force:
        confirm(["all stopped containers"], filters)
    _report(prune_containers(client, filters))


@click.command("prune", epilog=example("orc system prune", "orc system prune -a --volumes -f"))
@click.option("--all", "-a", "all_", is_flag=True, help="Also unused images with a name.")
@click.option("--volumes", is_flag=True, help="Also unused anonymous volumes.")
@prune_options
@pass_client
def system(client: Client, all_: bool, volumes: bool, filters: PruneFilters, force: bool) -> None:
    """Remove unused objects: stopped containers, networks, images, build cache."""
    if volumes and filters.until:
        raise click.UsageError("--filter until does not apply to volumes; omit --volumes")
    if not force:
        what = [
            "all stopped containers",
            "all unused networks",
            "all unused images" if all_ else "all images without a name",
            *(["all unused anonymous volumes"] if volumes else []),
            "the build cache",
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
    """Remove stopped ones, printing each name; the freed bytes. One that was started since is
    kept."""
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
