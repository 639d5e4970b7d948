# SPDX-License-Identifier: Apache-2.0
"""Endpoints of nodes and of the cluster."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from orchestrator.dockerapi.containers.creation import NANOSECONDS
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter, unsupported
from orchestrator.dockerapi.http.exchange import Reply, Request
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.ids import own_swarm_id, swarm_id
from orchestrator.dockerapi.parameters import Fields, filters, has_labels, rfc3339
from orchestrator.dockerapi.swarm.specs import version
from orchestrator.model.convert import from_proto
from orchestrator.model.nodes import Availability, Node, NodeDescription, NodeState
from orchestrator.model.units import SHARES_PER_CORE
from orchestrator.pb import control_pb2, managers_pb2

ROUTES = Routes()
route = ROUTES.route

_STATES = {NodeState.READY: "ready", NodeState.DOWN: "down", NodeState.UNKNOWN: "unknown"}


def _managers(gateway: Gateway) -> dict[str, Any]:
    """Rows of the managers by hostname: a node whose host runs one is a manager in Docker's
    words."""
    reply = gateway.call("Managers.ListManagers", managers_pb2.ListManagersRequest())
    return {each.manager.hostname: each for each in reply.managers}


def _nodes(gateway: Gateway) -> list[Node]:
    reply = gateway.call("ListNodes", control_pb2.ListNodesRequest())
    return [from_proto(row.node) for row in reply.nodes]


def find_node(gateway: Gateway, name: str) -> Node:
    """A node by its id, a prefix of that, or its hostname. Raises ApiError."""
    return _found(_nodes(gateway), name)


def _found(nodes: list[Node], name: str) -> Node:
    id = own_swarm_id(name)
    for node in nodes:
        if node.id == (id or name) or node.description.hostname == name:
            return node
    matches = [node for node in nodes if name and swarm_id(node.id).startswith(name)]
    if len(matches) == 1:
        return matches[0]
    raise ApiError(HTTPStatus.NOT_FOUND, f"node {name} not found")


def _members(gateway: Gateway, managers: dict[str, Any]) -> list[Node]:
    """The nodes, and the managers on hosts that are no nodes: in Docker's words each manager is a
    node, one that takes no tasks."""
    nodes = _nodes(gateway)
    hostnames = {node.description.hostname for node in nodes}
    for hostname, row in managers.items():
        if hostname not in hostnames:
            nodes.append(
                Node(
                    id=row.manager.id,
                    created_at=row.manager.created_at,
                    availability=Availability.DRAIN,
                    description=NodeDescription(
                        hostname=hostname,
                        address=row.manager.address,
                        version=row.manager.version,
                    ),
                    state=NodeState.READY if row.state == "ready" else NodeState.DOWN,
                    revision=row.manager.revision,
                )
            )
    return sorted(nodes, key=lambda node: (node.description.hostname, node.id))


def document(node: Node, managers: dict[str, Any]) -> dict[str, Any]:
    """A node as Docker describes it."""
    described, manager = node.description, managers.get(node.description.hostname)
    generic: list[dict[str, Any]] = []
    for kind, text in described.generic_resources.items():
        if text.isdecimal():
            generic.append({"DiscreteResourceSpec": {"Kind": kind, "Value": int(text)}})
        else:
            generic += [
                {"NamedResourceSpec": {"Kind": kind, "Value": value}} for value in text.split(",")
            ]
    plugins = [{"Type": "Network", "Name": name} for name in described.network_drivers]
    plugins += [{"Type": "Volume", "Name": name} for name in described.volume_drivers]
    found: dict[str, Any] = {
        "ID": swarm_id(node.id),
        "Version": version(node.revision),
        "CreatedAt": rfc3339(node.created_at),
        "UpdatedAt": rfc3339(node.state_since or node.created_at),
        "Spec": {
            "Name": described.hostname,
            "Labels": dict(node.labels),
            "Role": "worker" if manager is None else "manager",
            "Availability": node.availability.name.lower(),
        },
        "Description": {
            "Hostname": described.hostname,
            "Platform": {
                "Architecture": described.arch,
                "OS": "linux",
            },
            "Resources": {
                "NanoCPUs": described.resources.shares * NANOSECONDS // SHARES_PER_CORE,
                "MemoryBytes": described.resources.memory,
                **({"GenericResources": generic} if generic else {}),
            },
            "Engine": {
                "EngineVersion": described.version,
                "Labels": dict(described.labels),
                "Plugins": plugins,
            },
            "TLSInfo": {},
        },
        "Status": {
            "State": _STATES[node.state],
            "Message": node.message,
            "Addr": described.address,
        },
    }
    if manager is not None:
        found["ManagerStatus"] = {
            "Leader": manager.leader,
            "Reachability": "reachable" if manager.state == "ready" else "unreachable",
            "Addr": f"{manager.manager.address}:{manager.manager.port}",
        }
    return found


@route("GET", "/nodes", filters=SAME)
def list_all(gateway: Gateway, request: Request) -> Reply:
    """Nodes."""
    wanted = filters(request, ("id", "label", "membership", "name", "node.label", "role"))
    managers = _managers(gateway)
    rows = []
    for node in _members(gateway, managers):
        found = document(node, managers)
        if "name" in wanted and not any(value in found["Spec"]["Name"] for value in wanted["name"]):
            continue
        if "id" in wanted and not any(found["ID"].startswith(each) for each in wanted["id"]):
            continue
        if "role" in wanted and found["Spec"]["Role"] not in wanted["role"]:
            continue
        labels = found["Description"]["Engine"]["Labels"]
        if not has_labels(labels, wanted.get("label", ())):
            continue
        if has_labels(node.labels, wanted.get("node.label", ())):
            rows.append(found)
    return Reply(rows)


@route("GET", "/nodes/{id}")
def inspect(gateway: Gateway, request: Request) -> Reply:
    """A node; `self` is the first manager's, as the API is that of the whole cluster."""
    managers = _managers(gateway)
    nodes = _members(gateway, managers)
    if request["id"] == "self" and nodes:
        first = next((each for each in nodes if each.description.hostname in managers), nodes[0])
        return Reply(document(first, managers))
    return Reply(document(_found(nodes, request["id"]), managers))


@route("DELETE", "/nodes/{id}", force=SAME)
def remove(gateway: Gateway, request: Request) -> Reply:
    """Remove a node from the cluster."""
    node = find_node(gateway, request["id"])
    message = control_pb2.RemoveNodeRequest(node=node.id, force=request.flag("force"))
    gateway.call("RemoveNode", message)
    return Reply()


@route(
    "POST",
    "/nodes/{id}/update",
    version=SAME,
    Name="ignored",
    Labels=SAME,
    Role=SAME,
    Availability=SAME,
)
def update(gateway: Gateway, request: Request) -> Reply:
    """Change labels, availability, or whether the host is a manager."""
    node = find_node(gateway, request["id"])
    if not request.text("version"):
        raise bad_parameter("invalid node version: the parameter 'version' is required")
    if request.number("version") > node.revision:
        raise ApiError(HTTPStatus.BAD_REQUEST, "update out of sequence")
    body = Fields(request.json())
    labels = body.labels("Labels")
    message = control_pb2.UpdateNodeRequest(
        node=node.id,
        label_add={key: value for key, value in labels.items() if node.labels.get(key) != value},
        label_rm=[key for key in node.labels if key not in labels],
    )
    word = body.text("Availability")
    if word:
        if word.upper() not in Availability.__members__:
            raise bad_parameter(f'invalid Availability: "{word}"')
        if Availability[word.upper()] is not node.availability:
            message.availability = int(Availability[word.upper()])  # type: ignore[assignment]
    gateway.call("UpdateNode", message)
    _change_role(gateway, node, body.text("Role"))
    return Reply()


def _change_role(gateway: Gateway, node: Node, role: str) -> None:
    if role not in ("", "worker", "manager"):
        raise bad_parameter(f'invalid Role: "{role}"')
    is_manager = node.description.hostname in _managers(gateway)
    if role == "manager" and not is_manager:
        request = managers_pb2.PromoteNodeRequest(node=node.id)
        gateway.call("Managers.PromoteNode", request, 120.0)
    if role == "worker" and is_manager:
        gateway.call("Managers.DemoteNode", managers_pb2.DemoteNodeRequest(node=node.id), 120.0)


# -- the cluster -------------------------------------------------------------------------------


@route("GET", "/swarm")
def inspect_swarm(gateway: Gateway, request: Request) -> Reply:
    """The cluster."""
    cluster = gateway.call("GetCluster", control_pb2.GetClusterRequest())
    return Reply(
        {
            "ID": swarm_id(cluster.id),
            "Version": version(1),
            "CreatedAt": rfc3339(cluster.created_at),
            "UpdatedAt": rfc3339(cluster.created_at),
            "Spec": {
                "Name": "default",
                "Labels": {},
                "Orchestration": {"TaskHistoryRetentionLimit": 5},
                "Raft": {
                    "SnapshotInterval": 10000,
                    "KeepOldSnapshots": 0,
                    "LogEntriesForSlowFollowers": 500,
                    "ElectionTick": 10,
                    "HeartbeatTick": 1,
                },
                "Dispatcher": {"HeartbeatPeriod": 5 * NANOSECONDS},
                "CAConfig": {"NodeCertExpiry": round(cluster.certificate_lifetime * NANOSECONDS)},
                "TaskDefaults": {},
                "EncryptionConfig": {"AutoLockManagers": False},
            },
            "TLSInfo": {
                "TrustRoot": cluster.ca_certificate,
                "CertIssuerSubject": "",
                "CertIssuerPublicKey": "",
            },
            "RootRotationInProgress": False,
            "DefaultAddrPool": [cluster.network_cidr],
            "SubnetSize": 24,
            "DataPathPort": 4789,
            "JoinTokens": {"Worker": cluster.worker_token, "Manager": cluster.manager_token},
        }
    )


@route(
    "POST",
    "/swarm/update",
    "only the rotation of join tokens",
    version="ignored",
    rotateWorkerToken=SAME,
    rotateManagerToken=SAME,
    rotateManagerUnlockKey="refused",
    **dict.fromkeys(
        (
            *("Name", "Labels", "Orchestration", "Raft", "Dispatcher", "CAConfig"),
            *("EncryptionConfig", "TaskDefaults"),
        ),
        "ignored",
    ),
)
def update_swarm(gateway: Gateway, request: Request) -> Reply:
    """Rotate join tokens."""
    if request.flag("rotateManagerUnlockKey"):
        raise unsupported("use 'orc cluster unlock-key --rotate'")
    for name, role in (("rotateWorkerToken", "worker"), ("rotateManagerToken", "manager")):
        if request.flag(name):
            gateway.call("RotateToken", control_pb2.RotateTokenRequest(role=role))
    return Reply()


@route("POST", "/swarm/init", "refused: the gateway is one of a cluster")
def init_swarm(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "This node is already part of a swarm. Use 'orc cluster init' to set up another cluster.",
    )


@route("POST", "/swarm/join", "refused: hosts join by 'orc cluster join'")
def join_swarm(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "This node is already part of a swarm. Use 'orc cluster join' on a host to have it join.",
    )


@route("POST", "/swarm/leave", "refused: hosts leave by 'orc cluster leave'")
def leave_swarm(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise unsupported("use 'orc cluster leave' on the host that is to leave the cluster")


@route("GET", "/swarm/unlockkey", "refused: 'orc cluster unlock-key'")
def unlock_key(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise unsupported("use 'orc cluster unlock-key'")


@route("POST", "/swarm/unlock", "refused: 'orc cluster unlock'")
def unlock(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise unsupported("use 'orc cluster unlock'")
