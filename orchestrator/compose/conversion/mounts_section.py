# SPDX-License-Identifier: Apache-2.0
"""A service's `volumes` and `tmpfs`, converted to mounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from orchestrator.compose.stack import StackVolume
from orchestrator.compose.tree import ComposeError, Map, hint, within
from orchestrator.model.mounts import MountSpec, MountType
from orchestrator.model.units import parse_memory


def mounts_of(service: Map, at: str, volumes: Mapping[str, StackVolume]) -> tuple[MountSpec, ...]:
    """The mounts of a service. `volumes` are those that the file declares, by their keys. Raises
    ComposeError for one that it does not declare."""
    return tuple(
        _mount(cast(Map, each), within(f"{at}.volumes", index), volumes)
        for index, each in enumerate(service.items_of("volumes"))
    )


def _mount(entry: Map, at: str, volumes: Mapping[str, StackVolume]) -> MountSpec:
    kind, source, target = entry.text("type"), entry.text("source"), entry.text("target")
    for other in ("bind", "volume", "tmpfs"):
        if other != kind and entry.section(other).entries:
            words = f"a mount of type {kind} has no {other} options"
            raise ComposeError(entry.place_of(other), within(at, other), words)
    read_only = entry.flag("read_only")
    if kind == "bind":
        options = entry.section("bind")
        if not source.startswith("/"):
            words = f"the source {source!r} of a bind is a path that begins with / or ./"
            raise ComposeError(entry.place, at, words)
        return MountSpec(
            type=MountType.BIND,
            source=source,
            target=target,
            read_only=read_only,
            propagation=options.text("propagation"),
            non_recursive=options.text("recursive") == "disabled",
            create_source=options.text("create_host_path", "true") == "true",
        )
    if kind == "tmpfs":
        options = entry.section("tmpfs")
        size = options.text("size")
        return MountSpec(
            type=MountType.TMPFS,
            source=source,
            target=target,
            read_only=read_only,
            tmpfs_size=parse_memory(size) if size else 0,
            tmpfs_mode=int(options.text("mode", "0")),
        )
    options = entry.section("volume")
    labels = options.pairs("labels")
    no_copy, subpath = options.flag("nocopy"), options.text("subpath")
    if not source:
        return MountSpec(
            target=target, read_only=read_only, no_copy=no_copy, subpath=subpath, labels=labels
        )
    volume = volumes.get(source)
    if volume is None:
        raise ComposeError(
            entry.place,
            at,
            f"volume {source!r} is not declared; add it under volumes (a folder begins with ./ or "
            f"/){_meant(source, volumes)}",
        )
    return MountSpec(
        source=volume.name,
        target=target,
        read_only=read_only,
        no_copy=no_copy,
        subpath=subpath,
        driver=volume.driver,
        options=dict(volume.options),
        labels={} if volume.external else {**labels, **volume.labels},
    )


def _meant(source: str, volumes: Mapping[str, StackVolume]) -> str:
    return f"; {hint(source, volumes)}" if volumes else ""
