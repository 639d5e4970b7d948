# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes and configs of images: pure functions from bytes to values.

Formats: OCI image-spec 1.1 (manifest.md, image-index.md, config.md) and Docker's image manifest
version 2, schema 2, which has the same fields under other media types.
"""

from __future__ import annotations

import json
import platform as host
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_names import hex_of
from orchestrator.model.formats.platforms import architecture
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
    """Folders declared as volumes, absolute, sorted."""
    labels: dict[str, str] = field(default_factory=dict)
    health: HealthCheck = field(default_factory=HealthCheck)


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image with unpacked layers on this node."""

    digest: str
    """Of the manifest, `sha256:…`."""
    layers: tuple[Path, ...]
    """Unpacked layer folders, lowest first; read-only and shared."""
    config: ImageConfig


NO_IMAGE = LocalImage("", (), ImageConfig())
"""For a container whose root is the node's own files."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and architecture, by Go's names."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    """Set in an index only."""
    name: str = ""
    """The image's name, if an archive's index has one."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    """Lowest first."""


@dataclass(frozen=True, slots=True)
class Index:
    """Several images: one per platform, or all of an archive."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """An image's config blob."""

    process: ImageConfig
    diff_ids: tuple[str, ...]
    """Digests of the uncompressed layers, lowest first."""
    created_at: float
    """Seconds since the epoch; 0.0 if unknown."""
    platform: Platform | None


def node_platform() -> Platform:
    """The platform of this machine."""
    machine = host.machine()
    variant = {"armv7l": "v7", "armv6l": "v6"}.get(machine, "")
    return Platform("linux", architecture(machine), variant)


def parse_manifest(data: bytes) -> Manifest | Index:
    """A manifest or index blob. Raises `ImageError` for anything else."""
    document = _document(data, "manifest")
    if document.get("schemaVersion") == 1:
        raise ImageError("the image has a schema 1 manifest, deprecated since 2019: rebuild it")
    try:
        if "manifests" in document:
            return Index(tuple(_descriptor(entry) for entry in document["manifests"]))
        return Manifest(
            config=_descriptor(document["config"]),
            layers=tuple(_descriptor(entry) for entry in document["layers"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(f"the image's manifest is malformed: {error!r}") from error


def parse_config(data: bytes) -> ConfigFile:
    """A config blob. Raises `ImageError` when it is malformed."""
    document = _document(data, "config")
    try:
        diff_ids = tuple(document["rootfs"]["diff_ids"] or ())
        for diff_id in diff_ids:
            hex_of(diff_id)
        process = document.get("config") or {}
        return ConfigFile(
            process=ImageConfig(
                entrypoint=_words(process.get("Entrypoint")),
                command=_words(process.get("Cmd")),
                env=_words(process.get("Env")),
                user=str(process.get("User") or ""),
                workdir=str(process.get("WorkingDir") or ""),
                stop_signal=str(process.get("StopSignal") or ""),
                volumes=tuple(sorted(str(each) for each in process.get("Volumes") or {})),
                labels={str(k): str(v) for k, v in (process.get("Labels") or {}).items()},
                health=_health(process.get("Healthcheck") or {}),
            ),
            diff_ids=diff_ids,
            created_at=_seconds(document.get("created")),
            platform=_platform(document),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(f"the image's config is malformed: {error!r}") from error


def _health(document: dict[str, Any]) -> HealthCheck:
    """Docker's `Healthcheck`, which the OCI config lacks; its times are in nanoseconds."""

    def seconds(key: str) -> float:
        return int(document.get(key) or 0) / 1e9

    return HealthCheck(
        test=_words(document.get("Test")),
        interval=seconds("Interval"),
        timeout=seconds("Timeout"),
        start_period=seconds("StartPeriod"),
        start_interval=seconds("StartInterval"),
        retries=int(document.get("Retries") or 0),
    )


def choose(candidates: Sequence[Descriptor], wanted: Platform) -> Descriptor:
    """The candidate for the wanted platform. Raises `ImageError` with the available ones."""
    fitting = [c for c in candidates if c.platform is None or _fits(c.platform, wanted)]
    if not fitting:
        raise wrong_platform([c.platform for c in candidates], wanted)

    def distance(candidate: Descriptor) -> tuple[bool, str]:
        variant = candidate.platform.variant if candidate.platform else ""
        return variant != wanted.variant, variant

    return min(fitting, key=distance)


def check_platform(config: ConfigFile, wanted: Platform) -> None:
    """Raises `ImageError` if the image is not for the wanted platform."""
    if config.platform is not None and not _fits(config.platform, wanted):
        raise wrong_platform([config.platform], wanted)


def wrong_platform(there: Sequence[Platform | None], wanted: Platform) -> ImageError:
    """The error for an image that lacks this node's platform."""
    known = sorted({str(p) for p in there if p is not None and p.os != "unknown"})
    return ImageError(
        f"the image is not for this node's platform {wanted}: it has {', '.join(known) or 'none'}"
    )


def _fits(there: Platform, wanted: Platform) -> bool:
    if (there.os, there.architecture) != (wanted.os, wanted.architecture):
        return False
    # amd64 v2 and higher are instruction set levels that a CPU may lack; v1 and arm64's v8 are the
    # baseline by another name. 32-bit ARM runs its own and all lower variants.
    if wanted.architecture == "arm":
        return there.variant <= wanted.variant or not wanted.variant
    return there.variant in (
        "",
        wanted.variant,
        {"amd64": "v1", "arm64": "v8"}.get(there.architecture),
    )


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ImageError(f"the image's {what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ImageError(f"the image's {what} is not a JSON object")
    return document


def _descriptor(entry: dict[str, Any]) -> Descriptor:
    hex_of(entry["digest"])
    annotations = entry.get("annotations") or {}
    reference = str(annotations.get("org.opencontainers.image.ref.name", ""))
    platform = entry.get("platform")
    size = int(entry["size"])
    if size < 0:
        raise ValueError(f"size {size}")
    return Descriptor(
        digest=entry["digest"],
        size=size,
        media_type=str(entry.get("mediaType", "")),
        platform=_platform(platform) if platform else None,
        # containerd and Docker put the whole name here and only the tag into the other.
        name=str(annotations.get("io.containerd.image.name", reference)),
    )


def _platform(entry: dict[str, Any]) -> Platform | None:
    if not entry.get("architecture"):
        return None
    return Platform(
        str(entry.get("os") or "linux"), str(entry["architecture"]), str(entry.get("variant") or "")
    )


def _words(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ValueError(f"{value!r} is not a list of strings")
    return tuple(value)


def _seconds(text: str | None) -> float:
    if not text:
        return 0.0
    # RFC 3339 with up to nine digits of fraction; Python takes six.
    head, dot, tail = text.replace("Z", "+00:00").partition(".")
    digits = tail[: len(tail) - len(tail.lstrip("0123456789"))]
    if dot:
        head += f".{digits[:6].ljust(6, '0')}{tail[len(digits) :]}"
    return max(0.0, datetime.fromisoformat(head).timestamp())
