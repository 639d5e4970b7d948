# SPDX-License-Identifier: Apache-2.0
"""Endpoints of volumes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import ApiError, conflict
from orchestrator.dockerapi.http.exchange import NO_CONTENT, Reply, Request
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.parameters import (
    Fields,
    boolean_filter,
    filters,
    has_labels,
    moment,
    rfc3339,
)
from orchestrator.pb import volumes_pb2

ROUTES = Routes()
route = ROUTES.route


def _rows(gateway: Gateway, name: str = "") -> tuple[list[Any], list[str]]:
    """VolumeRows, all or with this name, and which nodes did not answer."""
    try:
        reply = gateway.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest(name=name))
    except Refused as refused:
        if name and refused.missing:
            return [], []
        raise
    return list(reply.volumes), list(reply.notices)


def document(row: Any, sizes: bool = False) -> dict[str, Any]:
    """A volume as Docker describes it, from a VolumeRow."""
    volume, seen = row.volume, row.seen
    known = row.HasField("seen")
    found: dict[str, Any] = {
        "CreatedAt": rfc3339(volume.created_at or seen.created_at),
        "Driver": volume.driver or seen.driver or "local",
        "Labels": dict(volume.labels) or dict(seen.labels) or None,
        "Mountpoint": seen.mountpoint if known else "",
        "Name": volume.id or seen.name,
        "Options": dict(volume.options) or dict(seen.options) or None,
        "Scope": "global" if volume.scope else "local",
        "Status": {"Node": row.node} if row.node else None,
    }
    if not found["Status"]:
        del found["Status"]
    if sizes:
        found["UsageData"] = {
            "RefCount": len(row.used_by),
            "Size": seen.size if known else -1,
        }
    return found


@route("GET", "/volumes", filters=SAME)
def list_all(gateway: Gateway, request: Request) -> Reply:
    """All volumes."""
    wanted = filters(request, ("dangling", "driver", "label", "name", "node"))
    rows, notices = _rows(gateway)
    dangling = boolean_filter(wanted, "dangling", True)
    found = []
    for row in rows:
        each = document(row)
        if "dangling" in wanted and bool(row.used_by) is dangling:
            continue
        if "driver" in wanted and each["Driver"] not in wanted["driver"]:
            continue
        if "name" in wanted and not any(value in each["Name"] for value in wanted["name"]):
            continue
        if "node" in wanted and row.node not in wanted["node"]:
            continue
        if not has_labels(each["Labels"] or {}, wanted.get("label", ())):
            continue
        found.append(each)
    return Reply({"Volumes": found, "Warnings": notices or None})


@route(
    "POST",
    "/volumes/create",
    Name=SAME,
    Driver=SAME,
    DriverOpts=SAME,
    Labels=SAME,
    ClusterVolumeSpec="refused: cluster volumes are those of a plugin with the scope global",
)
def create(gateway: Gateway, request: Request) -> Reply:
    """Create a volume; no-op for one that exists with the same settings."""
    body = Fields(request.json())
    driver, options = body.text("Driver"), body.labels("DriverOpts")
    if body.object("ClusterVolumeSpec").mapping("AccessMode"):
        raise ApiError(
            HTTPStatus.NOT_IMPLEMENTED, "ClusterVolumeSpec is not supported: use a volume plugin"
        )
    message = volumes_pb2.CreateVolumeRequest(
        name=body.text("Name"),
        driver="" if driver == "local" else driver,
        options=options,
        labels=body.labels("Labels"),
    )
    name = body.text("Name")
    existing = [row for row in _rows(gateway, name)[0] if row.declared] if name else []
    if existing and not options:
        return Reply(document(existing[0]), HTTPStatus.CREATED)
    made = gateway.call("Volumes.CreateVolume", message)
    row = volumes_pb2.VolumeRow(volume=made, declared=True)
    return Reply(document(row), HTTPStatus.CREATED)


def _find(gateway: Gateway, name: str) -> Any:
    rows = [row for row in _rows(gateway, name)[0] if document(row)["Name"] == name]
    if not rows:
        raise ApiError(HTTPStatus.NOT_FOUND, f"get {name}: no such volume")
    return rows[0]


@route("GET", "/volumes/{name}")
def inspect(gateway: Gateway, request: Request) -> Reply:
    """A volume."""
    return Reply(document(_find(gateway, request["name"])))


@route("DELETE", "/volumes/{name}", force=SAME)
def remove(gateway: Gateway, request: Request) -> Reply:
    """Remove a volume that no container uses."""
    name, force = request["name"], request.flag("force")
    try:
        row = _find(gateway, name)
    except (ApiError, Refused):
        if force:
            return NO_CONTENT
        raise
    message = volumes_pb2.RemoveVolumeRequest(
        name=name, force=force, node="" if row.declared else row.node
    )
    try:
        gateway.call("Volumes.RemoveVolume", message)
    except Refused as refused:
        raise conflict(f"remove {name}: volume is in use - [{refused.message}]") from None
    return NO_CONTENT


@route("POST", "/volumes/prune", filters=SAME)
def prune(gateway: Gateway, request: Request) -> Reply:
    """Remove volumes that no container uses."""
    wanted = filters(request, ("all", "label", "label!", "until"))
    labels: Mapping[str, str] = dict(text.partition("=")[::2] for text in wanted.get("label", ()))
    message = volumes_pb2.PruneVolumesRequest(
        all=boolean_filter(wanted, "all", request.version < (1, 42)),
        labels=labels,
        without=list(wanted.get("label!", ())),
        until=moment(next(iter(wanted.get("until", ())), ""), "until", time.time()),
    )
    reply = gateway.call("Volumes.PruneVolumes", message)
    return Reply({"VolumesDeleted": list(reply.names), "SpaceReclaimed": reply.reclaimed})
