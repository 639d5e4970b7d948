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
    """The job has not ended in time; it goes on. Exit status 3."""


class RolledBack(CliError):
    """The update failed, and the service is what it was before. Exit status 4."""

    exit_code = 4


class ManagerLost(CliError):
    """No manager can be reached or can serve; trying again may help."""


class Refused(CliError):
    """What a manager answered, in its own words."""

    conflict = False
    """What the request was made from has changed meanwhile: read again, and try again."""
    missing = False
    """There is nothing of that name."""
