# SPDX-License-Identifier: Apache-2.0
"""`orc support-bundle`: the cluster's state, logs and diagnostics in one file, without secrets."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli.app.command_groups import error_line, example
from orchestrator.cli.app.completion_names import context_option, file_option
from orchestrator.cli.app.contexts import Context, load_context
from orchestrator.cli.app.errors import INTERRUPTED, CliError
from orchestrator.cli.cluster.cluster_commands import cluster_document
from orchestrator.cli.cluster.node_rows import node_row
from orchestrator.cli.container.container_rows import container_document
from orchestrator.cli.flags.flag_types import MEMORY
from orchestrator.cli.image.image_commands import image_rows
from orchestrator.cli.network.doctor_command import diagnosis
from orchestrator.cli.network.doctor_command import document as doctor_document
from orchestrator.cli.network.network_commands import network_row
from orchestrator.cli.output.listings import Row, public_row
from orchestrator.cli.rpc.client import Client
from orchestrator.cli.service.service_rows import service_document
from orchestrator.cli.storage.secret_config_commands import document_row
from orchestrator.cli.storage.volume_commands import volume_row
from orchestrator.cli.system.event_commands import event_row
from orchestrator.model.documents import DocumentKind
from orchestrator.model.units import format_size
from orchestrator.pb import (
    containers_pb2,
    control_pb2,
    documents_pb2,
    support_pb2,
    volumes_pb2,
)
from orchestrator.supportbundle import hostfacts
from orchestrator.supportbundle.hostfacts import Fact, document, unpacked
from orchestrator.supportbundle.redaction import scrubbed, secret_values

EVENTS_SINCE = 24 * 3600.0
"""Seconds back."""
_TOKENS = ("worker_token", "manager_token", "scrape_token")


def known_secrets(client: Client, cluster: Any, problems: list[str]) -> set[str]:
    """Strings to redact in all files: tokens, and values of environment variables with names of
    secrets."""
    tokens = {getattr(cluster, field) for field in _TOKENS}
    found = {part for token in tokens for part in (token, token.rpartition("-")[2])}
    for ask in (_service_specs, _container_specs):
        try:
            found |= secret_values(each for spec in ask(client) for each in spec.container.env)
        except CliError as error:
            problems.append(error_line(error))
    return found


def _service_specs(client: Client) -> Iterator[Any]:
    for row in client.call("ListServices", control_pb2.ListServicesRequest()).services:
        yield row.service.spec.task
        yield from (past.spec.task for past in row.service.history)


def _container_specs(client: Client) -> list[Any]:
    request = containers_pb2.ListContainersRequest()
    listed = client.call("Containers.ListContainers", request).containers
    return [row.task.spec for row in listed]


def documents(client: Client, cluster: Any, known: set[str], problems: list[str]) -> Iterator[Fact]:
    """The available parts of the state; reasons for missing ones are added to `problems`."""
    for name, ask in _PARTS.items():
        try:
            yield document(f"{name}.json", ask(client), known)
        except (CliError, TimeoutError) as error:
            problems.append(f"{name}: {error_line(error)}")
    yield document("cluster.json", _cluster(cluster), known)


def _cluster(cluster: Any) -> Row:
    return {**cluster_document(cluster), "web_address": cluster.web_address}


def _nodes(client: Client) -> list[Any]:
    return [node_row(row) for row in client.call("ListNodes", control_pb2.ListNodesRequest()).nodes]


def _services(client: Client) -> list[Any]:
    """Jobs are services, too."""
    reply = client.call("ListServices", control_pb2.ListServicesRequest())
    return [service_document(row) for row in reply.services]


def _containers(client: Client) -> list[Any]:
    request = containers_pb2.ListContainersRequest()
    reply = client.call("Containers.ListContainers", request)
    return [container_document(row, time.time()) for row in reply.containers]


def _networks(client: Client) -> list[Any]:
    reply = client.call("ListNetworks", control_pb2.ListNetworksRequest())
    return [public_row(network_row(row)) for row in reply.networks]


def _images(client: Client) -> list[Any]:
    reply = client.call("ListImages", control_pb2.ListImagesRequest())
    return [public_row(row) for row in image_rows(reply.images, {})]


def _volumes(client: Client) -> list[Any]:
    reply = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
    return [public_row(volume_row(row)) for row in reply.volumes]


def _documents(client: Client) -> dict[str, list[Any]]:
    """Names and versions; a manager never returns the data of a secret, and we do not request
    it."""
    found = {}
    for kind in DocumentKind:
        request = documents_pb2.ListDocumentsRequest(kind=kind.value)  # type: ignore[arg-type]
        rows = map(document_row, client.call("Documents.ListDocuments", request).documents)
        kept = ("id", "name", "version", "created_at", "updated_at", "used_by")
        found[f"{kind.word}_names"] = [{key: row.get(key) for key in kept} for row in rows]
    return found


def _events(client: Client) -> list[Any]:
    now = time.time()
    request = containers_pb2.EventsRequest(since=now - EVENTS_SINCE, until=now)
    return [event_row(event) for event in client.stream("Containers.Events", request, timeout=30.0)]


def _doctor(client: Client) -> Any:
    return doctor_document(diagnosis(client, "", lambda line: None))


_PARTS: dict[str, Callable[[Client], Any]] = {
    "nodes": _nodes,
    "services": _services,
    "containers": _containers,
    "networks": _networks,
    "images": _images,
    "volumes": _volumes,
    "secrets-and-configs": _documents,
    "events": _events,
    "network-doctor": _doctor,
}

COLLECT_TIMEOUT = 60.0
"""Timeout of all managers and nodes together, in seconds."""

_README = """\
A support bundle of Orc {version}, made on {now}.

cluster/   the managers' state: services, tasks, nodes, networks, events
HOST/      facts of a manager or node: kernel, network, programs, the daemon's log
here/      the same of the host on which this was made
problems.txt  what could not be collected, and why

Removed: data of secrets and configs, join tokens, private keys, values of environment variables,
and whatever looks like a password or a token. Container logs and images are not included; names,
addresses and labels are. Review it before you share it.
"""


@click.command(
    "support-bundle",
    epilog=example("orc support-bundle", "orc support-bundle --log-size 10m -o bundle.tar.gz"),
)
@file_option("--output", "-o", help="File to write.  [default: orc-support-NAME-TIME.tar.gz]")
@click.option(
    "--log-size",
    type=MEMORY,
    default="1m",
    show_default=True,
    help="Size of the tail of each log.",
)
@context_option()
@click.pass_context
def support_bundle(
    ctx: click.Context, output: str | None, log_size: int, context_name: str | None
) -> None:
    """Collect logs, state and kernel facts of all hosts into one archive to share.

    Secrets, tokens, private keys and values of environment variables are not included. A node or
    manager that does not answer is listed; without any, the archive has this host's facts.
    """
    problems: list[str] = []
    try:
        context = load_context(context_name or ctx.find_root().params.get("context_name"))
    except CliError as error:
        context = None
        problems.append(error_line(error))
    now = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"orc-support-{context.name if context else 'host'}-{now}"
    target = Path(output or f"{name}.tar.gz")
    try:
        with Archive(target, name) as archive:
            archive.add(Fact("README.txt", _README.format(version=__version__, now=now)))
            if context is not None:
                _of_cluster(context, archive, log_size, problems)
            archive.add_all("here", hostfacts.host())
            archive.add_all("here", hostfacts.daemons(log_size))
            archive.add(Fact("problems.txt", "".join(f"{line}\n" for line in problems)))
    except OSError as error:
        raise CliError(f"cannot write {target}: {(error.strerror or str(error)).lower()}") from None
    except KeyboardInterrupt:
        click.echo("orc: cancelled; nothing was written", err=True)
        raise SystemExit(INTERRUPTED) from None
    for line in problems:
        click.echo(f"orc: {line}", err=True)
    click.echo(target)
    click.echo(
        f"{format_size(target.stat().st_size)}, {archive.count} files; secrets, tokens, keys and "
        "values of environment variables are removed; review it before you share it",
        err=True,
    )


class Archive:
    """A compressed tar, written atomically, readable by its owner only."""

    def __init__(self, path: Path, name: str) -> None:
        """`name` is the folder that all of it is in."""
        self._path = path
        self._draft = path.with_name(f".{path.name}.{os.getpid()}")
        self._name = name
        self.known: set[str] = set()
        """Secrets that are redacted in all files added from now on."""
        self.count = 0

    def __enter__(self) -> Archive:
        descriptor = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            self._tar.close()
            self._file.close()
            if kind is None:
                self._draft.rename(self._path)
        finally:
            self._draft.unlink(missing_ok=True)

    def add(self, fact: Fact) -> None:
        """Add a file, with known secrets redacted."""
        data = scrubbed(fact.text, self.known).encode(errors="replace")
        about = tarfile.TarInfo(f"{self._name}/{safe_path(fact.name)}")
        about.size, about.mtime, about.mode = len(data), int(time.time()), 0o600
        self._tar.addfile(about, io.BytesIO(data))
        self.count += 1

    def add_all(self, folder: str, facts: Iterable[Fact]) -> int:
        """Add files in a folder; their number."""
        before = self.count
        for fact in facts:
            self.add(Fact(f"{folder}/{fact.name}", fact.text))
        return self.count - before


def safe_path(name: str) -> str:
    """A name from another host as a path that cannot leave its folder."""
    parts = [re.sub(r"[^\w.@-]", "_", part) for part in name.split("/")]
    return "/".join(part for part in parts if part.strip(".")) or "unnamed"


def _of_cluster(context: Context, archive: Archive, log_size: int, problems: list[str]) -> None:
    with Client(context) as client:
        try:
            cluster = client.call("GetCluster", control_pb2.GetClusterRequest())
        except CliError as error:
            problems.append(error_line(error))
            return
        archive.known |= known_secrets(client, cluster, problems)
        count = archive.add_all("cluster", documents(client, cluster, archive.known, problems))
        click.echo(f"cluster: {count} files", err=True)
        asked = _collect(client, log_size, nodes=True)
        met = _add_parts(archive, asked, problems, f"manager {client.endpoint}")
    for each in cluster.managers:
        if f"manager-{each.address.rpartition(':')[0]}" in met:
            continue
        with Client(replace(context, endpoints=(each.address,))) as other:
            asked = _collect(other, log_size, nodes=False)
            _add_parts(archive, asked, problems, f"manager {each.address}")


def _collect(client: Client, log_size: int, *, nodes: bool) -> Callable[[], Iterator[Any]]:
    request = support_pb2.CollectRequest(nodes=nodes, log_bytes=log_size)
    return lambda: client.stream("Support.Collect", request, timeout=COLLECT_TIMEOUT)


def _add_parts(
    archive: Archive, asked: Callable[[], Iterator[Any]], problems: list[str], who: str
) -> set[str]:
    """Add the parts of hosts as they arrive; the hosts' names."""
    met = set()
    try:
        for part in asked():
            met.add(part.host)
            if part.notice:
                problems.append(part.notice)
                continue
            count = archive.add_all(part.host, unpacked(part.facts))
            click.echo(f"{part.host}: {count} files", err=True)
    except TimeoutError:
        problems.append(f"{who}: not all hosts answered within {COLLECT_TIMEOUT:g} seconds")
    except CliError as error:
        problems.append(f"{who}: {error_line(error)}")
    return met
