# SPDX-License-Identifier: Apache-2.0
"""The entry point of `orc`: the root command, whose commands are in `app.command_table`."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from orchestrator.cli.app import lazy_imports

# Before click and protobuf are imported.
lazy_imports.install()

import click  # noqa: E402

from orchestrator import __version__  # noqa: E402
from orchestrator.cli.app import interrupts  # noqa: E402
from orchestrator.cli.app.command_groups import RootGroup, example  # noqa: E402
from orchestrator.cli.app.command_table import SECTIONS  # noqa: E402
from orchestrator.cli.app.completion_names import context_option  # noqa: E402

_GC_THRESHOLD = 100_000
"""Threshold of garbage collection for short commands."""


def _prepare_completion() -> None:
    """Import what completion needs: the shell protocol, and the completers."""
    import orchestrator.cli.completion.completers
    import orchestrator.cli.completion.shells  # noqa: F401


@click.group(
    cls=RootGroup,
    sections=SECTIONS,
    prepare_completion=_prepare_completion,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=example("orc dev up", "orc service create --name web --replicas 3 -p 8080:80 hello:1"),
)
@context_option("-c")
@click.version_option(__version__, "--version", "-v", prog_name="orc", message="orc %(version)s")
def orc(context_name: str | None) -> None:
    """Orc runs containers on many hosts: services with replicas that are kept running, and an
    address for every container that all hosts reach."""


_DAEMON_PACKAGES = ("orchestrator.agent", "orchestrator.manager")
"""Packages of daemons, which need an orderly shutdown."""


def main() -> NoReturn:
    """The entry point of the `orc` command.

    Half of a short command's time went into garbage collection during imports, and into tearing
    modules down at exit. So collection is rare, and the process exits right after its output.
    """
    gc.set_threshold(_GC_THRESHOLD)
    interrupts.install()
    try:
        orc.main()
    except SystemExit as end:
        status = end.code
    if not any(name in sys.modules for name in _DAEMON_PACKAGES):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status if isinstance(status, int) else 0)
    sys.exit(status)


if __name__ == "__main__":
    main()
