"""What an image says of the process it is made for (the OCI image config, as far as it is used)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.model.specs import HealthCheck


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The defaults that a container spec overrides (OCI image-spec, config.md)."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    """Folders that are to be volumes, absolute, sorted."""
    labels: dict[str, str] = field(default_factory=dict)
    health: HealthCheck = field(default_factory=HealthCheck)


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image whose layers are unpacked on this node."""

    digest: str
    """Of the manifest, `sha256:…`."""
    layers: tuple[Path, ...]
    """Unpacked layer folders, lowest first; read-only and shared."""
    config: ImageConfig


NO_IMAGE = LocalImage("", (), ImageConfig())
"""Of a container that runs on the node's own files."""
