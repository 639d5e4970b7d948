# SPDX-License-Identifier: Apache-2.0
"""`orc service`: flags to specs, edits, waiting, listings, logs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import grpc
import pytest
from scripted_manager import Refusal
from servicekit import BASE, MIB, Refused, Run, accepting, current, progress, stored

from orchestrator.model.convert import from_proto
from orchestrator.model.specs import (
    ContainerSpec,
    NetworkAttachment,
    PortSpec,
    Protocol,
    Resources,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)


@pytest.fixture
def server(manager: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return accepting(manager, monkeypatch)


def created(server: Any) -> ServiceSpec:
    spec: ServiceSpec = from_proto(server.request("CreateService").spec)
    return spec


def test_create_with_defaults(server: Any, run: Run) -> None:
    result = run("service", "create", "--name", "web", "hello")
    assert (result.exit_code, result.stdout) == (0, "svc1\n")
    expected = ServiceSpec(name="web", task=TaskSpec(container=ContainerSpec(image="hello:latest")))
    assert created(server) == expected


def test_create_with_all_flags(
    server: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("# comment\n\nA=file\nC=1\nFROM_US\nNOT_THERE\n")
    monkeypatch.setenv("FROM_US", "here")
    monkeypatch.delenv("NOT_THERE", raising=False)
    words = shlex.split(
        """
        service create --name web --replicas 3 --network front --network back -p 8080:80
        --publish 53:53/udp -p published=443,target=8443,protocol=tcp -p 90-91:70-71 -e A=1
        --env B=x=y --label tier=front -l plain --container-label c=d --constraint
        node.labels.zone==a --reserve-cpu 0.5 --reserve-memory 64m --limit-cpu 2
        --limit-memory 1g --cpu-shares 256 --pids-limit 100 --restart-condition on-failure
        --restart-delay 1m30s --restart-max-attempts 3 --restart-window 1h
        --update-parallelism 2 --update-delay 500ms --stop-signal SIGINT --stop-grace-period
        3s -u 1000:www -w /srv --hostname box --read-only
        """
    )
    words += ["--env-file", str(env_file), "--entrypoint", "sh -c", "-d"]
    result = run(*words, "hello:1", "echo", "--flag", "-d")
    assert result.exit_code == 0, result.stderr
    container = ContainerSpec(
        image="hello:1",
        entrypoint=("sh", "-c"),
        command=("echo", "--flag", "-d"),
        env=("A=1", "C=1", "FROM_US=here", "B=x=y"),
        user="1000:www",
        workdir="/srv",
        hostname="box",
        labels={"c": "d"},
        stop_signal="SIGINT",
        stop_grace=3.0,
        read_only=True,
        pids_limit=100,
    )
    spec = TaskSpec(
        container=container,
        reservation=Resources(512, 64 * MIB),
        limit=Resources(2048, 1024 * MIB),
        shares=256,
        ports=(
            PortSpec(8080, 80),
            PortSpec(53, 53, Protocol.UDP),
            PortSpec(443, 8443),
            PortSpec(90, 70),
            PortSpec(91, 71),
        ),
        restart=RestartPolicy(RestartCondition.ON_FAILURE, 90.0, 3, 3600.0),
        networks=(NetworkAttachment("front"), NetworkAttachment("back")),
    )
    assert created(server) == ServiceSpec(
        name="web",
        labels={"tier": "front", "plain": ""},
        replicas=3,
        task=spec,
        update=UpdatePolicy(2, 0.5),
        constraints=("node.labels.zone==a",),
    )
    assert [name for name, _ in server.requests] == ["CreateService"]


def test_create_global_and_without_a_name(server: Any, run: Run, refused: Refused) -> None:
    assert run("service", "create", "--mode", "global", "-d", "team/hello_1:2").exit_code == 0
    assert created(server).mode is ServiceMode.GLOBAL
    assert created(server).name.startswith("hello-1-")
    line = refused("service", "create", "--mode=global", "--replicas=2", "hello", status=2)
    assert line == "a global service has a task on each node; it takes no --replicas"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["run", "--memory", "5q", "hello"], "--memory"),
        (["run", "--memory=5q", "hello"], "--memory"),
        (["run", "-m", "5q", "hello", "free", "--limit-memory"], "-m"),
        (["run", "-m5q", "hello"], "-m"),
        (["run", "--limit-memory", "5q", "hello"], "--limit-memory"),
        (["create", "--cpus", "x", "hello"], "--cpus"),
        (["service", "create", "--limit-pids", "x", "hello"], "--limit-pids"),
        (["job", "run", "--replicas", "x", "hello"], "--replicas"),
        (["job", "run", "--completions", "x", "hello"], "--completions"),
        (["stop", "-t", "x", "web"], "-t"),
        (["stop", "--time", "x", "web"], "--time"),
    ],
)
def test_a_refused_flag_is_named_as_it_was_typed(
    server: Any, refused: Refused, words: list[str], flag: str
) -> None:
    assert refused(*words, status=2).startswith(f"{flag}: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--limit-memory", "12q", "hello"],
            "--limit-memory: memory '12q' is not a size; "
            "write a number with b, k, m or g, such as 64m",
        ),
        (["--limit-memory", "1m", "hello"], "memory limit 1MiB must be at least 6MiB"),
        (["--replicas", "-1", "hello"], "replicas -1 is negative; 0 is the least"),
        (["--replicas", "x", "hello"], "--replicas: 'x' is not a valid integer"),
        (["--cpu-shares", "0", "hello"], "--cpu-shares: 0 shares must be at least 2"),
        (["--reserve-cpu", "0", "hello"], "--reserve-cpu: 0 cores must be at least 0.002"),
        (["--reserve-cpu", "half", "hello"], "--reserve-cpu: cpus 'half' is not a number of cores"),
        (["Hello"], "image name 'Hello' has upper-case letters; write 'hello'"),
        (["--name", "We b", "hello"], "service name 'We b' is not a DNS label"),
        (["-p", "80", "hello"], "port '80' is not of the form PUBLISHED:TARGET"),
        (["-p", "127.0.0.1:80:80", "hello"], "is not of the form PUBLISHED:TARGET"),
        (["-p", "99999:80", "hello"], "port 99999 of '99999:80' is not in 1-65535"),
        (["-p", "80:80/sctp", "hello"], "has the protocol 'sctp'; tcp and udp are"),
        (["-p", "80-82:80-81", "hello"], "has ranges of different lengths"),
        (["-p", "published=80,to=80", "hello"], "is not of the form PUBLISHED:TARGET"),
        (["-p", "80:80", "-p", "80:81", "hello"], "port 80/tcp is published twice"),
        (["-e", "=x", "hello"], "env '=x' is not of the form KEY=VALUE"),
        (["--env-file", "/none", "hello"], "cannot read env file /none: No such file"),
        (["--label", "=x", "hello"], "label '=x' is not of the form KEY=VALUE"),
        (["--restart-condition", "never", "hello"], "'never' is not one of any, on-failure, none"),
        (
            ["--restart-delay", "5", "hello"],
            "--restart-delay: duration '5' is not a duration",
        ),
        (["--stop-signal", "SIGFOO", "hello"], "stop signal 'SIGFOO' is unknown"),
        (["--constraint", "zone", "hello"], "constraint 'zone' is not of the form"),
        ([], "IMAGE is missing; see 'orc service create --help'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    server: Any, refused: Refused, words: list[str], line: str
) -> None:
    name = [] if "--name" in words else ["--name", "web"]
    assert line in refused("service", "create", *name, *words, status=2)
    assert server.requests == []


def test_rejected_by_the_manager(server: Any, refused: Refused) -> None:
    line = "service 'web' already exists; choose another name, or 'orc service update web'"
    server.answers["CreateService"] = Refusal(grpc.StatusCode.ALREADY_EXISTS, line)
    assert refused("service", "create", "--name", "web", "hello") == line


def updated(server: Any) -> ServiceSpec:
    spec: ServiceSpec = from_proto(server.request("UpdateService").spec)
    return spec


def test_update_of_nothing_changes_nothing(server: Any, run: Run) -> None:
    current(server, BASE)
    assert run("service", "update", "web").exit_code == 0
    assert updated(server) == BASE
    request = server.request("UpdateService")
    assert (request.service, request.revision) == ("svc1", 5)


def test_update_edits_the_current_spec(server: Any, run: Run) -> None:
    current(server, BASE)
    words = shlex.split(
        """
        --image hello:2 --replicas 5 --env-add A=9 --env-add C=3 --env-rm B --label-add c=3
        --label-rm a --container-label-add z=1 --container-label-rm x --publish-add 8080:81
        --publish-rm 53/udp --constraint-add node.labels.zone==a --constraint-rm
        node.role==worker --network-add back --network-rm front --limit-memory 32m
        --read-only --force -d
        """
    )
    result = run("service", "update", *words, "--args", "serve 'a b'", "web")
    assert result.exit_code == 0, result.stderr
    spec = updated(server)
    assert (spec.replicas, spec.labels) == (5, {"b": "2", "c": "3"})
    assert spec.constraints == ("node.labels.zone==a",)
    container = spec.task.container
    assert (container.image, container.command) == ("hello:2", ("serve", "a b"))
    assert container.env == ("A=9", "C=3")
    assert container.labels == {"z": "1"}
    assert container.read_only
    assert spec.task.ports == (PortSpec(8080, 81),)
    assert spec.task.networks == (NetworkAttachment("back"),)
    assert spec.task.limit.memory == 32 * MIB
    assert spec.task.force == 3


def test_ports_are_removed_by_target_or_whole(server: Any, run: Run, refused: Refused) -> None:
    current(server, BASE)
    run("service", "update", "-d", "--publish-rm", "80", "web")
    assert updated(server).task.ports == (PortSpec(53, 53, Protocol.UDP),)
    run("service", "update", "-d", "--publish-rm", "53:53/udp", "--publish-rm", "53", "web")
    assert updated(server).task.ports == (PortSpec(8080, 80),)
    assert "'x' is not a number" in refused("service", "update", "--publish-rm=x", "web", status=2)


def test_update_is_retried_after_a_conflict(server: Any, run: Run) -> None:
    current(server, BASE, 5, 8)
    conflict = Refusal(grpc.StatusCode.ABORTED, "service 'web' was changed meanwhile; try again")
    server.answers["UpdateService"] = lambda request: (
        conflict if request.revision == 5 else stored(request.spec, 9)
    )
    server.answers["WatchService"] = [progress([], 0, True, revision=9)]
    assert run("service", "scale", "web=7").exit_code == 0
    assert server.request("UpdateService").revision == 8
    assert updated(server).replicas == 7


def test_update_gives_up_after_many_conflicts(server: Any, refused: Refused) -> None:
    current(server, BASE)
    server.answers["UpdateService"] = Refusal(grpc.StatusCode.ABORTED, "changed meanwhile")
    assert "is modified concurrently; retry" in refused("service", "scale", "web=7")


def test_scale(server: Any, run: Run, refused: Refused) -> None:
    current(server, BASE)
    result = run("service", "scale", "web=12")
    assert (result.exit_code, result.stdout) == (0, "svc1\n")
    assert updated(server).replicas == 12
    for words in (["web"], ["web="], ["=3"], ["web=x"]):
        assert "SERVICE=REPLICAS" in refused("service", "scale", *words, status=2)
    assert "replicas -1 is negative" in refused("service", "scale", "web=-1", status=2)
    line = "no service 'weeb'; did you mean 'web'?"
    server.answers["ListServices"] = Refusal(grpc.StatusCode.NOT_FOUND, line)
    assert refused("service", "scale", "weeb=3") == line


def test_scale_of_a_global_service(server: Any, refused: Refused) -> None:
    current(server, ServiceSpec(name="web", mode=ServiceMode.GLOBAL, task=BASE.task))
    assert "service 'web' is global" in refused("service", "scale", "web=3", status=2)
    assert "takes no --replicas" in refused("service", "update", "--replicas=3", "web", status=2)
