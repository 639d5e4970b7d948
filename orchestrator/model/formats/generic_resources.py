# SPDX-License-Identifier: Apache-2.0
"""Generic resources, such as GPUs: parsing requests and supplies, and matching names.

A node has a number of a kind, or names (`gpu=/dev/a,/dev/b`, `license=red,blue`). A task requests a
number, which is allocated to it for its life. The container finds them in its environment, as in
Docker: `DOCKER_RESOURCE_GPU=/dev/a,/dev/b`. Names of devices are added to its devices, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.model.formats.cdi_names import is_cdi
from orchestrator.model.placement import GenericResource

if TYPE_CHECKING:
    from orchestrator.model.specs import ContainerSpec

MOST = 10_000
"""Of a kind, on a node or for a task."""

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
_DEVICE = "device="
_NAME = re.compile(r"[A-Za-z0-9_./-]{1,255}")


def parse_generic(text: str) -> GenericResource:
    """A task's request, from `KIND=NUMBER`, `KIND=all` or `KIND=device=NAME,NAME…`. Raises
    ValueError for the user."""
    kind, _, value = text.partition("=")
    if value.isascii() and value.isdecimal():
        made = GenericResource(kind, int(value))
    elif value == "all":
        made = GenericResource(kind, 1, every=True)
    elif value.startswith(_DEVICE):
        names = tuple(value.removeprefix(_DEVICE).split(","))
        made = GenericResource(kind, len(names), names)
    else:
        raise ValueError(
            f"generic resource {text!r} is not of the form KIND=NUMBER, KIND=all or "
            "KIND=device=NAME,NAME, such as gpu=2"
        )
    check_generic([made])
    return made


def find_names(wanted: Iterable[str], names: Iterable[str]) -> tuple[str, ...] | None:
    """The names of a node that a task's request matches: the whole name, its last part (`card0` of
    `/dev/dri/card0`), or the name of a CDI device in its class (`0` of `vendor.com/gpu=0`). None if
    any is not among them."""
    by_word: dict[str, str] = {}
    for name in names:
        for word in (name.rpartition("/")[2], name.rpartition("=")[2]):
            by_word.setdefault(word, name)
    by_word |= {name: name for name in by_word.values()}
    found = [by_word.get(word, "") for word in wanted]
    return tuple(found) if all(found) and len(set(found)) == len(found) else None


def check_generic(resources: Iterable[GenericResource]) -> None:
    """Raise ValueError for an invalid request."""
    seen: set[str] = set()
    for each in resources:
        _check_kind(each.kind)
        if not 1 <= each.count <= MOST:
            raise ValueError(f"generic resource {each}: {each.count} is not from 1 to {MOST}")
        if each.names and (each.every or each.count != len(each.names)):
            raise ValueError(f"generic resource {each}: give a number, names or all, not several")
        for name in each.names:
            if not (_NAME.fullmatch(name) or is_cdi(name)):
                raise ValueError(f"generic resource {each}: {name!r} cannot be the name of one")
        if len(set(each.names)) < len(each.names):
            raise ValueError(f"generic resource {each} has the same name twice")
        if each.kind in seen:
            raise ValueError(f"generic resource {each.kind!r} is asked for twice")
        seen.add(each.kind)


def parse_supply(text: str) -> tuple[str, str]:
    """A node's supply of a kind, from `KIND=NUMBER` or `KIND=NAME,NAME…`. Raises ValueError."""
    kind, equals, value = text.partition("=")
    if not equals or not value:
        raise ValueError(
            f"generic resource {text!r} is not of the form KIND=NUMBER or KIND=NAME,NAME, "
            "such as gpu=/dev/dri/card0,/dev/dri/card1"
        )
    _check_kind(kind)
    if not (value.isascii() and value.isdecimal()):
        names = value.split(",")
        for name in names:
            if not (_NAME.fullmatch(name) or is_cdi(name)) or ".." in name:
                raise ValueError(f"generic resource {kind!r}: {name!r} cannot be the name of one")
        if len(set(names)) < len(names):
            raise ValueError(f"generic resource {kind!r} has the same name twice")
    if supply_size(value) > MOST:
        raise ValueError(f"generic resource {kind!r} is more than {MOST}, the most")
    return kind, value


def supply_names(value: str) -> tuple[str, ...]:
    """The names in what a node has or a task was given of a kind; empty for a number."""
    return () if not value or value.isdecimal() else tuple(value.split(","))


def supply_size(value: str) -> int:
    """How many that are."""
    if value.isdecimal():
        return int(value)
    return len(supply_names(value))


def is_device(name: str) -> bool:
    """Whether it is given to a container as a device."""
    return name.startswith("/dev/") or is_cdi(name)


def with_generic(container: ContainerSpec, given: Mapping[str, str]) -> ContainerSpec:
    """The container with its task's generic resources: devices and environment variables."""
    if not given:
        return container
    env_added = {f"DOCKER_RESOURCE_{_word(kind)}": value for kind, value in sorted(given.items())}
    env = (entry for entry in container.env if entry.partition("=")[0] not in env_added)
    names = (name for _, value in sorted(given.items()) for name in supply_names(value))
    return replace(
        container,
        env=(*env, *(f"{key}={value}" for key, value in env_added.items())),
        devices=tuple(dict.fromkeys((*container.devices, *filter(is_device, names)))),
    )


def _word(kind: str) -> str:
    return re.sub("[^A-Z0-9]", "_", kind.upper())


def _check_kind(kind: str) -> None:
    if not _KIND.fullmatch(kind):
        raise ValueError(
            f"{kind!r} is no kind of generic resource; use letters, digits, '_', '.' and '-', "
            "such as gpu"
        )
