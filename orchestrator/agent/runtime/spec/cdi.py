# SPDX-License-Identifier: Apache-2.0
"""Devices of the Container Device Interface (CDI).

A specification file, written by a vendor's tools, describes the devices of one kind: for each, the
edits of a container's configuration (device nodes, mounts, variables, hooks and groups). Files are
read when a container is created, so a new one needs no restart of the agent.

Source: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from orchestrator.agent.runtime.interface import Container, Mount, RuntimeFailure
from orchestrator.agent.runtime.spec.container_devices import DeviceNode, find_device
from orchestrator.model.formats.cdi_names import is_cdi

FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Folders of specification files. A device in a later folder overrides one in an earlier."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_HOOKS = frozenset(
    {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
)
_PROPAGATION = frozenset(
    {"private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"}
)
_FLAGS = frozenset({"nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"})
_BINDS = frozenset({"bind", "rbind", "rw", "ro"})


@dataclass(frozen=True, slots=True)
class Edits:
    """Changes of a container's configuration by its devices."""

    env: tuple[str, ...] = ()
    devices: tuple[DeviceNode, ...] = ()
    mounts: tuple[Mount, ...] = ()
    hooks: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Name of the lifecycle stage, and the hook as config.json has it."""
    groups: tuple[int, ...] = ()

    def apply(self, container: Container) -> Container:
        """The container with the variables and mounts added; its own mounts take precedence."""
        own = {mount.target for mount in container.mounts}
        mounts = tuple(mount for mount in self.mounts if mount.target not in own)
        spec = container.spec.container
        spec = replace(spec, env=(*spec.env, *self.env))
        return replace(
            container,
            spec=replace(container.spec, container=spec),
            mounts=(*container.mounts, *mounts),
        )

    def complete(self, document: dict[str, Any]) -> None:
        """Add the hooks and groups to a `config.json`."""
        for moment, hook in self.hooks:
            document.setdefault("hooks", {}).setdefault(moment, []).append(dict(hook))
        if self.groups:
            user = document["process"]["user"]
            user["additionalGids"] = sorted({*user["additionalGids"], *self.groups})


def find_edits(devices: Iterable[str], folders: Sequence[Path]) -> Edits:
    """The edits of the CDI devices among `devices`, by qualified name. Raises RuntimeFailure for a
    device that no file describes, or whose description is invalid."""
    names = list(dict.fromkeys(filter(is_cdi, devices)))
    if not names:
        return Edits()
    found, errors = _read(folders)
    edits = Edits()
    general: list[Path] = []
    for name in names:
        if name not in found:
            where = ", ".join(map(str, folders))
            more = f" ({errors[0]})" if errors else ""
            raise RuntimeFailure(f"this node has no CDI device {name} in {where}{more}")
        matches = found[name]
        if len(matches) > 1:
            raise RuntimeFailure(
                f"CDI device {name} is in both {matches[0].file} and {matches[1].file}"
            )
        device = matches[0]
        parts = [device.edits] if device.file in general else [device.general, device.edits]
        general.append(device.file)
        for part in parts:
            try:
                edits = _joined(edits, _edits(part))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                raise RuntimeFailure(f"CDI device {name} in {device.file}: {reason}") from error
    return edits


@dataclass(frozen=True, slots=True)
class _Described:
    """A device in a specification file."""

    file: Path
    general: Any
    """Edits of every device of the file."""
    edits: Any


def _read(folders: Sequence[Path]) -> tuple[dict[str, list[_Described]], list[str]]:
    """The devices by qualified name, and the errors of invalid files, which are skipped."""
    found: dict[str, list[_Described]] = {}
    errors: list[str] = []
    for folder in folders:
        here: dict[str, list[_Described]] = {}
        for file in _files(folder):
            try:
                for name, device in _described(file):
                    here.setdefault(name, []).append(device)
            except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as e:
                errors.append(f"{file} cannot be read: {str(e).splitlines()[0] or type(e)}")
        found |= here
    return found, errors


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(f for f in folder.iterdir() if f.suffix in (".json", ".yaml", ".yml"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _described(file: Path) -> Iterator[tuple[str, _Described]]:
    text = file.read_text()
    spec = json.loads(text) if file.suffix == ".json" else yaml.load(text, Loader=_LOADER)
    general = spec.get("containerEdits") or {}
    for device in spec["devices"]:
        made = _Described(file, general, device.get("containerEdits") or {})
        yield f"{spec['kind']}={device['name']}", made


def _joined(one: Edits, other: Edits) -> Edits:
    return Edits(
        env=(*one.env, *other.env),
        devices=tuple({each.path: each for each in (*one.devices, *other.devices)}.values()),
        mounts=tuple({each.target: each for each in (*one.mounts, *other.mounts)}.values()),
        hooks=(*one.hooks, *other.hooks),
        groups=(*one.groups, *other.groups),
    )


def _edits(part: Mapping[str, Any]) -> Edits:
    if part.get("intelRdt"):
        raise ValueError("intelRdt is not supported")
    return Edits(
        env=tuple(map(str, part.get("env") or ())),
        devices=tuple(map(_device, part.get("deviceNodes") or ())),
        mounts=tuple(map(_mount, part.get("mounts") or ())),
        hooks=tuple(map(_hook, part.get("hooks") or ())),
        groups=tuple(gid for gid in map(int, part.get("additionalGids") or ()) if gid),
    )


def _device(entry: Mapping[str, Any]) -> DeviceNode:
    path = str(entry["path"])
    given: dict[str, Any] = {
        key: int(entry[name])
        for key, name in (
            *(("major", "major"), ("minor", "minor"), ("mode", "fileMode")),
            *(("uid", "uid"), ("gid", "gid")),
        )
        if entry.get(name) is not None
    }
    access = str(entry.get("permissions") or "rwm")
    kind = str(entry.get("type") or "")
    if kind and "major" in given and "minor" in given:
        device = DeviceNode(path, _kind(kind), 0, 0, 0o666, 0, 0, access)
    else:
        device = find_device(Path(entry.get("hostPath") or path), path, access)
    return replace(device, **given)


def _kind(kind: str) -> str:
    if kind not in ("c", "u", "b"):
        raise ValueError(f"device type {kind!r} is not one of c, u and b")
    return "b" if kind == "b" else "c"


def _mount(entry: Mapping[str, Any]) -> Mount:
    options = [str(each) for each in entry.get("options") or ()]
    source, target = str(entry["hostPath"]), str(entry["containerPath"])
    kind = entry.get("type") or "bind"
    if unknown := [each for each in options if each not in _PROPAGATION | _FLAGS | _BINDS]:
        raise ValueError(f"mount option {unknown[0]!r} of {target} is not supported")
    if kind not in ("bind", "none"):
        raise ValueError(f"a mount of type {kind!r} at {target} is not supported")
    if not Path(source).exists():
        raise ValueError(f"{source} is not on this node")
    return Mount(
        target,
        source,
        read_only="ro" in options,
        propagation=next((each for each in options if each in _PROPAGATION), ""),
        recursive="rbind" in options,
        flags=tuple(each for each in options if each in _FLAGS),
    )


def _hook(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    moment, path = str(entry["hookName"]), str(entry["path"])
    if moment not in _HOOKS or not path.startswith("/"):
        raise ValueError(f"hook {moment} {path} is not one of the OCI runtime's")
    hook: dict[str, Any] = {"path": path}
    for key in ("args", "env"):
        if entry.get(key):
            hook[key] = list(map(str, entry[key]))
    if entry.get("timeout"):
        hook["timeout"] = int(entry["timeout"])
    return moment, hook
