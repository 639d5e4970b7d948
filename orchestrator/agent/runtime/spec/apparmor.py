# SPDX-License-Identifier: Apache-2.0
"""AppArmor: the profile of containers, on hosts whose kernel has it.

Source: apparmor.d(5), apparmor_parser(8).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.linux import spawn

logger = logging.getLogger(__name__)

DEFAULT = "orc-default"
"""The profile in `apparmor.profile`."""
UNCONFINED = "unconfined"

_PROFILE = Path(__file__).with_name("apparmor.profile")
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")


def is_enabled() -> bool:
    """Whether AppArmor is enabled in the kernel."""
    try:
        return _ENABLED.read_text().strip() == "Y"
    except OSError:
        return False


async def ensure_loaded() -> str | None:
    """Load the default profile, replacing an older one. Returns its name; empty, after a warning in
    the log, if it cannot be loaded; None if the kernel has no AppArmor."""
    if not is_enabled():
        return None
    program = shutil.which("apparmor_parser")
    if program is None:
        logger.warning(
            "containers have no AppArmor profile: apparmor_parser is not installed; install the "
            "package apparmor and restart the agent"
        )
        return ""
    status, stderr = await spawn.run([program, "--replace", "--skip-cache", str(_PROFILE)])
    if status != 0:
        logger.warning(
            "containers have no AppArmor profile: it cannot be loaded", extra={"error": stderr}
        )
        return ""
    return DEFAULT


def profile(wanted: str, default: str | None, *, privileged: bool) -> str:
    """The profile of a container that requests `wanted`, which may be empty, on a node with this
    `default` (see `ensure_loaded`); empty: unconfined. Raises RuntimeFailure."""
    if wanted == UNCONFINED or (privileged and not wanted):
        return ""
    if wanted and default is None:
        raise RuntimeFailure(
            f"this node's kernel has no AppArmor, so the profile `{wanted}` cannot be used; give "
            "--security-opt apparmor=unconfined, or run it on a node that has AppArmor"
        )
    return wanted or default or ""
