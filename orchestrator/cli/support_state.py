"""The cluster's state as documents for `orc support-bundle`, and the secrets that it knows of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.cli.client import Client
from orchestrator.cli.cluster import cluster_document
from orchestrator.cli.container_rows import container_document
from orchestrator.cli.document import document_row
from orchestrator.cli.events import event_row
from orchestrator.cli.groups import CliError, error_line
from orchestrator.cli.image_rows import image_rows
from orchestrator.cli.network_doctor import diagnosis
from orchestrator.cli.network_doctor import document as doctor_document
from orchestrator.cli.network_rows import network_row
from orchestrator.cli.node_rows import node_row
from orchestrator.cli.output import Row, public
from orchestrator.cli.rows import service_document
from orchestrator.cli.volume import volume_row
from orchestrator.model.documents import DocumentKind
from orchestrator.pb import (
    containers_pb2,
    control_pb2,
    documents_pb2,
    volumes_pb2,
)
from orchestrator.support.hostfacts import Fact
from orchestrator.support.packing import document
from orchestrator.support.redact import secret_values

EVENTS_SINCE = 24 * 3600.0
"""Seconds back."""
_TOKENS = ("worker_token", "manager_token", "scrape_token")


def known_secrets(client: Client, cluster: Any, problems: list[str]) -> set[str]:
    """What must not be found in any file: tokens, and what services and containers have in
    variables whose names say that it is secret."""
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
    """Each part of the state that can be had; why not is added to `problems`."""
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
    return [public(network_row(row)) for row in reply.networks]


def _images(client: Client) -> list[Any]:
    reply = client.call("ListImages", control_pb2.ListImagesRequest())
    return [public(row) for row in image_rows(reply.images, {})]


def _volumes(client: Client) -> list[Any]:
    reply = client.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
    return [public(volume_row(row)) for row in reply.volumes]


def _documents(client: Client) -> dict[str, list[Any]]:
    """Names and versions; a manager tells nobody what is in a secret, and we do not ask."""
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
