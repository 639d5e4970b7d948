# SPDX-License-Identifier: Apache-2.0
"""Endpoints that create, list, inspect, start, stop and remove containers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.dockerapi.containers.creation import (
    BLOCK_IO,
    IGNORED,
    NO_BLOCK_IO,
    NOTES,
    console_size,
    constraints,
    cpu_limit,
    network_name,
    read_restart,
    read_spec,
    refuse_block_io,
)
from orchestrator.dockerapi.containers.documents import STATES, Found, details, summary
from orchestrator.dockerapi.containers.failures import start_failure
from orchestrator.dockerapi.containers.lookup import (
    find,
    images_by_digest,
    list_containers,
    networks_by_name,
    read_row,
    until,
    watch,
)
from orchestrator.dockerapi.gateway import Gateway, Streamed
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter, conflict, not_found
from orchestrator.dockerapi.http.exchange import (
    NO_CONTENT,
    NOT_MODIFIED,
    Reply,
    Request,
    Stream,
)
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.ids import docker_id
from orchestrator.dockerapi.images import image_config
from orchestrator.dockerapi.parameters import (
    Fields,
    Filters,
    boolean_filter,
    filters,
    has_labels,
    moment,
)
from orchestrator.model.convert import to_proto
from orchestrator.model.names import parse_image
from orchestrator.model.objects import Image
from orchestrator.model.states import TaskState, is_terminal
from orchestrator.model.tasks import Task
from orchestrator.pb import containers_pb2, system_pb2

ROUTES = Routes()
route = ROUTES.route

FILTERS = (
    *("ancestor", "before", "expose", "exited", "health", "id", "is-task", "label", "name"),
    *("network", "publish", "since", "status", "volume", "node"),
)


@route("GET", "/containers/json", all=SAME, limit=SAME, size=SAME, filters="also `node`")
def list_all(gateway: Gateway, request: Request) -> Reply:
    """List containers of all nodes."""
    wanted = filters(request, FILTERS)
    limit = request.number("limit")
    images, networks = images_by_digest(gateway), networks_by_name(gateway)
    everything = sorted(
        list_containers(gateway), key=lambda each: (each.task.created_at, each.id), reverse=True
    )
    sizes = _sizes(gateway) if request.flag("size") else None
    shown = request.flag("all") or limit > 0 or "status" in wanted or "exited" in wanted
    now = time.time()
    rows = []
    for found in _matching(everything, wanted, images):
        if not shown and found.state not in ("running", "paused", "restarting"):
            continue
        rows.append(summary(found, images, networks, now, sizes))
        if len(rows) == limit:
            break
    return Reply(rows)


def _sizes(gateway: Gateway) -> dict[str, tuple[int, int]]:
    reply = gateway.call("System.DiskUsage", system_pb2.DiskUsageRequest(containers_only=True))
    return {
        each.task_id: (each.size, each.image_size)
        for node in reply.nodes
        for each in node.containers
    }


def _matching(
    everything: Sequence[Found], wanted: Filters, images: Mapping[str, Any]
) -> Iterator[Found]:
    moments = {
        key: _created(everything, wanted[key]) for key in ("before", "since") if key in wanted
    }
    for status in wanted.get("status", ()):
        if status not in STATES:
            raise bad_parameter(f"invalid filter 'status={status}'")
    is_task = boolean_filter(wanted, "is-task", True)
    for found in everything:
        if "is-task" in wanted and bool(found.task.service_id) is not is_task:
            continue
        if "before" in moments and found.task.created_at >= moments["before"]:
            continue
        if "since" in moments and found.task.created_at <= moments["since"]:
            continue
        if not has_labels(found.labels, wanted.get("label", ())):
            continue
        if all(
            any(_holds(found, key, value, images) for value in values)
            for key, values in wanted.items()
            if key not in ("label", "before", "since", "is-task")
        ):
            yield found


def _created(everything: Sequence[Found], names: Sequence[str]) -> float:
    for name in names:
        for found in everything:
            if found.name == name or found.id.startswith(name):
                return found.task.created_at
    raise not_found("container", names[0] if names else "")


def _holds(found: Found, key: str, value: str, images: Mapping[str, Any]) -> bool:
    task = found.task
    match key:
        case "name":
            return _name_matches(found.name, value)
        case "id":
            return found.id.startswith(value)
        case "status":
            return found.state == value
        case "exited":
            return found.state == "exited" and str(found.exit_code) == value
        case "health":
            return task.status.health.name.lower() == value
        case "network":
            wanted = network_name(value)
            return any(
                wanted == name or docker_id(name) == value for name in task.spec.network_names
            )
        case "volume":
            return any(value in (each.source, each.target) for each in task.spec.container.mounts)
        case "publish" | "expose":
            return any(
                str(port.published if key == "publish" else port.target)
                == value.partition("/")[0].partition("-")[0]
                for port in task.spec.ports
            )
        case "node":
            return found.node is not None and found.node.description.hostname == value
        case "ancestor":
            return _same_image(task, value, images)
    return True


def _name_matches(name: str, pattern: str) -> bool:
    """Docker takes a regular expression; a plain part of the name is one, too."""
    try:
        return re.search(pattern, name) is not None or re.search(pattern, f"/{name}") is not None
    except re.error:
        return False


def _same_image(task: Task, wanted: str, images: Mapping[str, Any]) -> bool:
    image = images.get(task.image_digest)
    if image is not None and image.config_digest.removeprefix("sha256:").startswith(
        wanted.removeprefix("sha256:")
    ):
        return True
    try:
        return str(parse_image(task.spec.container.image)) == str(parse_image(wanted))
    except ValueError:
        return False


@route("POST", "/containers/create", name=SAME, platform="ignored", **NOTES)
def create(gateway: Gateway, request: Request) -> Reply:
    """Create a container: a node is chosen, and prepares it."""
    body = Fields(request.json())
    name = request.text("name")
    _, config = image_config(gateway, body.text("Image"))
    spec = read_spec(body, config.get("ExposedPorts") or {})
    size = console_size(body.object("HostConfig"))
    labels = spec.container.labels
    try:
        task = gateway.call(
            "Containers.CreateContainer",
            containers_pb2.CreateContainerRequest(
                name=name.removeprefix("/"),
                spec=to_proto(spec),
                constraints=constraints(labels),
                auto_remove=body.object("HostConfig").flag("AutoRemove"),
            ),
        )
    except Refused as refused:
        if refused.missing:
            # By 404 clients understand that the image is missing.
            raise bad_parameter(refused.message) from None
        if "already" in refused.message and name and "name" in refused.message:
            raise conflict(
                f'Conflict. The container name "/{name}" is already in use. You have to remove '
                "(or rename) that container to be able to reuse that name."
            ) from None
        raise
    found, removed = until(gateway, task.id, lambda each, gone: _is_prepared(each.task))
    if removed or not _can_start(found.task):
        _discard(gateway, task.id)
        status = found.task.status
        raise ApiError(
            HTTPStatus.BAD_REQUEST,
            start_failure(status.message or "it was removed", status.exit_code),
        )
    id = docker_id(task.id)
    if spec.container.tty and all(size):
        gateway.first_sizes.add(id, *size)
    return Reply({"Id": id, "Warnings": []}, HTTPStatus.CREATED)


def _is_prepared(task: Task) -> bool:
    status = task.status
    return status.state >= TaskState.READY and status.run >= task.run


def _can_start(task: Task) -> bool:
    return not is_terminal(task.status.state)


def _discard(gateway: Gateway, id: str) -> None:
    request = containers_pb2.RemoveContainerRequest(container=id, force=True, volumes=True)
    with suppress(Refused):
        gateway.call("Containers.RemoveContainer", request)


@route("GET", "/containers/{id}/json", "adds `Node`", size=SAME)
def inspect(gateway: Gateway, request: Request) -> Reply:
    """A container in full."""
    found = find(gateway, request["id"])
    spec = found.task.spec.container
    image: Image | None = None
    config: Mapping[str, Any] = {}
    if spec.image:
        with suppress(ApiError):  # removed since
            image, config = image_config(gateway, found.task.image_digest or spec.image)
    document = details(found, image, config, networks_by_name(gateway))
    if request.flag("size"):
        own, below = _sizes(gateway).get(found.task.id, (0, 0))
        document |= {"SizeRw": own, "SizeRootFs": own + below}
    return Reply(document)


@route("POST", "/containers/{id}/start", detachKeys=SAME)
def start(gateway: Gateway, request: Request) -> Reply:
    """Start a container, and return once its program runs."""
    found = find(gateway, request["id"])
    if found.state in ("running", "paused"):
        return NOT_MODIFIED
    task = gateway.call(
        "Containers.StartContainer", containers_pb2.ContainerRequest(container=found.task.id)
    )
    return _started(gateway, task.id, task.run)


def _started(gateway: Gateway, id: str, run: int) -> Reply:
    """Wait until a run has begun. Raises ApiError if it cannot."""

    def begun(each: Found, gone: bool) -> bool:
        status = each.task.status
        return status.run >= run and (
            status.state is TaskState.RUNNING or is_terminal(status.state)
        )

    found, _ = until(gateway, id, begun)
    status = found.task.status
    if status.started_at or not is_terminal(status.state):
        return NO_CONTENT
    reason = status.message or "the container could not be started"
    raise ApiError(
        HTTPStatus.BAD_REQUEST,
        f"failed to create task for container: {start_failure(reason, status.exit_code)}",
    )


@route("POST", "/containers/{id}/stop", signal=SAME, t=SAME)
def stop(gateway: Gateway, request: Request) -> Reply:
    """Stop a container, and return once it has ended."""
    found = find(gateway, request["id"])
    if found.state in ("exited", "created", "dead"):
        return NOT_MODIFIED
    gateway.call("Containers.StopContainer", _stop_request(found, request))
    until(gateway, found.task.id, lambda each, gone: gone or is_terminal(each.task.status.state))
    return NO_CONTENT


def _stop_request(found: Found, request: Request) -> Any:
    message = containers_pb2.StopContainerRequest(
        container=found.task.id, signal=request.text("signal")
    )
    if request.text("t"):
        seconds = request.number("t")
        # -1: Docker waits for ever; a day is as good.
        message.grace = 86400.0 if seconds < 0 else float(seconds)
    return message


@route("POST", "/containers/{id}/restart", signal=SAME, t=SAME)
def restart(gateway: Gateway, request: Request) -> Reply:
    """Stop a container and start it again."""
    found = find(gateway, request["id"])
    task = gateway.call("Containers.RestartContainer", _stop_request(found, request))
    return _started(gateway, task.id, task.run)


@route("POST", "/containers/{id}/kill", signal=SAME)
def kill(gateway: Gateway, request: Request) -> Reply:
    """Send a signal."""
    found = find(gateway, request["id"])
    if found.state not in ("running", "paused", "restarting"):
        raise conflict(
            f"cannot kill container: {request['id']}: container {found.id} is not running"
        )
    message = containers_pb2.KillContainerRequest(
        container=found.task.id, signal=request.text("signal")
    )
    gateway.call("Containers.KillContainer", message)
    return NO_CONTENT


@route("POST", "/containers/{id}/pause")
def pause(gateway: Gateway, request: Request) -> Reply:
    """Freeze the processes."""
    found = find(gateway, request["id"])
    if found.state == "paused":
        raise conflict(f"Container {found.id} is already paused")
    if found.state != "running":
        raise conflict(f"Container {found.id} is not running")
    gateway.call(
        "Containers.PauseContainer", containers_pb2.ContainerRequest(container=found.task.id)
    )
    return NO_CONTENT


@route("POST", "/containers/{id}/unpause")
def unpause(gateway: Gateway, request: Request) -> Reply:
    """Let frozen processes go on."""
    found = find(gateway, request["id"])
    if found.state != "paused":
        raise conflict(f"Container {found.id} is not paused")
    gateway.call(
        "Containers.UnpauseContainer", containers_pb2.ContainerRequest(container=found.task.id)
    )
    return NO_CONTENT


@route("POST", "/containers/{id}/rename", name=SAME)
def rename(gateway: Gateway, request: Request) -> Reply:
    """Give it another name."""
    found = find(gateway, request["id"])
    name = request.text("name").removeprefix("/")
    if not name:
        raise bad_parameter("Neither old nor new names may be empty")
    message = containers_pb2.RenameContainerRequest(container=found.task.id, name=name)
    gateway.call("Containers.RenameContainer", message)
    return NO_CONTENT


_LIMITS = {
    "CpuShares": "shares",
    "Memory": "limit_memory",
    "MemoryReservation": "reserved_memory",
    "MemorySwap": "memory_swap",
    "PidsLimit": "pids_limit",
}


@route(
    "POST",
    "/containers/{id}/update",
    RestartPolicy=SAME,
    NanoCpus=SAME,
    CpusetCpus=SAME,
    CpuQuota=NOTES["HostConfig.CpuQuota"],
    CpuPeriod=NOTES["HostConfig.CpuPeriod"],
    **dict.fromkeys(_LIMITS, SAME),
    **dict.fromkeys(BLOCK_IO, NO_BLOCK_IO),
    **dict.fromkeys(
        (
            *("CgroupParent", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpusetMems", "Devices"),
            *("DeviceCgroupRules", "DeviceRequests", "KernelMemoryTCP", "MemorySwappiness"),
            *("OomKillDisable", "Init", "Ulimits", "CpuCount", "CpuPercent", "IOMaximumIOps"),
            "IOMaximumBandwidth",
        ),
        IGNORED,
    ),
)
def update(gateway: Gateway, request: Request) -> Reply:
    """Change limits and the restart policy without a restart."""
    body = Fields(request.json())
    found = find(gateway, request["id"])
    message = containers_pb2.UpdateContainerRequest(container=found.task.id)
    for name, field in _LIMITS.items():
        if body.number(name):
            setattr(message, field, body.number(name))
    refuse_block_io(body)
    if shares := cpu_limit(body):
        message.limit_shares = shares
    if body.text("CpusetCpus"):
        message.cpuset_cpus = body.text("CpusetCpus")
    if "RestartPolicy" in body and body.object("RestartPolicy").text("Name"):
        message.restart.CopyFrom(to_proto(read_restart(body.object("RestartPolicy"))))
    gateway.call("Containers.UpdateContainer", message)
    return Reply({"Warnings": []})


@route("DELETE", "/containers/{id}", v=SAME, force=SAME, link="refused")
def remove(gateway: Gateway, request: Request) -> Reply:
    """Remove a container, and return once it is gone."""
    if request.flag("link"):
        raise bad_parameter("links of containers are not supported")
    found = find(gateway, request["id"])
    if not request.flag("force") and found.state in ("running", "paused", "restarting"):
        hint = (
            "container is paused and must be unpaused first"
            if found.state == "paused"
            else f"container is {found.state}: stop the container before removing or force remove"
        )
        raise conflict(f'cannot remove container "/{found.name}": {hint}')
    message = containers_pb2.RemoveContainerRequest(
        container=found.task.id, force=request.flag("force"), volumes=request.flag("v")
    )
    gateway.call("Containers.RemoveContainer", message)
    with suppress(Refused, ApiError):  # it was gone before it could be watched
        until(gateway, found.task.id, lambda each, gone: gone)
    return NO_CONTENT


@route("POST", "/containers/prune", filters=SAME)
def prune(gateway: Gateway, request: Request) -> Reply:
    """Remove containers that have ended."""
    wanted = filters(request, ("until", "label", "label!"))
    now = time.time()
    before = moment(next(iter(wanted.get("until", ())), ""), "until", now)
    deleted = []
    sizes: Mapping[str, tuple[int, int]] = _sizes(gateway)
    freed = 0
    for found in list_containers(gateway):
        if found.task.service_id or found.state not in ("exited", "created", "dead"):
            continue
        if before and found.task.created_at >= before:
            continue
        labels = found.labels
        if not has_labels(labels, wanted.get("label", ())):
            continue
        if any(has_labels(labels, [each]) for each in wanted.get("label!", ())):
            continue
        try:
            message = containers_pb2.RemoveContainerRequest(container=found.task.id, volumes=True)
            gateway.call("Containers.RemoveContainer", message)
        except Refused:
            continue
        deleted.append(found.id)
        freed += sizes.get(found.task.id, (0, 0))[0]
    return Reply({"ContainersDeleted": deleted, "SpaceReclaimed": freed})


@route("POST", "/containers/{id}/wait", condition=SAME)
def wait(gateway: Gateway, request: Request) -> Stream:
    """Wait for an exit; the headers are sent at once."""
    condition = request.text("condition") or "not-running"
    if condition not in ("not-running", "next-exit", "removed"):
        raise bad_parameter(f'invalid condition: "{condition}"')
    found = find(gateway, request["id"])
    rows = watch(gateway, found.task.id)
    return Stream(_exit(rows, found, condition), cancel=rows.cancel)


def _exit(rows: Streamed, found: Found, condition: str) -> Iterator[bytes]:
    yield b""
    ended = is_terminal(found.task.status.state)
    wanted = found.task.status.run + 1 if ended else found.task.status.run
    code, error = found.exit_code, ""
    idle = condition == "not-running" and found.state in ("created", "exited", "dead")
    if not idle:
        for row in rows:
            each = read_row(row)
            status = each.task.status
            exited = is_terminal(status.state) and status.run >= wanted
            if exited or is_terminal(status.state):
                code = each.exit_code
            if row.removed or (exited and condition != "removed"):
                break
            if condition == "not-running" and is_terminal(status.state):
                break
    answer: dict[str, Any] = {"StatusCode": code}
    if error:
        answer["Error"] = {"Message": error}
    yield json.dumps(answer).encode() + b"\n"
