# SPDX-License-Identifier: Apache-2.0
"""Every field of a service's spec comes from a key of a compose file, or from none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from orchestrator.compose.conversion.deploy_section import KEY_OF_FIELD, key_of_field
from orchestrator.compose.schema.service_keys import SERVICE
from orchestrator.model.extensible import known_fields
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec

NOT_IN_A_FILE = {"name", "task.container.rootfs", "task.force"}
"""Fields that no key of a compose file sets."""


def fields(cls: Any = ServiceSpec, path: str = "") -> Iterator[str]:
    """Paths of the spec's fields, such as `task.container.env`."""
    hints = get_type_hints(cls)
    for field in known_fields(cls):
        if hints[field.name] in (TaskSpec, ContainerSpec):
            yield from fields(hints[field.name], f"{path}{field.name}.")
        else:
            yield path + field.name


@pytest.mark.parametrize("field", sorted(set(fields()) - NOT_IN_A_FILE))
def test_field_is_set_by_its_key(field: str) -> None:
    key = key_of_field(field)
    assert key in SERVICE.table, (
        f"an error in {field} would be reported at the key {key!r}, which no service has: name its "
        "key in KEY_OF_FIELD (orchestrator/compose/conversion/deploy_section.py)"
    )


def test_table_names_existing_fields() -> None:
    assert KEY_OF_FIELD.keys() <= set(fields())
    assert set(fields()) >= NOT_IN_A_FILE


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("task.limit.memory", "deploy"),
        ("task.container.env", "environment"),
        ("task.container.image", "image"),
    ],
)
def test_key_of_a_field(field: str, key: str) -> None:
    assert key_of_field(field) == key
