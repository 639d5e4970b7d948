# SPDX-License-Identifier: Apache-2.0
"""Endpoints about the cluster as if it were one host: ping, version, info, disk usage, events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.cli.rpc.event_resumption import EventResumption
from orchestrator.dockerapi import volumes
from orchestrator.dockerapi.containers.documents import summary
from orchestrator.dockerapi.containers.lookup import (
    images_by_digest,
    list_containers,
    networks_by_name,
)
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import bad_parameter
from orchestrator.dockerapi.http.exchange import Reply, Request, Stream, Text
from orchestrator.dockerapi.http.routing import NEWEST, OLDEST, SAME, Routes
from orchestrator.dockerapi.ids import docker_id, swarm_id
from orchestrator.dockerapi.images import familiar, image_id, list_images
from orchestrator.dockerapi.parameters import Fields, Filters, filters, has_labels, moment, rfc3339
from orchestrator.dockerapi.resumed_stream import ResumedStream
from orchestrator.model.convert import from_proto
from orchestrator.model.nodes import Node, NodeState
from orchestrator.model.units import SHARES_PER_CORE
from orchestrator.pb import containers_pb2, control_pb2, images_pb2, system_pb2, volumes_pb2

ROUTES = Routes()
route = ROUTES.route

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
"""The kernel's names of architectures → Go's."""


@route("GET", "/_ping")
def ping(gateway: Gateway, request: Request) -> Text:
    """Whether the gateway serves; no manager is called."""
    return Text("OK")


def _nodes(gateway: Gateway) -> list[Node]:
    reply = gateway.call("ListNodes", control_pb2.ListNodesRequest())
    return [from_proto(row.node) for row in reply.nodes]


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


@route("GET", "/version")
def version(gateway: Gateway, request: Request) -> Reply:
    """Versions of the gateway's API and of Orc."""
    nodes = _nodes(gateway)
    first = nodes[0].description if nodes else None
    arch = ARCHITECTURES.get(first.arch, first.arch) if first else ""
    kernel = first.kernel if first else ""
    details = {
        "ApiVersion": _version(NEWEST),
        "Arch": arch,
        "BuildTime": "",
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": "",
        "KernelVersion": kernel,
        "MinAPIVersion": _version(OLDEST),
        "Os": "linux",
    }
    return Reply(
        {
            "Platform": {"Name": "Orc"},
            "Components": [
                {"Name": "Engine", "Version": gateway.engine_version, "Details": details}
            ],
            "Version": gateway.engine_version,
            "ApiVersion": _version(NEWEST),
            "MinAPIVersion": _version(OLDEST),
            "GitCommit": "",
            "GoVersion": "",
            "Os": "linux",
            "Arch": arch,
            "KernelVersion": kernel,
            "BuildTime": "",
        }
    )


@route("GET", "/info", "sums of all nodes")
def info(gateway: Gateway, request: Request) -> Reply:
    """The cluster as one large host."""
    nodes = _nodes(gateway)
    ready = [each for each in nodes if each.state is NodeState.READY]
    containers = list_containers(gateway)
    cluster = gateway.call("GetCluster", control_pb2.GetClusterRequest())
    first = (ready or nodes)[0].description if nodes else None
    states = [each.state for each in containers]
    drivers = sorted({each for node in nodes for each in node.description.volume_drivers})
    networks = sorted({each for node in nodes for each in node.description.network_drivers})
    managers = [{"NodeID": swarm_id(each.id), "Addr": each.address} for each in cluster.managers]
    return Reply(
        {
            "ID": cluster.id,
            "Containers": len(containers),
            "ContainersRunning": states.count("running"),
            "ContainersPaused": states.count("paused"),
            "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
            "Images": len(list_images(gateway)),
            "Driver": "overlay2",
            "DriverStatus": [["Nodes", str(len(nodes))], ["Ready", str(len(ready))]],
            "Plugins": {
                "Volume": ["local", *(each for each in drivers if each != "local")],
                "Network": ["bridge", "host", "null", "overlay", *networks],
                "Authorization": None,
                "Log": ["json-file", "journald", "syslog", "none"],
            },
            "MemoryLimit": True,
            "SwapLimit": True,
            "CpuCfsPeriod": True,
            "CpuCfsQuota": True,
            "CPUShares": True,
            "CPUSet": True,
            "PidsLimit": True,
            "IPv4Forwarding": True,
            "BridgeNfIptables": False,
            "BridgeNfIp6tables": False,
            "Debug": False,
            "NFd": 0,
            "OomKillDisable": False,
            "NGoroutines": 0,
            "SystemTime": rfc3339(time.time()),
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "CgroupVersion": "2" if first and first.cgroup in ("v2", "2") else "1",
            "NEventsListener": 0,
            "KernelVersion": first.kernel if first else "",
            "OperatingSystem": first.os if first else "",
            "OSVersion": "",
            "OSType": "linux",
            "Architecture": first.arch if first else "",
            "IndexServerAddress": "https://index.docker.io/v1/",
            "RegistryConfig": {
                "AllowNondistributableArtifactsCIDRs": None,
                "AllowNondistributableArtifactsHostnames": None,
                "InsecureRegistryCIDRs": ["127.0.0.0/8"],
                "IndexConfigs": {},
                "Mirrors": None,
            },
            "NCPU": sum(each.description.resources.shares for each in ready) // SHARES_PER_CORE,
            "MemTotal": sum(each.description.resources.memory for each in ready),
            "GenericResources": None,
            "DockerRootDir": "/var/lib/orc",
            "HttpProxy": "",
            "HttpsProxy": "",
            "NoProxy": "",
            "Name": first.hostname if first and len(nodes) == 1 else "orc",
            "Labels": [],
            "ExperimentalBuild": False,
            "ServerVersion": gateway.engine_version,
            "Runtimes": {"crun": {"path": "crun"}},
            "DefaultRuntime": "crun",
            "Swarm": {
                "NodeID": managers[0]["NodeID"] if managers else "",
                "NodeAddr": managers[0]["Addr"].rpartition(":")[0] if managers else "",
                "LocalNodeState": "active",
                "ControlAvailable": True,
                "Error": "",
                "RemoteManagers": managers,
                "Nodes": len(nodes),
                "Managers": len(managers),
                "Cluster": {
                    "ID": swarm_id(cluster.id),
                    "Version": {"Index": 1},
                    "CreatedAt": rfc3339(cluster.created_at),
                    "UpdatedAt": rfc3339(cluster.created_at),
                    "Spec": {"Name": "default", "Labels": {}},
                    "TLSInfo": {"TrustRoot": cluster.ca_certificate},
                    "RootRotationInProgress": False,
                },
            },
            "LiveRestoreEnabled": True,
            "Isolation": "",
            "InitBinary": "tini",
            "ContainerdCommit": {"ID": "", "Expected": ""},
            "RuncCommit": {"ID": "", "Expected": ""},
            "InitCommit": {"ID": "", "Expected": ""},
            "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns"],
            "Warnings": None,
        }
    )


@route("GET", "/system/df", type=SAME)
def disk_usage(gateway: Gateway, request: Request) -> Reply:
    """Disk usage of all nodes together."""
    wanted = set(request.query.get("type", ())) or {"container", "image", "volume", "build-cache"}
    if unknown := wanted - {"container", "image", "volume", "build-cache"}:
        raise bad_parameter(f"unknown object type: {', '.join(sorted(unknown))}")
    usage = gateway.call("System.DiskUsage", system_pb2.DiskUsageRequest(), 60.0)
    sizes = {
        each.task_id: (each.size, each.image_size)
        for node in usage.nodes
        for each in node.containers
    }
    images, networks = images_by_digest(gateway), networks_by_name(gateway)
    containers = list_containers(gateway)
    found: dict[str, Any] = {
        "LayersSize": sum(node.images_size for node in usage.nodes),
        "Images": None,
        "Containers": None,
        "Volumes": None,
        "BuildCache": None,
    }
    now = time.time()
    if "container" in wanted:
        found["Containers"] = [summary(each, images, networks, now, sizes) for each in containers]
    if "image" in wanted:
        users = [each.task.image_digest for each in containers]
        found["Images"] = [
            {
                "Id": image_id(image),
                "ParentId": "",
                "RepoTags": [familiar(name) for name in image.names] or None,
                "RepoDigests": None,
                "Created": int(image.created_at),
                "Size": image.size,
                "VirtualSize": image.size,
                "SharedSize": 0,
                "Labels": dict(image.labels) or None,
                "Containers": users.count(image.id),
            }
            for image in list_images(gateway)
        ]
    if "volume" in wanted:
        reply = gateway.call("Volumes.ListVolumes", volumes_pb2.ListVolumesRequest())
        found["Volumes"] = [volumes.document(row, sizes=True) for row in reply.volumes]
    if "build-cache" in wanted:
        found["BuildCache"] = []
    return Reply(found)


@route(
    "POST",
    "/auth",
    "the cluster keeps the credentials: all nodes pull with them",
    username=SAME,
    password=SAME,
    serveraddress=SAME,
    email="ignored",
)
def authenticate(gateway: Gateway, request: Request) -> Reply:
    """Verify credentials at a registry; the cluster keeps them, for its nodes' pulls."""
    body = Fields(request.json())
    server = body.text("serveraddress") or "docker.io"
    server = server.removeprefix("https://").removeprefix("http://").partition("/")[0]
    message = images_pb2.LoginRequest(
        registry="docker.io" if server == "index.docker.io" else server,
        username=body.text("username"),
        password=body.text("password"),
    )
    gateway.call("Images.Login", message)
    return Reply({"Status": "Login Succeeded", "IdentityToken": ""})


_LOCAL = ("container", "image", "volume", "network")
_FILTERS = (
    *("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin"),
    *("scope", "secret", "service", "type", "volume"),
)


@route("GET", "/events", since=SAME, until=SAME, filters=SAME)
def events(gateway: Gateway, request: Request) -> Stream:
    """Events of the whole cluster."""
    wanted = filters(request, _FILTERS)
    now = time.time()
    since, until = (moment(request.text(name), name, now) for name in ("since", "until"))
    if since and until and since > until:
        raise bad_parameter("`since` time cannot be after `until` time")
    asked = containers_pb2.EventsRequest(since=since, until=until)
    calls = ResumedStream(gateway, "Containers.Events", EventResumption(asked))
    return Stream(_events(calls, wanted), cancel=calls.cancel)


def _events(calls: ResumedStream, wanted: Filters) -> Iterator[bytes]:
    yield b""
    for event in calls:
        row = _event(event)
        if all(_event_holds(row, key, values) for key, values in wanted.items()):
            yield json.dumps(row).encode() + b"\n"


def _event(event: Any) -> dict[str, Any]:
    local = event.type in _LOCAL
    id = docker_id(event.id) if event.type in ("container", "network") else event.id
    if event.type in ("service", "node", "secret", "config"):
        id = swarm_id(event.id)
    attributes: Mapping[str, str] = {
        "name": event.name,
        **({"orc.node": event.node} if event.node else {}),
        **{key: value for key, value in event.attributes.items() if key != "container"},
        **(
            {"container": docker_id(event.attributes["container"])}
            if "container" in event.attributes
            else {}
        ),
    }
    whole = int(event.at * 1e9)
    row: dict[str, Any] = {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": id, "Attributes": attributes},
        "scope": "local" if local else "swarm",
        "time": whole // 10**9,
        "timeNano": whole,
    }
    if event.type == "container":
        image = event.attributes.get("image", "")
        row |= {"status": event.action, "id": id, "from": image}
    return row


def _event_holds(row: Mapping[str, Any], key: str, values: Any) -> bool:
    actor = row["Actor"]
    match key:
        case "type":
            return row["Type"] in values
        case "event":
            return any(row["Action"].partition(":")[0] == value for value in values)
        case "scope":
            return row["scope"] in values
        case "label":
            return has_labels(actor["Attributes"], values)
        case "daemon" | "plugin":
            return True
        case "image":
            return any(
                value
                in (actor["ID"], actor["Attributes"].get("image"), actor["Attributes"]["name"])
                for value in values
            )
    if row["Type"] != key:
        return False
    return any(
        actor["ID"].startswith(value) or actor["Attributes"]["name"] == value for value in values
    )
