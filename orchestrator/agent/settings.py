# SPDX-License-Identifier: Apache-2.0
"""The configuration of an agent process, and its error for unsuitable hosts."""

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
    """CPU shares and memory to offer; 0: all of the host's."""
    generic: Mapping[str, str]
    """Kind of generic resource → how many the node has, or their names."""
    max_layer: int
    """Maximum unpacked size of an image layer in bytes."""
    build_memory: int
    """Default memory limit of builds in bytes; 0: no limit."""
    marks: DiskThresholds
    """Disk usage at which the removal of unused images starts and stops."""
    key_age: float
    """Rotation period of the node's key for encrypted networks in seconds; 0: only on request."""
    blob_port: int
    """TCP port at which other nodes fetch images from this one; 0: any free port."""
    metrics_port: int
    """TCP port at which Prometheus reads this node's metrics; 0: any free port."""
    logging: LogConfig = field(default_factory=LogConfig)
    """The default logging driver of containers, and its options."""
    cdi_folders: tuple[Path, ...] = ()
    """Folders of CDI device specifications; later ones take precedence."""
    manager_command: tuple[str, ...] = ()
    """Program that makes this host a manager; empty: orc and systemd. See `streams.host_role`."""
    otlp_endpoint: str = ""
    """OTLP endpoint for traces; empty: from OpenTelemetry's environment variables, if set."""
