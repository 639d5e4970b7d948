# SPDX-License-Identifier: Apache-2.0
"""Features of agents: requirements of tasks that an agent of an older version would ignore.

Protobuf drops a field that the reader does not know, so an older agent would silently run a task
without it. Therefore an agent lists its features (`NodeDescription.features`), and the scheduler
considers only nodes whose agents have all that a task needs.

A new field of `TaskSpec`, or of a message in it, is named in `FEATURES` with a test of whether a
task uses it. `tests/unit/model/test_agent_features.py` fails until it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.model.documents import references
from orchestrator.model.formats.cdi_names import is_cdi
from orchestrator.model.specs import TaskSpec
from orchestrator.model.validation.shared_namespaces import namespace_container

DOCUMENTS = "files"
HOOKS = "lifecycle-hooks"
SHARED_NAMESPACES = "shared-namespaces"
ANNOTATIONS = "annotations"
CDI_DEVICES = "CDI devices"

STOP_AFTER = "stop-after"
"""Stopping a service's tasks when the node has been disconnected for a while. It travels in the
assignment, not in the task's spec."""

NETWORK_CHANGES = "network-changes"
"""Assignments that carry changes of networks, not only complete lists."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that agents of this version can do, and their first version could not."""

    name: str
    fields: tuple[str, ...]
    """The fields that an agent without it ignores, as `Message.field`."""
    is_used: Callable[[TaskSpec], bool]
    description: str = ""
    """In the reason of a pending task, where the name does not say it."""


FEATURES = (
    Feature(
        DOCUMENTS,
        ("ContainerSpec.secrets", "ContainerSpec.configs"),
        lambda spec: any(references(spec.container)),
        "secrets and configs",
    ),
    Feature(
        HOOKS,
        ("ContainerSpec.post_start", "ContainerSpec.pre_stop"),
        lambda spec: bool(spec.container.post_start or spec.container.pre_stop),
    ),
    Feature(
        # An older agent knows the fields, but not this value.
        SHARED_NAMESPACES,
        ("ContainerSpec.pid", "ContainerSpec.ipc"),
        lambda spec: bool(namespace_container(spec.container)),
    ),
    Feature(
        ANNOTATIONS,
        ("ContainerSpec.annotations",),
        lambda spec: bool(spec.container.annotations),
    ),
    Feature(
        # An older agent knows the field, but only paths in it.
        CDI_DEVICES,
        ("ContainerSpec.devices",),
        lambda spec: any(map(is_cdi, spec.container.devices)),
    ),
)

AGENT_FEATURES = (*(feature.name for feature in FEATURES), STOP_AFTER, NETWORK_CHANGES)
"""All features of an agent of this version."""

_DESCRIPTIONS = {feature.name: feature.description for feature in FEATURES}


def required_features(spec: TaskSpec) -> tuple[str, ...]:
    """The features that an agent must have to run a task as its spec says."""
    return tuple(feature.name for feature in FEATURES if feature.is_used(spec))


def describe_feature(name: str) -> str:
    """The feature's name for users."""
    return _DESCRIPTIONS.get(name) or name
