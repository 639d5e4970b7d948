# SPDX-License-Identifier: Apache-2.0
"""Users, capabilities, devices and the node's own files: tables on the pure parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.runtime.interface import Container, RuntimeFailure
from orchestrator.agent.runtime.isolation import rootfs
from orchestrator.agent.runtime.isolation.idranges import SIZE, IdRanges
from orchestrator.agent.runtime.resources import cgroup_limits
from orchestrator.agent.runtime.spec import oci, privileges
from orchestrator.agent.runtime.spec.container_devices import DeviceNode, find_devices
from orchestrator.agent.runtime.spec.image_users import UserTables
from orchestrator.agent.runtime.spec.node_facts import NodeFacts
from orchestrator.agent.runtime.spec.privileges import DEFAULT_CAPABILITIES, capabilities, own_users
from orchestrator.model.specs import ContainerSpec, Resources, TaskSpec, Ulimit
from orchestrator.model.validation.confinement import CAPABILITIES

EVERY = frozenset(CAPABILITIES)
PLACES = oci.Places(Path("/run/a/rootfs"), Path("/state/a"), "/orc/a")
FUSE = DeviceNode("/dev/fuse", "c", 10, 229, 0o666, 0, 0, "rw")


def configured(
    node: NodeFacts | None = None, users: oci.OwnUsers | None = None, **spec: Any
) -> dict[str, Any]:
    image = LocalImage("sha256:0", (), ImageConfig(command=("sh",)))
    task = TaskSpec(container=ContainerSpec(**spec))
    container = Container("0123456789abcdef", "web.1", task, image, None)
    return oci.config(
        container, node or NodeFacts(), PLACES, UserTables(), devices=(FUSE,), users=users
    )


@pytest.mark.parametrize(
    ("spec", "own"),
    [
        (ContainerSpec(), True),
        (ContainerSpec(userns="host"), False),
        (ContainerSpec(privileged=True), False),
        (ContainerSpec(privileged=True, userns="private"), True),
        (ContainerSpec(rootfs="host"), False),
        (ContainerSpec(pid="host"), False),
        (ContainerSpec(ipc="host"), False),
        (ContainerSpec(pid="private", ipc="shareable"), True),
    ],
)
def test_containers_with_a_user_namespace(spec: ContainerSpec, own: bool) -> None:
    assert own_users(spec) is own


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        (ContainerSpec(), set(DEFAULT_CAPABILITIES)),
        (ContainerSpec(cap_drop=("ALL",)), set()),
        (ContainerSpec(cap_drop=("ALL",), cap_add=("CAP_CHOWN",)), {"CAP_CHOWN"}),
        (ContainerSpec(cap_drop=("CAP_CHOWN",)), set(DEFAULT_CAPABILITIES) - {"CAP_CHOWN"}),
        (ContainerSpec(cap_add=("CAP_BPF",)), {*DEFAULT_CAPABILITIES, "CAP_BPF"}),
        (ContainerSpec(cap_add=("ALL",)), set(EVERY)),
        (ContainerSpec(cap_add=("ALL",), cap_drop=("CAP_BPF",)), set(EVERY) - {"CAP_BPF"}),
        (ContainerSpec(privileged=True), set(EVERY)),
    ],
)
def test_capabilities(spec: ContainerSpec, held: set[str]) -> None:
    assert set(capabilities(spec, EVERY)) == held


def test_a_capability_that_the_agent_cannot_grant() -> None:
    some = EVERY - {"CAP_SYS_RESOURCE"}
    with pytest.raises(RuntimeFailure, match="does not hold CAP_SYS_RESOURCE"):
        capabilities(ContainerSpec(userns="host", cap_add=("CAP_SYS_RESOURCE",)), some)
    # In a user namespace of its own it is nothing to the host.
    assert "CAP_SYS_RESOURCE" in capabilities(ContainerSpec(cap_add=("CAP_SYS_RESOURCE",)), some)
    assert "CAP_SYS_RESOURCE" not in capabilities(ContainerSpec(privileged=True), some)


def test_a_user_namespace_in_the_configuration() -> None:
    users = oci.OwnUsers("/proc/1/fd/5", "/proc/1/fd/6")
    linux = configured(users=users)["linux"]
    assert {"type": "user", "path": "/proc/1/fd/5"} in linux["namespaces"]
    assert {"type": "network", "path": "/proc/1/fd/6"} in linux["namespaces"]
    assert linux["sysctl"]["net.ipv4.ping_group_range"] == "0 65535"
    foreign = oci.OwnUsers("/proc/1/fd/5", "/run/netns/x", foreign=True)
    assert configured(users=foreign)["linux"]["sysctl"] == {}
    kinds = [entry["type"] for entry in configured(userns="host")["linux"]["namespaces"]]
    assert "user" not in kinds


def test_a_privileged_configuration() -> None:
    found = configured(privileged=True)
    assert found["linux"]["maskedPaths"] == found["linux"]["readonlyPaths"] == []
    assert found["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert found["process"]["noNewPrivileges"] is False
    sys = next(mount for mount in found["mounts"] if mount["destination"] == "/sys")
    assert "ro" not in sys["options"]


def test_process_and_mount_settings() -> None:
    found = configured(
        init=True, tmpfs=("/run:exec",), shm_size=1 << 20, domainname="lan", groups=("44",),
        ulimits=(Ulimit("nofile", 1, -1),), oom_score_adj=7, new_privileges=True,
    )  # fmt: skip
    assert found["process"]["args"] == ["/dev/init", "--", "sh"]
    assert found["process"]["noNewPrivileges"] is False
    assert found["process"]["oomScoreAdj"] == 7
    assert found["process"]["user"]["additionalGids"] == [44]
    limit = {"type": "RLIMIT_NOFILE", "soft": 1, "hard": (1 << 64) - 1}
    assert [each for each in found["process"]["rlimits"] if "NOFILE" in each["type"]] == [limit]
    assert found["domainname"] == "lan"
    mounts = {mount["destination"]: mount for mount in found["mounts"]}
    assert "size=1048576" in mounts["/dev/shm"]["options"]
    assert mounts["/run"]["options"][-1] == "exec"
    assert mounts["/dev/init"]["options"][-1] == "ro"
    assert found["linux"]["devices"] == [FUSE.node]
    assert found["linux"]["resources"]["devices"][1] == FUSE.rule


@pytest.mark.parametrize(
    ("spec", "default", "profile"),
    [
        ({}, None, None),
        ({}, "", None),
        ({}, "orc-default", "orc-default"),
        ({"apparmor": "unconfined"}, "orc-default", None),
        ({"apparmor": "unconfined"}, None, None),
        ({"apparmor": "strict"}, "orc-default", "strict"),
        ({"apparmor": "strict"}, "", "strict"),
        ({"privileged": True}, "orc-default", None),
        ({"privileged": True, "apparmor": "strict"}, "orc-default", "strict"),
    ],
)
def test_apparmor(spec: dict[str, Any], default: str | None, profile: str | None) -> None:
    found = configured(NodeFacts(apparmor=default), **spec)
    assert found["process"].get("apparmorProfile") == profile


def test_requests_beyond_the_nodes_limits_are_rejected() -> None:
    node = NodeFacts(min_oom_score=0, hard_limits={"nofile": 100}, cpus=frozenset({0, 1}))
    with pytest.raises(RuntimeFailure, match="below 0, the lowest that this node's agent can set"):
        cgroup_limits.oom_score(TaskSpec(container=ContainerSpec(oom_score_adj=-5)), node)
    with pytest.raises(RuntimeFailure, match="no AppArmor, so the profile `strict` cannot be used"):
        configured(NodeFacts(), apparmor="strict")
    with pytest.raises(RuntimeFailure, match="cannot be raised above the agent's own, which is"):
        cgroup_limits.process_limits(ContainerSpec(ulimits=(Ulimit("nofile", 1, 101),)), node)
    with pytest.raises(RuntimeFailure, match="names CPU 2, which this node does not have"):
        cgroup_limits.resources(TaskSpec(container=ContainerSpec(cpuset_cpus="1-2")), node, ())
    with pytest.raises(RuntimeFailure, match="this node has no device /dev/nothing-here"):
        find_devices(ContainerSpec(devices=("/dev/nothing-here",)))


@pytest.mark.parametrize(("swap", "told"), [(0, 64 << 20), (96 << 20, 96 << 20), (-1, -1)])
def test_memory_and_swap(swap: int, told: int) -> None:
    task = TaskSpec(container=ContainerSpec(memory_swap=swap), limit=Resources(memory=64 << 20))
    assert cgroup_limits.resources(task, NodeFacts(), ())["memory"]["swap"] == told


def test_mount_points_of_a_host_root() -> None:
    lines = "".join(
        f"1 1 0:1 / {place} rw - ext4 /dev/x rw\n"
        for place in (
            "/",
            "/home\\040dir",
            "/proc",
            "/run/orc/x/rootfs",
            "/srv/orc",
            "/home\\040dir/b",
        )
    )
    shown = rootfs.mount_points(lines, (*rootfs.OWN, Path("/srv/orc")))
    assert shown == [Path("/"), Path("/home dir"), Path("/home dir/b")]
    assert privileges.paths(ContainerSpec(privileged=True), ["/x"])["maskedPaths"] == ["/x"]


def ranges(folder: Path, **options: Any) -> IdRanges:
    made = IdRanges(folder / "ids", **options)
    made.open()
    return made


def test_id_ranges_are_unique_also_after_a_restart(tmp_path: Path) -> None:
    first = ranges(tmp_path)
    one, two = first.allocate("a"), first.allocate("b")
    assert one != two
    assert first.allocate("a") == one
    again = ranges(tmp_path)
    assert again.held() == {"a", "b"}
    assert again.allocate("b") == two
    assert again.allocate("c") not in (one, two)
    again.release("a")
    again.release("a")
    assert ranges(tmp_path).held() == {"b", "c"}
    assert again.allocate("d") == one


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "cba", "bca"])
def test_a_shared_range_is_free_when_all_have_released_it(tmp_path: Path, order: str) -> None:
    made = ranges(tmp_path)
    first = made.allocate("a")
    made.share("b", "a")
    made.share("c", "b")
    made.share("c", "b")
    for index, name in enumerate(order):
        again = ranges(tmp_path)
        assert again.held() == {*order[index:]}
        assert {again.find(each) for each in order[index:]} == {first}
        assert again.allocate("other") != first
        again.release("other")
        again.release(name)
        again.release(name)
    again = ranges(tmp_path)
    assert again.held() == frozenset()
    assert again.allocate("next") == first
    assert len([*(tmp_path / "ids").iterdir()]) == 1


def test_ranges_are_limited_and_avoid_taken_ids(tmp_path: Path) -> None:
    few = ranges(tmp_path, first=0, last=4 * SIZE - 1, taken=((SIZE + 5, 10), (3 * SIZE - 1, 1)))
    assert [few.allocate(name).first for name in "ab"] == [0, 3 * SIZE]
    with pytest.raises(RuntimeFailure, match="held by 2 containers"):
        few.allocate("c")
    few.release("a")
    assert few.allocate("c").first == 0
