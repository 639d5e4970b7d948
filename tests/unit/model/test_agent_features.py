# SPDX-License-Identifier: Apache-2.0
"""Every field of a task's spec is known to all agents, or needs a feature of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.model.compatibility.agent_features import (
    AGENT_FEATURES,
    FEATURES,
    describe_feature,
    required_features,
)
from orchestrator.model.hooks import Hook
from orchestrator.model.specs import ContainerSpec, TaskSpec
from orchestrator.pb import types_pb2

KNOWN_FIELDS = {
    "TaskSpec": (
        "container reservation limit shares ports restart force networks generic_resources"
    ),
    "ContainerSpec": (
        "image entrypoint command env user workdir hostname labels stop_signal stop_grace "
        "read_only pids_limit tty open_stdin domainname hosts dns dns_search dns_options "
        "groups cap_add cap_drop privileged devices seccomp apparmor new_privileges "
        "sysctls ulimits shm_size tmpfs init oom_score_adj cpuset_cpus memory_swap userns "
        "runtime rootfs pid ipc mounts volumes_from storage_size health logging"
    ),
    "Ulimit": "name soft hard",
    "MountSpec": (
        "type source target read_only propagation non_recursive create_source no_copy "
        "driver options labels tmpfs_size tmpfs_mode subpath"
    ),
    "HealthCheck": "test interval timeout start_period start_interval retries",
    "LogConfig": "driver options",
    "Resources": "shares memory",
    "PortSpec": "published target protocol mode",
    "RestartPolicy": "condition delay max_attempts window",
    "NetworkAttachment": "network aliases ip ip6 mac options",
    "GenericResource": "kind count names every",
    "FileReference": "source target uid gid mode on_update signal",
    "Hook": "command user privileged workdir env",
}
"""Message → the fields that every agent knows which knows the message. It does not grow."""


def fields(descriptor: Any, seen: set[str]) -> Iterator[str]:
    """The fields of a message and of those in it, as `Message.field`."""
    if descriptor.name in seen:
        return
    seen.add(descriptor.name)
    for field in descriptor.fields:
        yield f"{descriptor.name}.{field.name}"
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from fields(field.message_type, seen)


def test_a_new_field_of_a_tasks_spec_needs_a_feature() -> None:
    known = {
        f"{message}.{name}" for message, names in KNOWN_FIELDS.items() for name in names.split()
    }
    flagged = {name for feature in FEATURES for name in feature.fields}
    for name in fields(types_pb2.TaskSpec.DESCRIPTOR, set()):
        assert name in known | flagged, (
            f"an agent of an older version would ignore {name} silently: name it in a Feature in "
            "orchestrator/model/compatibility/agent_features.py"
        )


def test_the_fields_that_features_name_exist() -> None:
    for feature in FEATURES:
        for name in feature.fields:
            message, _, field = name.partition(".")
            assert field in getattr(types_pb2, message).DESCRIPTOR.fields_by_name, name


@pytest.mark.parametrize(
    ("container", "needed"),
    [
        (ContainerSpec(), ()),
        (ContainerSpec(pid="host", devices=("/dev/fuse",)), ()),
        (ContainerSpec(pid="container:web"), ("shared-namespaces",)),
        (ContainerSpec(devices=("vendor.com/gpu=0",)), ("CDI devices",)),
        (ContainerSpec(pre_stop=(Hook(("a",)),), annotations={"a": "b"}),
         ("lifecycle-hooks", "annotations")),
    ],
)  # fmt: skip
def test_which_features_a_task_needs(container: ContainerSpec, needed: tuple[str, ...]) -> None:
    assert required_features(TaskSpec(container=container)) == needed
    assert set(needed) <= set(AGENT_FEATURES)


def test_a_feature_is_described_in_the_users_words() -> None:
    assert describe_feature("files") == "secrets and configs"
    assert describe_feature("lifecycle-hooks") == "lifecycle-hooks"
