# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from orchestrator.dockerapi.containers.creation import read_bind, read_spec
from orchestrator.dockerapi.http.errors import ApiError
from orchestrator.dockerapi.parameters import Fields
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.specs import (
    NetworkAttachment,
    PortSpec,
    Protocol,
    RestartCondition,
    TaskSpec,
)


def spec(
    host: dict[str, Any] | None = None, exposed: tuple[str, ...] = (), **body: Any
) -> TaskSpec:
    return read_spec(Fields({"Image": "busybox", "HostConfig": host or {}, **body}), exposed)


def test_the_least_body() -> None:
    found = spec()
    assert found.container.image == "busybox:latest"
    assert found.restart.condition is RestartCondition.NONE
    assert found.networks == ()
    assert found.container.new_privileges


def test_ports_of_both_families_are_one() -> None:
    bindings = {
        "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]
    }
    assert spec({"PortBindings": bindings}).ports == (PortSpec(8080, 80),)


def test_a_port_that_a_manager_chooses() -> None:
    bindings = {"53/udp": [{"HostPort": ""}]}
    assert spec({"PortBindings": bindings}).ports == (PortSpec(0, 53, Protocol.UDP),)


def test_all_exposed_ports_are_published() -> None:
    found = spec({"PublishAllPorts": True}, ("80/tcp",), ExposedPorts={"81/tcp": {}})
    assert {port.target for port in found.ports} == {80, 81}


def test_a_port_on_one_address_is_refused() -> None:
    bindings = {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}]}
    with pytest.raises(ApiError, match=r"address 127\.0\.0\.1 alone"):
        spec({"PortBindings": bindings})


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/d", MountSpec(source="data", target="/d")),
        ("data:/d:ro,nocopy", MountSpec(source="data", target="/d", read_only=True, no_copy=True)),
        (
            "/etc:/d:ro,rshared",
            MountSpec(
                type=MountType.BIND,
                source="/etc",
                target="/d",
                read_only=True,
                propagation="rshared",
                create_source=True,
            ),
        ),
    ],
)
def test_binds(text: str, mount: MountSpec) -> None:
    assert read_bind(text) == mount


@pytest.mark.parametrize("text", ["", "data", "data:", "a:b:c:d", "data:relative", "data:/d:what"])
def test_bad_binds_are_refused(text: str) -> None:
    with pytest.raises(ApiError, match="invalid"):
        read_bind(text)


@pytest.mark.parametrize(
    ("mode", "endpoints", "networks"),
    [
        ("default", {}, ()),
        ("bridge", {"bridge": {}}, ()),
        ("host", {}, (NetworkAttachment("host"),)),
        ("net", {"net": {"Aliases": ["web"]}}, (NetworkAttachment("net", aliases=("web",)),)),
        ("default", {"net": {}}, (NetworkAttachment("net"),)),
        (
            "net",
            {"other": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}},
            (NetworkAttachment("net"), NetworkAttachment("other", ip=("10.0.0.9",))),
        ),
    ],
)
def test_networks(
    mode: str, endpoints: dict[str, Any], networks: tuple[NetworkAttachment, ...]
) -> None:
    found = spec({"NetworkMode": mode}, NetworkingConfig={"EndpointsConfig": endpoints})
    assert found.networks == networks


@pytest.mark.parametrize(
    ("host", "shares"),
    [({"NanoCpus": 1_500_000_000}, 1536), ({"CpuQuota": 50_000}, 512), ({}, 0)],
)
def test_cpu_limits(host: dict[str, Any], shares: int) -> None:
    assert spec(host).limit.shares == shares


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"RestartPolicy": {"Name": "sometimes"}}, "unknown policy 'sometimes'"),
        ({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 2}}, "maximum retry count"),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, "AutoRemove"),
        ({"NanoCpus": 1, "CpuQuota": 1}, "Conflicting options"),
        ({"BlkioWeight": 500}, "block I/O"),
        ({"UTSMode": "host"}, "UTSMode"),
        ({"SecurityOpt": ["magic=1"]}, "security-opt"),
        ({"Memory": "64m"}, r"HostConfig\.Memory must be a number"),
    ],
)
def test_refusals(host: dict[str, Any], words: str) -> None:
    with pytest.raises(ApiError, match=words):
        spec(host)


def test_an_empty_entrypoint_clears_the_images() -> None:
    assert spec(Entrypoint=[""]).container.entrypoint == ("",)
    assert spec(Entrypoint=None).container.entrypoint == ()


def test_security_options() -> None:
    found = spec({"SecurityOpt": ["no-new-privileges", "seccomp=unconfined", "apparmor:x"]})
    container = found.container
    assert (container.new_privileges, container.seccomp, container.apparmor) == (
        False,
        "unconfined",
        "x",
    )
