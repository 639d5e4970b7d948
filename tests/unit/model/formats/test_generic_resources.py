# SPDX-License-Identifier: Apache-2.0
"""Generic resources: parsing, and what a container gets."""

from __future__ import annotations

import pytest

from orchestrator.model.formats.generic_resources import (
    check_generic,
    find_names,
    parse_generic,
    parse_supply,
    supply_names,
    supply_size,
    with_generic,
)
from orchestrator.model.placement import GenericResource
from orchestrator.model.specs import ContainerSpec


def test_requests_of_a_task_are_parsed() -> None:
    assert parse_generic("gpu=2") == GenericResource("gpu", 2)
    assert parse_generic("gpu=all") == GenericResource("gpu", 1, every=True)
    named = parse_generic("gpu=device=0,v.com/gpu=1")
    assert named == GenericResource("gpu", 2, ("0", "v.com/gpu=1"))
    for made in (named, parse_generic("gpu=2"), parse_generic("gpu=all")):
        assert parse_generic(str(made)) == made


def test_names_match_resources_of_a_node() -> None:
    names = ("/dev/dri/card0", "v.com/gpu=0", "v.com/gpu=GPU-7", "red")
    assert find_names(["card0", "0"], names) == ("/dev/dri/card0", "v.com/gpu=0")
    assert find_names(["v.com/gpu=GPU-7", "/dev/dri/card0", "red"], names) == (
        *("v.com/gpu=GPU-7", "/dev/dri/card0", "red"),
    )
    assert find_names(["card1"], names) is None
    assert find_names(["0", "v.com/gpu=0"], names) is None, "one device is not two"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "not of the form KIND=NUMBER"),
        ("gpu=two", "not of the form KIND=NUMBER"),
        ("gpu=-1", "not of the form KIND=NUMBER"),
        ("gpu=0", "0 is not from 1 to 10000"),
        ("gpu=device=", "'' cannot be the name"),
        ("gpu=device=a,a", "has the same name twice"),
        ("gpu=99999999999999999999999", "is not from 1 to 10000"),
        ("g pu=1", "'g pu' is no kind"),
        ("=1", "'' is no kind"),
    ],
)
def test_invalid_requests_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_generic(text)


def test_a_kind_is_asked_for_once() -> None:
    with pytest.raises(ValueError, match="asked for twice"):
        check_generic([GenericResource("gpu", 1), GenericResource("gpu", 2)])


@pytest.mark.parametrize(
    ("text", "names", "size"),
    [
        ("gpu=v.com/gpu=0,v.com/gpu=GPU-1:2", ("v.com/gpu=0", "v.com/gpu=GPU-1:2"), 2),
        ("gpu=4", (), 4),
        ("gpu=/dev/a,/dev/b", ("/dev/a", "/dev/b"), 2),
        ("key=red", ("red",), 1),
    ],
)
def test_generic_resources_of_a_node_are_parsed(
    text: str, names: tuple[str, ...], size: int
) -> None:
    _, value = parse_supply(text)
    assert (supply_names(value), supply_size(value)) == (names, size)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu", "not of the form KIND=NUMBER or KIND=NAME"),
        ("gpu=", "not of the form"),
        ("gpu=/dev/a,/dev/a", "the same name twice"),
        ("gpu=/dev/../etc", "cannot be the name"),
        ("gpu=v.com/gpu=", "cannot be the name"),
        ("gpu=a,,b", "'' cannot be the name"),
        ("gpu=10001", "more than 10000"),
    ],
)
def test_invalid_supplies_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_supply(text)


def test_a_container_gets_its_resources_as_variables_and_devices() -> None:
    container = ContainerSpec(env=("A=1", "DOCKER_RESOURCE_GPU=mine"), devices=("/dev/fuse",))
    made = with_generic(container, {"gpu": "/dev/a,/dev/b", "licence-key": "red", "ssd": "2"})
    assert made.env == (
        "A=1",
        "DOCKER_RESOURCE_GPU=/dev/a,/dev/b",
        "DOCKER_RESOURCE_LICENCE_KEY=red",
        "DOCKER_RESOURCE_SSD=2",
    )
    assert made.devices == ("/dev/fuse", "/dev/a", "/dev/b")
    assert with_generic(container, {"gpu": "v.com/gpu=0"}).devices == ("/dev/fuse", "v.com/gpu=0")
    assert with_generic(container, {}) is container
