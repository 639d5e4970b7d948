# SPDX-License-Identifier: Apache-2.0
"""Errors that commands end with, and their exit statuses.

0 done, 1 refused or failed, 2 usage, 3 not converged in time, 4 rolled back, 130 interrupted."""

from __future__ import annotations

import click

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""


class CliError(click.ClickException):
    """Refused or failed: its text is one line for the user. Exit status 1."""


class NotConverged(CliError):
    """The service did not converge: it failed, or not in time. Exit status 3."""

    exit_code = 3


class StillRunning(NotConverged):
    """The job has not finished in time and continues. Exit status 3."""


class RolledBack(CliError):
    """The update failed and was rolled back. Exit status 4."""

    exit_code = 4


class ManagerLost(CliError):
    """No manager can be reached or can serve; trying again may help."""


class Unsupported(CliError):
    """The manager does not know the method: it has an older version."""


class Refused(CliError):
    """The manager rejected the request; its message."""

    conflict = False
    """Conflict: the object was modified concurrently; read it again and retry."""
    missing = False
    """Not found."""
    code = 0
    """The status code of gRPC."""
