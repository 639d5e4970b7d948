# SPDX-License-Identifier: Apache-2.0
"""`orc inspect` of whatever has the name, in our words and in Docker's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import Result
from scripted_manager import Refusal

from orchestrator.pb import containers_pb2, control_pb2, images_pb2, volumes_pb2

Run = Callable[..., Result]
Refused = Callable[..., str]
DIGEST = "sha256:" + "ab" * 32
NODE = {
    "id": "n1",
    "labels": {"zone": "a"},
    "description": {"hostname": "node1", "address": "10.0.0.1"},
}
CONTAINER = {
    "task": {
        "id": "c123456789ab",
        "container_name": "web",
        "spec": {
            "container": {
                "image": "hello:1",
                "env": ["A=1"],
                "labels": {"tier": "front"},
                "mounts": [{"type": "MOUNT_VOLUME", "source": "data", "target": "/data"}],
            },
            "limit": {"memory": 64 << 20},
            "ports": [{"published": 8080, "target": 80}],
        },
        "status": {
            "state": "TASK_RUNNING",
            "run": 1,
            "pid": 7,
            "started_at": 60,
            "addresses": {"default": "10.128.1.2"},
        },
        "desired_state": "TASK_RUNNING",
        "run": 1,
        "node_id": "n1",
    },
    "node": NODE,
}
SERVICE = {
    "id": "svc1",
    "image_digest": DIGEST,
    "spec": {
        "name": "shop",
        "replicas": 6,
        "task": {"container": {"image": "hello:1"}, "ports": [{"published": 81, "target": 80}]},
    },
    "vips": {"net1": "10.128.0.9"},
    "update": {"state": "UPDATE_ROLLED_BACK"},
}


@pytest.fixture(autouse=True)
def cluster(manager: Any) -> Any:
    """One thing of each kind."""

    def named(wanted: str, reply: Any) -> Callable[[Any], Any]:
        def answer(request: Any) -> Any:
            asked = next(value for field, value in request.ListFields())
            name = asked if isinstance(asked, str) else asked[0]
            if name != wanted:
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"nothing is called {name!r}")
            return reply

        return answer

    image = images_pb2.InspectImageReply(
        image={"id": DIGEST, "names": ["hello:1"], "layers": ["sha256:1", "sha256:2"]},
        config=json.dumps({"config": {"Cmd": ["sh"]}}),
        manifest="{}",
    )
    manager.script.answers |= {
        "ListContainers": named("web", containers_pb2.ListContainersReply(containers=[CONTAINER])),
        "Inspect": named("hello:1", image),
        "ListNodes": control_pb2.ListNodesReply(nodes=[{"node": NODE}]),
        "ListNetworks": control_pb2.ListNetworksReply(
            networks=[{"id": "net1", "name": "back", "driver": "overlay", "subnet": "10.5.0.0/16"}]
        ),
        "ListServices": lambda request: (
            control_pb2.ListServicesReply(services=[{"service": SERVICE, "running": 6}])
            if request.service in ("shop", "")
            else named("shop", None)(request)
        ),
        "ListTasks": control_pb2.ListTasksReply(),
        "ListVolumes": named(
            "data", volumes_pb2.ListVolumesReply(volumes=[{"volume": {"id": "data"}}])
        ),
    }
    return manager.script


@pytest.mark.parametrize(
    ("name", "template", "text"),
    [
        ("web", "{{.State.Status}} {{.State.Running}} {{.State.Pid}}", "running true 7"),
        ("web", "{{.state}} {{.State.ExitCode}} {{json .State.Health}}", "running 0 null"),
        ("web", "{{.NetworkSettings.IPAddress}}", "10.128.1.2"),
        ("web", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "10.128.1.2"),
        ("web", '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("web", '{{.Config.Image}} {{.Config.Env}} {{index .Config.Labels "tier"}}',
         "hello:1 [A=1] front"),
        ("web", "{{range .Mounts}}{{.Name}} {{.Destination}} {{.RW}}{{end}}", "data /data true"),
        ("web", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Memory}}", "always 67108864"),
        ("hello:1", "{{.RepoTags}} {{index .RepoDigests 0}}", f"[hello:1] hello@{DIGEST}"),
        ("hello:1", "{{.Config.Cmd}} {{len .RootFS.Layers}}", "[sh] 2"),
        ("node1", "{{.Status.Addr}} {{.Spec.Labels}}", "10.0.0.1 map[zone:a]"),
        ("node1", "{{.Description.Hostname}} {{.Hostname}}", "node1 node1"),
        ("back", "{{range .IPAM.Config}}{{.Subnet}}{{end}} {{.Scope}}", "10.5.0.0/16 swarm"),
        ("shop", "{{.Spec.Name}} {{.Spec.Mode.Replicated.Replicas}}", "shop 6"),
        ("shop", "{{.Spec.TaskTemplate.ContainerSpec.Image}} {{.spec.mode}}", "hello:1 replicated"),
        ("shop", "{{range .Endpoint.VirtualIPs}}{{.Addr}}{{end}} {{.UpdateStatus.State}}",
         "10.128.0.9 rollback_completed"),
        ("shop", "{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}", "81"),
        ("data", "{{.Name}}", "data"),
    ],
)  # fmt: skip
def test_docker_s_paths(run: Run, name: str, template: str, text: str) -> None:
    done = run("inspect", "-f", template, name)
    assert (done.stdout, done.stderr) == (text + "\n", "")


def test_objects_of_several_kinds(run: Run) -> None:
    done = run("inspect", "web", "hello:1", "nosuch")
    assert done.exit_code == 1
    container, image = json.loads(done.stdout)
    assert (container["name"], image["names"]) == ("web", ["hello:1"])
    assert "State" not in container
    assert done.stderr == ("orc: no container, image, node, network, service or volume 'nosuch'\n")


def test_explicit_kind(run: Run) -> None:
    assert json.loads(run("inspect", "--type", "volume", "data").stdout)[0]["name"] == "data"
    wrong = run("inspect", "--type", "network", "data")
    assert (wrong.exit_code, wrong.stderr) == (1, "orc: no network 'data'\n")


def test_errors_other_than_not_found_are_reported(cluster: Any, run: Run) -> None:
    def denied(_: object) -> Any:
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "you may not")

    cluster.answers["Inspect"] = denied
    assert "you may not" in run("inspect", "hello:1").stderr
