# SPDX-License-Identifier: Apache-2.0
"""Endpoints of services and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.cli.service.service_rows import has_exit_code, task_error
from orchestrator.dockerapi.containers.creation import network_name
from orchestrator.dockerapi.containers.lookup import networks_by_name
from orchestrator.dockerapi.containers.output import stream_logs
from orchestrator.dockerapi.gateway import Gateway
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter
from orchestrator.dockerapi.http.exchange import Reply, Request, Stream
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.ids import docker_id, own_swarm_id, swarm_id
from orchestrator.dockerapi.images import credentials
from orchestrator.dockerapi.networks import document as network_document
from orchestrator.dockerapi.networks import find_network
from orchestrator.dockerapi.parameters import Fields, filters, has_labels, rfc3339
from orchestrator.dockerapi.swarm.specs import (
    NOTES,
    container_spec,
    kept,
    ports,
    read_service,
    reference_ids,
    service_spec,
    version,
)
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.documents import DocumentKind
from orchestrator.model.names import parse_image
from orchestrator.model.objects import Network
from orchestrator.model.services import JobState, Service, UpdateState
from orchestrator.model.specs import ServiceMode, ServiceSpec
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Task
from orchestrator.pb import control_pb2, documents_pb2, images_pb2

ROUTES = Routes()
route = ROUTES.route

_UPDATES = {
    UpdateState.UPDATING: "updating",
    UpdateState.CANARY: "updating",
    UpdateState.PAUSED: "paused",
    UpdateState.COMPLETED: "completed",
    UpdateState.ROLLING_BACK: "rollback_started",
    UpdateState.ROLLBACK_PAUSED: "rollback_paused",
    UpdateState.ROLLED_BACK: "rollback_completed",
}
_MODES = {
    ServiceMode.REPLICATED: "replicated",
    ServiceMode.GLOBAL: "global",
    ServiceMode.REPLICATED_JOB: "replicated-job",
    ServiceMode.GLOBAL_JOB: "global-job",
}


class _Names:
    """Ids and names of what specs refer to."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.networks: Mapping[str, Network] = networks_by_name(gateway)
        self.network_ids = {name: docker_id(each.id) for name, each in self.networks.items()}
        rows = [
            row
            for kind in DocumentKind
            for row in gateway.call(
                "Documents.ListDocuments",
                documents_pb2.ListDocumentsRequest(kind=int(kind)),  # type: ignore[arg-type]
            ).documents
        ]
        self.document_ids = reference_ids(rows)

    def network(self, name: str) -> str:
        """The name of a network that is named by its id or name."""
        if network_name(name) in self.networks:
            return network_name(name)
        return find_network(self._gateway, name).name

    def document(self, kind: DocumentKind, id: str) -> str:
        """The name of a secret or config."""
        for (each, name), found in self.document_ids.items():
            if each is kind and found == id:
                return name
        raise ApiError(HTTPStatus.NOT_FOUND, f"{kind.name.lower()} {id} not found")


def own_service(name: str) -> str:
    """Our id in a Swarm id, else the name."""
    return own_swarm_id(name) or name


def find_row(gateway: Gateway, name: str) -> Any:
    """The ServiceRow of a service. Raises ApiError."""
    try:
        request = control_pb2.ListServicesRequest(service=own_service(name))
        return gateway.call("ListServices", request).services[0]
    except (Refused, IndexError) as error:
        if isinstance(error, Refused) and not error.missing:
            raise
        raise ApiError(HTTPStatus.NOT_FOUND, f"service {name} not found") from None


def document(row: Any, names: _Names, *, status: bool) -> dict[str, Any]:
    """A service as Docker describes it, from a ServiceRow."""
    service: Service = from_proto(row.service)
    spec = service.spec
    found: dict[str, Any] = {
        "ID": swarm_id(service.id),
        "Version": version(service.revision),
        "CreatedAt": rfc3339(service.created_at),
        "UpdatedAt": rfc3339(service.updated_at),
        "Spec": service_spec(spec, names.network_ids, names.document_ids),
        "Endpoint": {
            "Spec": {
                "Mode": spec.endpoint_mode.name.lower(),
                **({"Ports": ports(spec.task.ports)} if spec.task.ports else {}),
            },
            **({"Ports": ports(spec.task.ports)} if spec.task.ports else {}),
            "VirtualIPs": [
                {"NetworkID": names.network_ids.get(name, name), "Addr": f"{address}/32"}
                for name, address in service.vips.items()
            ],
        },
    }
    if service.history:
        found["PreviousSpec"] = service_spec(
            service.history[0].spec, names.network_ids, names.document_ids
        )
    if service.update.state in _UPDATES:
        found["UpdateStatus"] = {
            "State": _UPDATES[service.update.state],
            "StartedAt": rfc3339(service.update.started_at),
            **(
                {"CompletedAt": rfc3339(service.update.finished_at)}
                if service.update.finished_at
                else {}
            ),
            "Message": service.update.message or _UPDATES[service.update.state],
        }
    if status:
        found["ServiceStatus"] = {
            "RunningTasks": row.running,
            "DesiredTasks": row.desired,
            "CompletedTasks": row.completed,
        }
    if spec.mode.is_job and service.job.runs:
        run = service.job.runs[0]
        found["JobStatus"] = {
            "JobIteration": version(run.number),
            "LastExecution": rfc3339(run.started_at),
        }
        if run.state is not JobState.RUNNING and status:
            found["ServiceStatus"]["DesiredTasks"] = 0
    return found


@route("GET", "/services", filters=SAME, status=SAME)
def list_all(gateway: Gateway, request: Request) -> Reply:
    """Services and jobs."""
    wanted = filters(request, ("id", "label", "mode", "name"))
    reply = gateway.call("ListServices", control_pb2.ListServicesRequest())
    names = _Names(gateway)
    rows = []
    for row in reply.services:
        if row.service.removed:
            continue
        found = document(row, names, status=request.flag("status"))
        mode = _MODES[ServiceMode(row.service.spec.mode)]
        if "name" in wanted and not any(
            found["Spec"]["Name"].startswith(value) for value in wanted["name"]
        ):
            continue
        if "id" in wanted and not any(found["ID"].startswith(each) for each in wanted["id"]):
            continue
        if "mode" in wanted and mode not in wanted["mode"]:
            continue
        if has_labels(found["Spec"]["Labels"], wanted.get("label", ())):
            rows.append(found)
    return Reply(rows)


def _share_credentials(gateway: Gateway, request: Request, spec: ServiceSpec) -> None:
    """Log the cluster in to the image's registry with what the request's header has: nodes that
    pull the image get the credentials from the cluster."""
    if (login := credentials(request)) is None:
        return
    try:
        registry = parse_image(spec.task.container.image).registry or "docker.io"
    except ValueError as error:
        raise bad_parameter(str(error)) from None
    if login.identity_token:
        raise bad_parameter(
            f"X-Registry-Auth has an identity token for {registry}, which services cannot use; log "
            "in with a user name and a password"
        )
    message = images_pb2.LoginRequest(
        registry=registry, username=login.username, password=login.password
    )
    gateway.call("Images.Login", message)


@route("POST", "/services/create", **NOTES)
def create(gateway: Gateway, request: Request) -> Reply:
    """Create a service; one without a name gets one of its image."""
    names = _Names(gateway)
    spec = read_service(Fields(request.json()), names.network, names.document)
    if not spec.name:
        raise bad_parameter("name must be valid as a DNS name component")
    _share_credentials(gateway, request, spec)
    made = gateway.call("CreateService", control_pb2.CreateServiceRequest(spec=to_proto(spec)))
    return Reply({"ID": swarm_id(made.id), "Warnings": None}, HTTPStatus.CREATED)


@route("GET", "/services/{id}", insertDefaults="always")
def inspect(gateway: Gateway, request: Request) -> Reply:
    """A service."""
    row = find_row(gateway, request["id"])
    return Reply(document(row, _Names(gateway), status=False))


@route("DELETE", "/services/{id}")
def remove(gateway: Gateway, request: Request) -> Reply:
    """Remove a service and its tasks."""
    row = find_row(gateway, request["id"])
    gateway.call("RemoveService", control_pb2.RemoveServiceRequest(service=row.service.id))
    return Reply()


@route(
    "POST",
    "/services/{id}/update",
    version=SAME,
    registryAuthFrom="ignored",
    rollback=SAME,
    **NOTES,
)
def update(gateway: Gateway, request: Request) -> Reply:
    """Change a service's spec."""
    row = find_row(gateway, request["id"])
    service: Service = from_proto(row.service)
    body = Fields(request.json())
    if request.text("rollback") == "previous":
        gateway.call("RollbackService", control_pb2.RollbackServiceRequest(service=service.id))
        return Reply({"Warnings": None})
    if not request.text("version"):
        raise bad_parameter(
            'invalid service version \'""\': strconv.ParseUint: parsing "": invalid syntax'
        )
    names = _Names(gateway)
    spec = kept(read_service(body, names.network, names.document), service.spec)
    _share_credentials(gateway, request, spec)
    revision = request.number("version")
    message = control_pb2.UpdateServiceRequest(
        service=service.id,
        spec=to_proto(spec),
        revision=revision,
        base=to_proto(service.spec),
        resolve_image=spec.task.container.image != service.spec.task.container.image,
    )
    try:
        gateway.call("UpdateService", message)
    except Refused as refused:
        if refused.conflict:
            raise ApiError(HTTPStatus.BAD_REQUEST, "update out of sequence") from None
        raise
    return Reply({"Warnings": None})


@route(
    "GET",
    "/services/{id}/logs",
    details="always",
    follow=SAME,
    stdout=SAME,
    stderr=SAME,
    since=SAME,
    timestamps=SAME,
    tail=SAME,
)
def service_logs(gateway: Gateway, request: Request) -> Stream:
    """The output of a service's tasks."""
    row = find_row(gateway, request["id"])
    return stream_logs(gateway, request, row.service.id, names=request.flag("details"))


# -- tasks -------------------------------------------------------------------------------------


def _tasks(gateway: Gateway) -> list[Task]:
    reply = gateway.call("ListTasks", control_pb2.ListTasksRequest())
    return [from_proto(message) for message in reply.tasks]


def task_document(task: Task, names: _Names) -> dict[str, Any]:
    """A task as Docker describes it."""
    status = task.status
    up = status.state is TaskState.RUNNING
    found: dict[str, Any] = {
        "ID": swarm_id(task.id),
        "Version": version(task.revision),
        "CreatedAt": rfc3339(task.created_at),
        "UpdatedAt": rfc3339(status.at or task.created_at),
        "Name": "",
        "Labels": {},
        "Spec": {
            "ContainerSpec": container_spec(task.spec.container, names.document_ids),
            "Resources": {},
            "Placement": {},
            "Networks": [
                {"Target": names.network_ids.get(each.network, each.network)}
                for each in task.spec.networks
            ],
            "ForceUpdate": task.spec.force,
        },
        "ServiceID": swarm_id(task.service_id),
        "NodeID": swarm_id(task.node_id),
        "Status": {
            "Timestamp": rfc3339(status.at or task.created_at),
            "State": status.state.name.lower(),
            "Message": status.message or ("started" if up else status.state.name.lower()),
            "ContainerStatus": {
                "ContainerID": docker_id(task.id) if task.node_id else "",
                "PID": status.pid if up else 0,
                "ExitCode": status.exit_code if has_exit_code(task) else 0,
            },
            "PortStatus": {},
        },
        "DesiredState": task.wanted_now.name.lower(),
        "NetworksAttachments": [
            {
                "Network": _attached(names.networks[name]),
                "Addresses": [f"{address}/{names.networks[name].subnet.partition('/')[2] or 32}"],
            }
            for name, address in status.addresses.items()
            if name in names.networks
        ],
    }
    if task.slot:
        found["Slot"] = task.slot
    if error := task_error(task):
        found["Status"]["Err"] = error
    return found


def _attached(network: Network) -> dict[str, Any]:
    row = network_document(network, (), by_list=True)
    return {
        "ID": row["Id"],
        "Version": version(network.revision),
        "CreatedAt": row["Created"],
        "UpdatedAt": row["Created"],
        "Spec": {"Name": network.name, "Labels": row["Labels"]},
        "DriverState": {"Name": network.driver},
        "IPAMOptions": {"Driver": {"Name": "default"}, "Configs": row["IPAM"]["Config"]},
    }


@route("GET", "/tasks", filters=SAME)
def list_tasks(gateway: Gateway, request: Request) -> Reply:
    """Tasks of services."""
    known = ("desired-state", "id", "label", "name", "node", "service", "_up-to-date", "runtime")
    wanted = filters(request, known)
    names = _Names(gateway)
    services = [_service_id(gateway, each) for each in wanted.get("service", ())]
    nodes = [_node_id(gateway, each) for each in wanted.get("node", ())]
    rows = []
    for task in _tasks(gateway):
        if not task.service_id:
            continue
        if "service" in wanted and task.service_id not in services:
            continue
        if "node" in wanted and task.node_id not in nodes:
            continue
        if not _task_holds(task, wanted):
            continue
        rows.append(task_document(task, names))
    return Reply(rows)


def _service_id(gateway: Gateway, name: str) -> str:
    try:
        return str(find_row(gateway, name).service.id)
    except ApiError:
        return ""


def _node_id(gateway: Gateway, name: str) -> str:
    from orchestrator.dockerapi.swarm.nodes import find_node

    try:
        return find_node(gateway, name).id
    except ApiError:
        return ""


def _task_holds(task: Task, wanted: Mapping[str, Sequence[str]]) -> bool:
    for key, values in wanted.items():
        match key:
            case "desired-state":
                words = {
                    "running": ("running",),
                    "shutdown": ("shutdown", "remove", "complete"),
                    "accepted": ("accepted", "ready"),
                }
                state = task.wanted_now.name.lower()
                if not any(state in words.get(value, (value,)) for value in values):
                    return False
            case "id":
                if not any(swarm_id(task.id).startswith(value) for value in values):
                    return False
            case "name":
                if not any(task.name.startswith(value) for value in values):
                    return False
            case "label":
                if not has_labels(task.spec.container.labels, values):
                    return False
    return True


def find_task(gateway: Gateway, name: str) -> Task:
    """A task of a service by its id, a prefix of that, or its name. Raises ApiError."""
    id = own_swarm_id(name)
    for task in _tasks(gateway):
        if task.service_id and (
            task.id == (id or name) or swarm_id(task.id).startswith(name) or task.name == name
        ):
            return task
    raise ApiError(HTTPStatus.NOT_FOUND, f"task {name} not found")


@route("GET", "/tasks/{id}")
def inspect_task(gateway: Gateway, request: Request) -> Reply:
    """A task of a service."""
    return Reply(task_document(find_task(gateway, request["id"]), _Names(gateway)))


@route(
    "GET",
    "/tasks/{id}/logs",
    details="always",
    follow=SAME,
    stdout=SAME,
    stderr=SAME,
    since=SAME,
    timestamps=SAME,
    tail=SAME,
)
def task_logs(gateway: Gateway, request: Request) -> Stream:
    """The output of a task."""
    task = find_task(gateway, request["id"])
    return stream_logs(
        gateway, request, task.id, tty=task.spec.container.tty, names=request.flag("details")
    )
