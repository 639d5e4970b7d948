# SPDX-License-Identifier: Apache-2.0
"""From a container to its configuration: tables and properties of the pure part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.runtime.interface import Container, RuntimeFailure
from orchestrator.agent.runtime.resources import cgroup_limits
from orchestrator.agent.runtime.spec import etcfiles, oci
from orchestrator.agent.runtime.spec.image_users import UserTables
from orchestrator.agent.runtime.spec.seccomp import SeccompProfile
from orchestrator.model.specs import ContainerSpec, Resources, TaskSpec

NODE = oci.NodeFacts()
PLACES = oci.Places(Path("/run/a/rootfs"), Path("/state/a"), "/orc/a")


def container(
    image: ImageConfig | None = None,
    task: TaskSpec | None = None,
    **spec: Any,
) -> Container:
    chosen = image or ImageConfig(command=("sh",))
    task = replace(task or TaskSpec(), container=ContainerSpec(**spec))
    return Container("0123456789abcdef", "web.1", task, LocalImage("sha256:0", (), chosen), None)


def configured(made: Container, node: oci.NodeFacts = NODE) -> dict[str, Any]:
    return oci.config(made, node, PLACES, UserTables())


@pytest.mark.parametrize(
    ("image", "entrypoint", "command", "argv"),
    [
        ((("/e",), ("d",)), ("",), ("c",), ["c"]),
        ((("/e",), ("c",)), (), (), ["/e", "c"]),
        ((("/e",), ("c",)), (), ("d", "f"), ["/e", "d", "f"]),
        ((("/e",), ("c",)), ("/n",), (), ["/n"]),
        ((("/e",), ("c",)), ("/n",), ("d",), ["/n", "d"]),
        (((), ("c", "x")), (), (), ["c", "x"]),
        (((), ()), (), ("d",), ["d"]),
        (((), ()), ("/n", "-v"), (), ["/n", "-v"]),
    ],
)
def test_arguments_of_image_and_spec(
    image: tuple[tuple[str, ...], tuple[str, ...]],
    entrypoint: tuple[str, ...],
    command: tuple[str, ...],
    argv: list[str],
) -> None:
    config = ImageConfig(entrypoint=image[0], command=image[1])
    assert oci.arguments(container(config, entrypoint=entrypoint, command=command)) == argv


@pytest.mark.parametrize("command", [(), ("",)])
def test_an_image_without_a_command(command: tuple[str, ...]) -> None:
    with pytest.raises(RuntimeFailure, match="names no command"):
        oci.arguments(container(ImageConfig(), command=command))


def test_environment_of_image_and_spec() -> None:
    made = container(
        ImageConfig(env=("A=1", "B=2", "PATH=/opt")), env=("B=3", "C=x=y", "A", "HOME=/h")
    )
    made = replace(made, env=("ORC_TASK_NAME=web.1", "B=0"))
    assert oci.environment(made, "/root") == [
        "PATH=/opt",
        "HOSTNAME=0123456789ab",
        "ORC_TASK_NAME=web.1",
        "B=3",
        "C=x=y",
        "HOME=/h",
    ]


@pytest.mark.parametrize(
    ("image", "spec", "expected"),
    [
        ("", "", "/"),
        ("/srv", "", "/srv"),
        ("/srv", "/data/", "/data"),
        ("app", "", "/app"),
        ("", "../../x", "/x"),
        ("//srv", "", "/srv"),
    ],
)
def test_working_folder(image: str, spec: str, expected: str) -> None:
    assert oci.workdir(container(ImageConfig(workdir=image), workdir=spec)) == expected


def test_hostname_and_etc_files() -> None:
    assert etcfiles.hostname(container()) == "0123456789ab"
    assert etcfiles.hostname(container(hostname="db")) == "db"
    assert etcfiles.hostname(replace(container(hostname="db"), hostname="web-1")) == "web-1"
    with pytest.raises(RuntimeFailure, match="longer than 64"):
        etcfiles.hostname(container(hostname="x" * 65))


@pytest.mark.parametrize(
    ("task", "weight"),
    [
        (TaskSpec(), 128),
        (TaskSpec(shares=1024), 1024),
        (TaskSpec(reservation=Resources(shares=512)), 512),
        (TaskSpec(shares=10, reservation=Resources(shares=512)), 10),
        (TaskSpec(shares=1), 2),
        (TaskSpec(shares=1 << 30), 262_144),
    ],
)
def test_cpu_weight(task: TaskSpec, weight: int) -> None:
    assert cgroup_limits.resources(container(task=task).spec, NODE, ())["cpu"] == {"shares": weight}


def test_cgroup_limits() -> None:
    made = container(task=TaskSpec(limit=Resources(shares=1536, memory=64 << 20)), pids_limit=9)
    found = cgroup_limits.resources(made.spec, NODE, ())
    assert found["cpu"] == {"shares": 128, "quota": 150_000, "period": 100_000}
    assert found["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert found["pids"] == {"limit": 9}
    assert found["devices"] == [{"allow": False, "access": "rwm"}]
    without = cgroup_limits.resources(made.spec, replace(NODE, swap_accounting=False), ())
    assert without["memory"] == {"limit": 64 << 20}


def test_a_cpu_limit_is_at_least_the_kernels_minimum() -> None:
    made = container(task=TaskSpec(limit=Resources(shares=1)))
    assert cgroup_limits.resources(made.spec, NODE, ())["cpu"]["quota"] == 1000


def test_a_memory_limit_below_the_minimum() -> None:
    with pytest.raises(RuntimeFailure, match="at least 6 MiB"):
        cgroup_limits.resources(
            container(task=TaskSpec(limit=Resources(memory=1 << 20))).spec, NODE, ()
        )


def test_a_complete_configuration() -> None:
    found = configured(replace(container(read_only=True), netns=Path("/run/netns/a")))
    assert found["root"] == {"path": "/run/a/rootfs", "readonly": True}
    assert found["linux"]["cgroupsPath"] == "/orc/a"
    assert {"type": "network", "path": "/run/netns/a"} in found["linux"]["namespaces"]
    kinds = {entry["type"] for entry in found["linux"]["namespaces"]}
    assert kinds == {"pid", "ipc", "uts", "mount", "cgroup", "network"}
    assert found["process"]["noNewPrivileges"] is True
    assert found["process"]["terminal"] is False
    assert found["process"]["oomScoreAdj"] == 1000, "it reserves nothing"
    mounts = {entry["destination"]: entry for entry in found["mounts"]}
    assert "ro" in mounts["/sys"]["options"]
    assert "ro" in mounts["/sys/fs/cgroup"]["options"]
    assert mounts["/etc/hosts"]["source"] == "/state/a/hosts"
    assert {"/proc", "/dev", "/dev/shm", "/dev/mqueue"} <= mounts.keys()
    assert "/proc/kcore" in found["linux"]["maskedPaths"]
    assert "/proc/sys" in found["linux"]["readonlyPaths"]


def test_host_names_in_etc() -> None:
    node = replace(NODE, nameservers=("9.9.9.9",), search=("lan",))
    made = replace(container(hostname="db"), address="10.128.1.5")
    files = etcfiles.etc_files(made, node)
    assert set(files) == set(etcfiles.ETC_FILES)
    assert files["hostname"] == "db\n"
    assert files["hosts"].splitlines()[-1] == "10.128.1.5\tdb"
    assert files["resolv.conf"] == "nameserver 9.9.9.9\nsearch lan\n"
    own = etcfiles.etc_files(replace(made, nameservers=("10.128.0.2",)), node)
    assert own["resolv.conf"] == "nameserver 10.128.0.2\nsearch lan\noptions ndots:0\n"


def test_annotations_reach_the_oci_runtime_and_labels_do_not_control_it() -> None:
    """The OCI runtime, which is root on the host, writes to the file that such a one names."""
    steering = {"run.oci.hooks.stdout": "/etc/cron.d/x", "org.systemd.property.Slice": "'x'"}
    made = container(annotations={"com.example.team": "web", "orc.name": "other"})
    made = replace(made, labels={"tier": "front", "com.example.team": "label"} | steering)
    assert configured(made)["annotations"] == {
        "tier": "front",
        "com.example.team": "web",
        "orc.name": "web.1",
    }
    # Only nodes get it whose operators allow that.
    made = container(annotations={"run.oci.handler": "krun"})
    assert configured(made)["annotations"]["run.oci.handler"] == "krun"


@given(st.dictionaries(st.text(), st.text()), st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_of_the_user_is_preserved(labels: dict[str, str], argument: str) -> None:
    made = replace(container(command=("sh", argument)), labels=labels)
    text = oci.render(configured(made), SeccompProfile('{"defaultAction":"SCMP_ACT_ERRNO"}'))
    found = json.loads(text)
    assert found["linux"].pop("seccomp") == {"defaultAction": "SCMP_ACT_ERRNO"}
    assert found == configured(made)
    assert found["process"]["args"] == ["sh", argument]
