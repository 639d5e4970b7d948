# SPDX-License-Identifier: Apache-2.0
"""Templates out of Docker users' scripts, on what `inspect` shows."""

from __future__ import annotations

import pytest

from orchestrator.cli.cluster.node_rows import node_row
from orchestrator.cli.container.container_rows import container_document
from orchestrator.cli.network.network_commands import described_network
from orchestrator.cli.output.listings import Row, template_lines
from orchestrator.cli.service.service_rows import service_document
from orchestrator.model.convert import to_proto
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.nodes import Node, NodeDescription, NodeState
from orchestrator.model.objects import Network
from orchestrator.model.services import Service
from orchestrator.model.specs import (
    ContainerSpec,
    PortSpec,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from orchestrator.model.states import TaskState
from orchestrator.model.tasks import Health, Task, TaskStatus
from orchestrator.pb import containers_pb2, control_pb2

NODE = Node(
    id="n1",
    role="worker",
    state=NodeState.READY,
    labels={"zone": "a"},
    description=NodeDescription(
        hostname="node1", address="10.0.0.1", version="1.2", resources=Resources(2048, 1 << 30)
    ),
)
SPEC = TaskSpec(
    container=ContainerSpec(
        image="hello:1",
        env=("A=1",),
        command=("sh", "-c", "true"),
        mounts=(
            MountSpec(source="data", target="/data"),
            MountSpec(MountType.BIND, source="/etc", target="/e", read_only=True),
        ),
    ),
    limit=Resources(512, 64 << 20),
    ports=(PortSpec(8080, 80),),
    restart=RestartPolicy(RestartCondition.ANY),
)
RUNNING = Task(
    id="t1",
    node_id="n1",
    container_name="web",
    spec=SPEC,
    desired_state=TaskState.RUNNING,
    status=TaskStatus(
        TaskState.RUNNING, pid=7, addresses={"default": "10.1.0.2"}, health=Health.HEALTHY
    ),
)
ENDED = Task(
    id="t2",
    container_name="job",
    spec=SPEC,
    status=TaskStatus(TaskState.FAILED, exit_code=3, started_at=1.0, finished_at=2.0),
)
SERVICE = Service(
    id="s1",
    spec=ServiceSpec(name="web", replicas=3, labels={"tier": "front"}, task=SPEC),
    vips={"x": "10.1.0.9"},
    revision=5,
)
JOB = Service(id="j1", spec=ServiceSpec(name="j", mode=ServiceMode.REPLICATED_JOB, replicas=4))
NETWORK = Network(id="x", name="default", driver="overlay", subnet="10.1.0.0/16")


def container(task: Task) -> Row:
    message = containers_pb2.ContainerRow(task=to_proto(task), node=to_proto(NODE))
    return container_document(message, 100.0)


def service(declared: Service) -> Row:
    return service_document(control_pb2.ServiceRow(service=to_proto(declared), running=2))


DOCUMENTS = {
    "container": container(RUNNING),
    "ended": container(ENDED),
    "node": node_row(control_pb2.NodeRow(node=to_proto(NODE))),
    "service": service(SERVICE),
    "job": service(JOB),
    "network": described_network(to_proto(NETWORK), {}, [], [to_proto(RUNNING)]),
}
KINDS = {"ended": "container", "job": "service"}


@pytest.mark.parametrize(
    ("what", "template", "text"),
    [
        ("container", "{{.State.Running}} {{.State.Status}} {{.State.Pid}}", "true running 7"),
        ("container", '{{.State}} {{if eq .State "running"}}up{{end}}', "running up"),
        ("container", "{{json .State}}", '"running"'),
        ("container", "{{.State.Health.Status}}", "healthy"),
        ("ended", "{{.State.Running}} {{.State.ExitCode}}", "false 3"),
        ("ended", "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", "none"),
        ("container", "{{.NetworkSettings.IPAddress}}", "10.1.0.2"),
        ("ended", "{{.NetworkSettings.IPAddress}}", ""),
        (
            "container",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            "10.1.0.2",
        ),
        (
            "container",
            '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}',
            "8080",
        ),
        (
            "container",
            "{{range $p, $c := .NetworkSettings.Ports}}{{$p}}>{{(index $c 0).HostPort}}{{end}}",
            "80/tcp>8080",
        ),
        ("container", "{{.Config.Image}} {{json .Config.Env}}", 'hello:1 ["A=1"]'),
        ("container", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", "67108864 500000000"),
        ("container", "{{.HostConfig.RestartPolicy.Name}}", "always"),
        (
            "container",
            "{{range .Mounts}}{{.Type}}:{{.Source}}:{{.Destination}}:{{.RW}} {{end}}",
            "volume:data:/data:true bind:/etc:/e:false ",
        ),
        ("container", "{{.Path}} {{.Args}} {{.RestartCount}}", "sh [-c true] 0"),
        ("node", "{{.Status.Addr}} {{.Status.State}}", "10.0.0.1 ready"),
        ("node", "{{.Spec.Role}} {{.Spec.Availability}}", "worker active"),
        ("node", '{{index .Spec.Labels "zone"}}', "a"),
        ("node", "{{.Description.Hostname}} {{.Description.Engine.EngineVersion}}", "node1 1.2"),
        ("node", "{{.Description.Resources.NanoCPUs}}", "2000000000"),
        ("service", "{{.Spec.Name}} {{.Spec.Mode}} {{.Spec.Labels.tier}}", "web replicated front"),
        ("service", "{{.Spec.Mode.Replicated.Replicas}}", "3"),
        ("job", "{{.Spec.Mode.ReplicatedJob.TotalCompletions}}", "4"),
        ("service", "{{if .Spec.Mode.Global}}a{{else}}b{{end}}", "b"),
        ("service", "{{.Spec.TaskTemplate.ContainerSpec.Image}}", "hello:1"),
        ("service", "{{(index .Endpoint.Ports 0).PublishedPort}}", "8080"),
        ("service", "{{range .Endpoint.VirtualIPs}}{{.Addr}}{{end}}", "10.1.0.9"),
        ("service", "{{.UpdateStatus.State}} {{.Version.Index}}", "none 5"),
        ("network", "{{(index .IPAM.Config 0).Subnet}}", "10.1.0.0/16"),
        ("network", "{{range .Containers}}{{.Name}}={{.IPv4Address}}{{end}}", "web=10.1.0.2"),
    ],
)
def test_dockers_fields(what: str, template: str, text: str) -> None:
    kind = KINDS.get(what, what)
    assert template_lines([DOCUMENTS[what]], (), template, kind) == [text]


def test_parsed_specification_is_complete() -> None:
    for template in ("{{json .}}", "{{json .Spec}}"):
        (line,) = template_lines([DOCUMENTS["service"]], (), template, "service")
        assert "TaskTemplate" not in line
        assert '"replicas":3' in line
