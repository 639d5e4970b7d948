"""A container's root that is the node's own files: read-only, without what is alive or secret.

What is mounted below `/` on a disk is mounted again, one by one; `/proc`, `/sys`, `/dev`, `/run`
and `/tmp` are left empty, for the container to get its own, so that neither sockets of the host's
daemons nor other containers' roots are reached.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orchestrator.agent.runtime.base import RuntimeFailure
from orchestrator.agent.runtime.idmap import mount_read_only

OWN = tuple(map(Path, ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/run", "/var/tmp")))
"""What a container has of its own."""
SECRET = tuple(map(Path, ("/var/lib/orc", "/var/lib/orc-dev", "/etc/orc")))
"""Where the host's daemons of this cluster keep keys and state unless told otherwise."""


def mount_host_root(target: Path, hidden: Sequence[Path]) -> None:
    """Mount the view at `target`; nothing that is mounted below `hidden` is in it.

    Raises RuntimeFailure.
    """
    text = Path("/proc/thread-self/mountinfo").read_text()
    for place in places(text, (*OWN, *SECRET, *hidden)):
        try:
            mount_read_only(place, target / place.relative_to("/"))
        except FileNotFoundError:
            # Unmounted meanwhile, or below something that hides it.
            continue
        except OSError as error:
            raise RuntimeFailure(
                f"the node's {place} cannot be shown to a container ({error.strerror})"
            ) from error


def places(mountinfo: str, without: Sequence[Path]) -> list[Path]:
    """Mount points of `/proc/self/mountinfo` (proc(5)) that are not below `without`, parents
    first, each once."""
    found: dict[Path, None] = {}
    for line in mountinfo.splitlines():
        raw = line.split(" ")[4]
        place = Path(raw.encode().decode("unicode_escape")) if "\\" in raw else Path(raw)
        if not any(place.is_relative_to(folder) for folder in without):
            found[place] = None
    return sorted(found, key=lambda place: len(place.parts))


def masked(hidden: Sequence[Path]) -> list[str]:
    """What of the secret folders is there, and so must be covered."""
    return sorted({str(folder) for folder in (*SECRET, *hidden) if os.path.isdir(folder)})
