"""What it takes to reach into a container from outside: its folders, its records, its cgroups."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.bundle import Bundle
from orchestrator.agent.runtime.cgroups import Cgroups
from orchestrator.agent.runtime.hanging import OwnThreads
from orchestrator.agent.runtime.identity import ProcessIdentity


@dataclass(frozen=True, slots=True)
class Access:
    """The way to one container."""

    container_id: str
    bundle: Bundle
    runtime: tuple[str, ...]
    """The OCI runtime's command, up to its own options."""
    cgroups: Cgroups
    boot: str
    looking: OwnThreads
    """For what is looked at in the container's files, by its id."""

    def running(self) -> ProcessIdentity:
        """The first process of a container that was started and has not ended.

        Raises RuntimeFailure for any other."""
        identity = self.bundle.identity()
        if self.bundle.started() is None or identity is None:
            raise RuntimeFailure("the container is not running; see 'orc ps -a'")
        if identity.boot != self.boot or not identity.container.alive():
            raise RuntimeFailure("the container is not running any more; see 'orc ps -a'")
        return identity.container

    def user(self) -> tuple[int, int]:
        """The ids, as the container sees them, of whom its own program runs as."""
        text = (self.bundle.run / "config.json").read_bytes()
        user = json.loads(text)["process"]["user"]
        return user["uid"], user["gid"]

    def pids(self) -> list[int]:
        """Every process in it."""
        return self.cgroups.pids(self.container_id)

    def process(self) -> ProcessIdentity | None:
        """The first process, whether it has begun its own program or waits to; None when there is
        none."""
        identity = self.bundle.identity()
        if identity is None or identity.boot != self.boot or not identity.container.alive():
            return None
        return identity.container

    def root(self) -> Path:
        """The container's root folder as its own processes see it, mounts included; of one that
        does not run, what is mounted of it. Raises RuntimeFailure when there is none."""
        try:
            return Path(f"/proc/{self.running().pid}/root")
        except RuntimeFailure:
            if self.bundle.root.is_mount():
                return self.bundle.root
            raise
