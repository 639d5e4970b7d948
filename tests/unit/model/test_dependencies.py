# SPDX-License-Identifier: Apache-2.0
"""Dependencies between services: parsing and start order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.dependencies import (
    Dependency,
    DependencyCondition,
    find_cycle,
    parse_dependency,
    start_order,
)
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.model.validation.service_specs import InvalidSpec, validate_service


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("db", DependencyCondition.STARTED),
        ("db:started", DependencyCondition.STARTED),
        ("db:healthy", DependencyCondition.HEALTHY),
        ("db:completed", DependencyCondition.COMPLETED),
    ],
)
def test_how_it_is_written(text: str, condition: DependencyCondition) -> None:
    assert parse_dependency(text) == Dependency("db", condition)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("db:helthy", "'helthy' is not one of started, healthy, completed"),
        ("db:", "'' is not one of started"),
        (":healthy", "the service name is empty"),
        ("D b", "not a DNS label"),
    ],
)
def test_malformed_dependencies_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_dependency(text)


@pytest.mark.parametrize(
    ("names", "words"),
    [(["web"], "cannot wait for itself"), (["db", "db"], "'db' is waited for twice")],
)
def test_contradictory_dependencies_are_refused(names: list[str], words: str) -> None:
    spec = ServiceSpec(
        name="web",
        task=TaskSpec(container=ContainerSpec(image="web:1")),
        depends_on=tuple(map(Dependency, names)),
    )
    with pytest.raises(InvalidSpec, match=words):
        validate_service(spec)


def test_a_circle_is_named() -> None:
    needs = {"web": ["api"], "api": ["cache", "db"], "cache": [], "db": ["web"]}
    assert find_cycle("web", needs) == ["web", "api", "db", "web"]
    assert find_cycle("cache", needs) is None
    assert find_cycle("web", {"web": ["api"], "api": ["db"], "db": ["api"]}) is None


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"))))
def test_dependencies_start_first_unless_circular(
    needs: dict[str, list[str]],
) -> None:
    order = start_order(needs)
    assert sorted(order) == sorted(needs)
    for name, others in needs.items():
        for other in others:
            if other in needs and not any(find_cycle(each, needs) for each in needs):
                assert order.index(other) < order.index(name)
