"""A container's own mounts as the OCI runtime is told of them (config.md, "Mounts")."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.agent.runtime.base import Mount

_SHARED, _SLAVE = ("shared", "rshared"), ("slave", "rslave")


def merged(usual: Iterable[dict[str, Any]], mounts: Sequence[Mount], *, idmapped: bool) -> Any:
    """The mounts that every container has, and its own: those take the place of a usual one at
    the same path, and come in an order in which none hides another.

    `idmapped` is said of a container with a user namespace: its volumes are mounted through the
    namespace's own map, so that a file of the container's user 0 is stored as of user 0.
    """
    own = sorted(mounts, key=lambda mount: _depth(mount.target))
    taken = {posixpath.normpath(mount.target) for mount in own}
    kept = [each for each in usual if each["destination"] not in taken]
    return kept + [entry(mount, idmapped=idmapped) for mount in own]


def entry(mount: Mount, *, idmapped: bool) -> dict[str, Any]:
    """One mount."""
    target = posixpath.normpath(mount.target)
    if not mount.source:
        options = [*mount.tmpfs, "nosuid", "nodev", *(["ro"] if mount.read_only else [])]
        return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}
    if mount.exact:
        options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]
        return {"destination": target, "type": "bind", "source": mount.source, "options": options}
    options = ["rbind" if mount.recursive else "bind", mount.propagation or "rprivate"]
    if mount.read_only:
        options += ["ro", "rro"] if mount.recursive else ["ro"]
    else:
        options.append("rw")
    options += mount.flags
    if idmapped and mount.owned:
        options.append("idmap")
    return {"destination": target, "type": "bind", "source": mount.source, "options": options}


def root_propagation(mounts: Iterable[Mount]) -> str:
    """What the container's root must be for its mounts to travel as asked; empty: the default."""
    wanted = {mount.propagation for mount in mounts}
    if wanted & set(_SHARED):
        return "rshared"
    return "rslave" if wanted & set(_SLAVE) else ""


def _depth(target: str) -> tuple[int, str]:
    path = posixpath.normpath(target)
    return path.count("/"), path
