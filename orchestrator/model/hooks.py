# SPDX-License-Identifier: Apache-2.0
"""Lifecycle hooks: programs that run in a task's container after its start and before its stop."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.model.extensible import Extensible

POST_START, PRE_STOP = "post_start", "pre_stop"


@dataclass(frozen=True, slots=True)
class Hook(Extensible):
    """A program that runs in a container, as `orc exec` would run it."""

    command: tuple[str, ...] = ()
    user: str = ""
    """USER[:GROUP], names or ids; empty: the container's."""
    privileged: bool = False
    """All capabilities, and no AppArmor profile."""
    workdir: str = ""
    """Empty: the container's; a relative one is below that."""
    env: tuple[str, ...] = ()
    """`KEY=value` over the container's variables; a key alone removes one."""

    def __str__(self) -> str:
        options = [f"user={self.user}"] if self.user else []
        options += ["privileged"] if self.privileged else []
        options += [f"workdir={self.workdir}"] if self.workdir else []
        return " ".join([shlex.join(self.command), *options, *self.env])


def check_hooks(hooks: Sequence[Hook]) -> None:
    """Raises ValueError for the first hook that cannot run in any container."""
    for number, hook in enumerate(hooks, 1):
        if not hook.command or not hook.command[0]:
            raise ValueError(f"hook {number} has no command; write such as [/bin/prepare]")
        texts = (*hook.command, hook.user, hook.workdir, *hook.env)
        if any("\0" in text for text in texts):
            raise ValueError(f"hook {number} contains a NUL character")
        if re.search(r"\s", hook.user) or hook.user.count(":") > 1:
            raise ValueError(
                f"user {hook.user!r} of hook {number} is not of the form USER[:GROUP], names or ids"
            )
        for entry in hook.env:
            if not entry.partition("=")[0]:
                raise ValueError(f"env {entry!r} of hook {number} is not of the form KEY=value")
