# SPDX-License-Identifier: Apache-2.0
"""Endpoints of networks."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.dockerapi.containers.creation import read_attachment
from orchestrator.dockerapi.containers.documents import Found
from orchestrator.dockerapi.containers.lookup import find, list_containers, networks_by_name
from orchestrator.dockerapi.gateway import Gateway, remove_or_defer
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter, conflict
from orchestrator.dockerapi.http.exchange import Reply, Request
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.ids import docker_id, own_id
from orchestrator.dockerapi.parameters import (
    Fields,
    boolean_filter,
    filters,
    has_labels,
    moment,
    rfc3339,
)
from orchestrator.model.convert import to_proto
from orchestrator.model.objects import Network
from orchestrator.pb import networks_pb2

ROUTES = Routes()
route = ROUTES.route

PREDEFINED = ("bridge", "host", "none")
"""Networks that every Docker host has."""

_OVERLAY_DRIVERS = ("", "bridge", "default", "overlay", "nat")
"""Drivers for which a network of the cluster is made: its containers reach each other over all
nodes, as those of a bridge do on Docker's one host."""

_ENCRYPTED = "encrypted"
_IGNORED_OPTIONS = "com.docker.network."
"""Prefix of options for Docker's own drivers."""


@route("GET", "/networks", filters=SAME)
def list_all(gateway: Gateway, request: Request) -> Reply:
    """All networks."""
    known = ("dangling", "driver", "id", "label", "name", "scope", "type")
    wanted = filters(request, known)
    containers = list_containers(gateway)
    used = {name for each in containers for name in each.task.spec.network_names}
    rows = []
    for network in _everything(gateway):
        if all(_holds(network, key, values, used) for key, values in wanted.items()):
            rows.append(document(network, (), by_list=True))
    return Reply(rows)


def _everything(gateway: Gateway) -> list[Network]:
    """The cluster's networks, and those of Docker's names that it does not store."""
    stored = networks_by_name(gateway)
    predefined = [
        Network(id=name, name=name, driver=name if name != "none" else "null")
        for name in PREDEFINED
        if name not in stored
    ]
    # Tasks that end with their service still use one whose removal is pending.
    kept = [each for each in stored.values() if not each.remove_when_unused]
    return sorted([*kept, *predefined], key=lambda each: (each.name, each.id))


def _holds(network: Network, key: str, values: Sequence[str], used: Iterable[str]) -> bool:
    row = document(network, (), by_list=True)
    match key:
        case "name":
            return any(value in network.name for value in values)
        case "id":
            return any(row["Id"].startswith(value) for value in values)
        case "driver":
            return row["Driver"] in values
        case "scope":
            return row["Scope"] in values
        case "label":
            return has_labels(network.labels, values)
        case "type":
            for value in values:
                if value not in ("custom", "builtin"):
                    raise bad_parameter(f"invalid filter: 'type'='{value}'")
            return ("builtin" if network.name in PREDEFINED else "custom") in values
        case "dangling":
            free = network.name not in PREDEFINED and network.name not in set(used)
            return free is boolean_filter({key: values}, key, True)
    return True


def find_network(gateway: Gateway, name: str) -> Network:
    """A network by its name, its id or a prefix of that. Raises ApiError."""
    everything = _everything(gateway)
    by_name = {each.name: each for each in everything}
    if name in by_name:
        return by_name[name]
    id = own_id(name)
    matches = [
        each
        for each in everything
        if each.id == (id or name) or (name and docker_id(each.id).startswith(name))
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise bad_parameter(
            f"network {name} is ambiguous ({len(matches)} matches found on ID prefix)"
        )
    raise ApiError(HTTPStatus.NOT_FOUND, f"network {name} not found")


@route("GET", "/networks/{id}", verbose="ignored", scope=SAME)
def inspect(gateway: Gateway, request: Request) -> Reply:
    """A network with its containers."""
    network = find_network(gateway, request["id"])
    attached = [
        each
        for each in list_containers(gateway)
        if network.name in each.task.spec.network_names and each.state in ("running", "paused")
    ]
    return Reply(document(network, attached))


def document(
    network: Network, attached: Iterable[Found], *, by_list: bool = False
) -> dict[str, Any]:
    """A network as Docker describes it."""
    prefix = network.subnet.partition("/")[2]
    prefix6 = network.subnet6.partition("/")[2]
    configs = []
    if network.subnet:
        config = {"Subnet": network.subnet}
        config |= {"IPRange": network.ip_range} if network.ip_range else {}
        configs.append(config | {"Gateway": network.gateway or _first(network.subnet)})
    if network.subnet6:
        configs.append({"Subnet": network.subnet6})
    local = network.name in PREDEFINED
    found: dict[str, Any] = {
        "Name": network.name,
        "Id": docker_id(network.id),
        "Created": rfc3339(network.created_at),
        "Scope": "local" if local else "swarm",
        "Driver": network.driver,
        "EnableIPv6": bool(network.subnet6),
        "IPAM": {
            "Driver": network.ipam_driver or "default",
            "Options": dict(network.ipam_options) or None,
            "Config": configs,
        },
        "Internal": network.internal,
        # Standalone containers attach to every network.
        "Attachable": not local,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": {},
        "Options": {
            **network.options,
            **({_ENCRYPTED: ""} if network.encrypted else {}),
        },
        "Labels": dict(network.labels),
    }
    for each in attached:
        four = each.task.status.addresses.get(network.name, "")
        six = each.task.status.addresses6.get(network.name, "")
        found["Containers"][each.id] = {
            "Name": each.name,
            "EndpointID": "",
            "MacAddress": "",
            "IPv4Address": f"{four}/{prefix}" if four else "",
            "IPv6Address": f"{six}/{prefix6}" if six else "",
        }
    return found


def _first(subnet: str) -> str:
    try:
        return str(next(ipaddress.ip_network(subnet).hosts()))
    except (ValueError, StopIteration):
        return ""


@route(
    "POST",
    "/networks/create",
    Name=SAME,
    CheckDuplicate="always",
    Driver="`bridge`, `overlay` or none: a network over all nodes; others are plugins'",
    Internal=SAME,
    Attachable="always",
    Ingress="refused",
    IPAM="at most one subnet of each family",
    EnableIPv6=SAME,
    Options="those of Docker's own drivers (com.docker.network.…) are ignored",
    Labels=SAME,
    Scope="ignored",
    ConfigOnly="refused",
    ConfigFrom="refused",
)
def create(gateway: Gateway, request: Request) -> Reply:
    """Create a network."""
    body = Fields(request.json())
    name = body.text("Name")
    if not name:
        raise bad_parameter("network name is required")
    for field in ("Ingress", "ConfigOnly"):
        if body.flag(field):
            raise bad_parameter(f"{field} is not supported: a network is one of the whole cluster")
    if name in PREDEFINED:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"operation is not permitted on predefined {name} network ",
        )
    driver, ipam = body.text("Driver"), body.object("IPAM")
    options = {
        key: value
        for key, value in body.labels("Options").items()
        if not key.startswith(_IGNORED_OPTIONS)
    }
    encrypted = options.pop(_ENCRYPTED, None)
    configs = ipam.items("Config")
    message = networks_pb2.CreateNetworkRequest(
        name=name,
        driver="" if driver in _OVERLAY_DRIVERS else driver,
        subnets=[config.text("Subnet") for config in configs if config.text("Subnet")],
        gateway=next((each.text("Gateway") for each in configs if each.text("Gateway")), ""),
        ip_range=next((each.text("IPRange") for each in configs if each.text("IPRange")), ""),
        ipv6=body.flag("EnableIPv6"),
        internal=body.flag("Internal"),
        attachable=True,
        encrypted=encrypted is not None and encrypted.lower() not in ("false", "0"),
        options=options,
        labels=body.labels("Labels"),
        ipam_driver="" if ipam.text("Driver") in ("", "default") else ipam.text("Driver"),
        ipam_options=ipam.labels("Options"),
    )
    if any(each.name == name for each in _everything(gateway)):
        raise conflict(f"network with name {name} already exists")
    made = gateway.call("Networks.CreateNetwork", message)
    return Reply({"Id": docker_id(made.id), "Warning": ""}, HTTPStatus.CREATED)


@route("DELETE", "/networks/{id}")
def remove(gateway: Gateway, request: Request) -> Reply:
    """Remove a network that no container uses."""
    network = find_network(gateway, request["id"])
    if network.name in PREDEFINED:
        raise ApiError(
            HTTPStatus.FORBIDDEN, f"{network.name} is a pre-defined network and cannot be removed"
        )
    try:
        remove_or_defer(
            gateway,
            "Networks.RemoveNetwork",
            networks_pb2.RemoveNetworkRequest(network=network.id),
        )
    except Refused as refused:
        if refused.missing:
            raise ApiError(HTTPStatus.NOT_FOUND, f"network {request['id']} not found") from None
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"error while removing network: network {network.name} has active endpoints: "
            f"{refused.message}",
        ) from None
    return Reply(status=HTTPStatus.NO_CONTENT)


@route("POST", "/networks/{id}/connect", Container=SAME, EndpointConfig=SAME)
def connect(gateway: Gateway, request: Request) -> Reply:
    """Attach a container to a network."""
    body = Fields(request.json())
    network = find_network(gateway, request["id"])
    found = find(gateway, body.text("Container"))
    attachment = read_attachment(network.name, body.object("EndpointConfig"))
    if network.name in found.task.spec.network_names:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"endpoint with name {found.name} already exists in network {network.name}",
        )
    message = networks_pb2.ConnectNetworkRequest(
        attachment=to_proto(attachment), container=found.task.id
    )
    gateway.call("Networks.ConnectNetwork", message)
    return Reply()


@route("POST", "/networks/{id}/disconnect", Container=SAME, Force=SAME)
def disconnect(gateway: Gateway, request: Request) -> Reply:
    """Detach a container from a network."""
    body = Fields(request.json())
    network = find_network(gateway, request["id"])
    try:
        found = find(gateway, body.text("Container"))
    except ApiError:
        if body.flag("Force"):
            return Reply()
        raise
    if network.name not in found.task.spec.network_names and not body.flag("Force"):
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            f"container {found.id} is not connected to network {network.name}",
        )
    message = networks_pb2.DisconnectNetworkRequest(
        network=network.name, container=found.task.id, force=body.flag("Force")
    )
    gateway.call("Networks.DisconnectNetwork", message)
    return Reply()


@route("POST", "/networks/prune", filters=SAME)
def prune(gateway: Gateway, request: Request) -> Reply:
    """Remove networks that no container uses."""
    wanted = filters(request, ("until", "label", "label!"))
    labels: Mapping[str, str] = dict(text.partition("=")[::2] for text in wanted.get("label", ()))
    message = networks_pb2.PruneNetworksRequest(
        labels=labels,
        without=list(wanted.get("label!", ())),
        until=moment(next(iter(wanted.get("until", ())), ""), "until", time.time()),
    )
    reply = gateway.call("Networks.PruneNetworks", message)
    return Reply({"NetworksDeleted": list(reply.names) or None})
