# SPDX-License-Identifier: Apache-2.0
"""The configuration of an agent process, and the error of a host that it cannot work on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.agent.images.image_gc import DiskThresholds
from orchestrator.identity.host_identity import NodeIdentity
from orchestrator.model.specs import LogConfig, Resources


class AgentFailure(Exception):
    """The agent cannot work on this host; one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The agent's configuration: folders are absolute."""

    identity: NodeIdentity
    data_dir: Path
    """Survives a reboot."""
    run_dir: Path
    """Emptied by a reboot."""
    cgroup_parent: str
    labels: Mapping[str, str]
    runtime: str
    """Name or path of the OCI runtime's program."""
    offered: Resources
    """What the node offers; 0: what the host has."""
    generic: Mapping[str, str]
    """Kind of generic resource → how many the node has, or their names."""
    max_layer: int
    """Bytes that an image's layer may unpack to."""
    build_memory: int
    """Bytes of memory of a build that names no limit; 0: no limit."""
    marks: DiskThresholds
    """How full the disk of the images may become before some are removed."""
    key_age: float
    """Seconds after which the node replaces its key for encrypted networks; 0: never by itself."""
    blob_port: int
    """TCP port at which other nodes get images from this one; 0: any free one."""
    metrics_port: int
    """TCP port at which Prometheus reads this node's metrics; 0: any free one."""
    logging: LogConfig = field(default_factory=LogConfig)
    """The logging driver and options of containers that ask for none."""
    cdi_folders: tuple[Path, ...] = ()
    """Where specification files of CDI devices are."""
    otlp_endpoint: str = ""
    """Where traces go; empty: where OpenTelemetry's variables say, else nowhere."""
