# SPDX-License-Identifier: Apache-2.0
"""Access to a node's host that a container needs, and which nodes allow it."""

from __future__ import annotations

import pytest

from orchestrator.model.nodes import Node
from orchestrator.model.specs import ContainerSpec, Hook, NetworkAttachment, TaskSpec
from orchestrator.model.validation.host_access import (
    ALLOWANCES,
    allowed,
    allows,
    parse_allowances,
    refusal,
    wanted,
)

HOST = (NetworkAttachment("host"),)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (TaskSpec(), ()),
        (TaskSpec(ContainerSpec(cap_add=("CAP_NET_ADMIN",), userns="private")), ()),
        (TaskSpec(ContainerSpec(privileged=True)), ("privileged",)),
        (TaskSpec(ContainerSpec(devices=("/dev/fuse:/dev/fuse:rwm",))), ("devices",)),
        (TaskSpec(networks=HOST), ("host-network",)),
        (TaskSpec(ContainerSpec(userns="host")), ("host-users",)),
        (TaskSpec(ContainerSpec(rootfs="host")), ("host-files",)),
        (TaskSpec(ContainerSpec(pid="host", ipc="shareable")), ("host-pid",)),
        (TaskSpec(ContainerSpec(post_start=(Hook(("a",)),))), ()),
        (TaskSpec(ContainerSpec(post_start=(Hook(("a",), privileged=True),))), ("privileged",)),
        (TaskSpec(ContainerSpec(pre_stop=(Hook(("a",), privileged=True),))), ("privileged",)),
        (TaskSpec(ContainerSpec(pid="private", ipc="host")), ("host-ipc",)),
        (TaskSpec(ContainerSpec(annotations={"com.example.team": "web"})), ()),
        (
            TaskSpec(ContainerSpec(annotations={"run.oci.hooks.stdout": "/etc/passwd"})),
            ("runtime-annotations",),
        ),
        (TaskSpec(ContainerSpec(privileged=True), networks=HOST), ("privileged", "host-network")),
    ],
)
def test_allowances_that_a_task_needs(spec: TaskSpec, names: tuple[str, ...]) -> None:
    assert wanted(spec) == names


def test_a_node_of_before_there_were_allowances_allows_all() -> None:
    assert allowed(Node()) == ALLOWANCES
    assert allowed(Node(restricted=True)) == ()
    some = Node(restricted=True, allowed=("devices", "of a newer version"))
    assert allowed(some) == ("devices",)
    assert allows(some, "devices")
    assert not allows(some, "privileged")


def test_names_are_read_and_unknown_ones_refused() -> None:
    assert parse_allowances(["host-network", "privileged"]) == ("privileged", "host-network")
    assert parse_allowances(["all"]) == ALLOWANCES
    assert parse_allowances([]) == ()
    with pytest.raises(ValueError, match="'gpus' is unknown; known are privileged, devices"):
        parse_allowances(["gpus"])


def test_refusal_names_the_node_and_the_remedy() -> None:
    assert refusal("privileged", "n1") == (
        "node n1 does not allow privileged containers (orc node update --allow privileged n1)"
    )
    assert refusal("devices") == (
        "containers with devices are not allowed (orc node update --allow devices NODE)"
    )
