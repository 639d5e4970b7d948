"""What the configuration of a container needs to know of its node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.model.confinement import CAPABILITIES

DEFAULT_PIDS_LIMIT = 4096
"""Most processes in a container whose spec does not say."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Of the kernel, the agent's own process and `/etc`; see `host.read_node_facts`."""

    swap_accounting: bool = True
    """Whether the kernel can limit swap; without, memory alone is limited."""
    least_oom_score: int = -1000
    """The lowest OOM score adjustment that the agent can give; above 0 on a host that raised the
    agent's own and does not let it go back."""
    niced: bool = False
    """Whether the agent has another priority, I/O priority or scheduling policy than processes
    usually have."""
    apparmor: str | None = None
    """The AppArmor profile of containers that ask for none, which may be none (empty); None: the
    kernel has no AppArmor."""
    pids_limit: int = DEFAULT_PIDS_LIMIT
    nameservers: tuple[str, ...] = ()
    """Those of the host, for a container that names none."""
    search: tuple[str, ...] = ()
    """The host's DNS search domains, used with its nameservers."""
    capabilities: frozenset[str] = frozenset(CAPABILITIES)
    """What the agent holds, and so can give to a container with the host's users."""
    hard_limits: Mapping[str, int] = field(default_factory=dict)
    """The agent's own hard limits, by Docker's names, where it cannot raise them."""
    cpus: frozenset[int] = frozenset()
    """The CPUs that there are; empty: not known."""
    init: Path = Path("/usr/bin/tini-static")
    """The program for `--init`."""
