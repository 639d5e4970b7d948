# SPDX-License-Identifier: Apache-2.0
"""A stack: its networks, volumes, files and services under their names in the cluster, which follow
Docker's rule (`STACK_NAME`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.compose.tree import Map, Place
from orchestrator.model.documents import DocumentKind
from orchestrator.model.specs import ServiceSpec


@dataclass(frozen=True, slots=True)
class StackNetwork:
    """A network that a stack creates or, if external, uses."""

    name: str
    place: Place
    external: bool = False
    driver: str = ""
    internal: bool = False
    attachable: bool = False
    encrypted: bool = False
    ipv6: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    subnets: tuple[str, ...] = ()
    ip_range: str = ""
    gateway: str = ""
    ipam_driver: str = ""
    ipam_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StackVolume:
    """A volume that a stack creates or, if external, uses."""

    name: str
    place: Place
    external: bool = False
    driver: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StackFile:
    """A secret or config that a stack creates or, if external, uses."""

    kind: DocumentKind
    name: str
    place: Place
    external: bool = False
    content: bytes = field(default=b"", repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    template_driver: str = ""


@dataclass(frozen=True, slots=True)
class StackBuild:
    """An image to build before the stack is deployed."""

    image: str
    section: Map
    """The `build` section, in its long form."""


@dataclass(frozen=True, slots=True)
class StackService:
    """A service of a stack."""

    key: str
    """Its name in the file."""
    spec: ServiceSpec
    place: Place
    build: StackBuild | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """The desired state of a stack. Services are in start order: dependencies first."""

    name: str
    services: tuple[StackService, ...]
    networks: tuple[StackNetwork, ...]
    volumes: tuple[StackVolume, ...]
    files: tuple[StackFile, ...]
    """Secrets and configs."""
