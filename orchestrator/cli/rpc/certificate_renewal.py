# SPDX-License-Identifier: Apache-2.0
"""Renewal of a context's certificate, by any command after half of its lifetime.

It runs after the command's own work, takes some 200 ms once in six weeks, and prints nothing. After
a failure the next command retries; near the end of the lifetime a warning is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.cli.app.contexts import Context, save_context
from orchestrator.cli.app.errors import CliError, Refused

_TIMEOUT = 5.0
"""Timeout of the signing call in seconds."""
_RETRY_AFTER = 86400.0
"""Seconds until a refused renewal is retried."""
_WARN_FRACTION = 0.9
"""Fraction of the lifetime after which a failed renewal prints a warning."""


def renew_if_due(context: Context, call: Callable[..., Any], *, at_once: bool = False) -> None:
    """Renew a context's certificate if it is time to, with `call` (as `Client.call`), and take the
    CAs to trust. `at_once`: a manager asks for it."""
    if not (at_once and context.renew_at) and not 0 < context.renew_at <= time.time():
        return
    from orchestrator.identity.ca import new_request
    from orchestrator.pb import certificates_pb2

    key, request = new_request()
    try:
        reply = call("Certificates.Renew", certificates_pb2.RenewRequest(csr=request), _TIMEOUT)
        trusted = reply.ca_certificates or context.ca
        renewed = replace(context, certificate=reply.certificate, key=key, ca=trusted)
        save_context(renewed, use=False)
    except CliError as error:
        if isinstance(error, Refused):
            # A new key costs time, and the answer would be the same.
            save_context(context, use=False, renew_at=time.time() + _RETRY_AFTER)
        _warn(context, error)


def _warn(context: Context, error: CliError) -> None:
    from orchestrator.identity.certificates import Life

    life = Life.of(context.certificate)
    if life is None:
        return
    begins, ends = life.begins.timestamp(), life.ends.timestamp()
    if time.time() - begins > _WARN_FRACTION * (ends - begins):
        import click

        click.echo(
            f"orc: the certificate of context {context.name!r} ends at {life.ends:%F %R} UTC and "
            f"cannot be renewed: {error}; 'orc cluster admin' makes another, on a manager's host",
            err=True,
        )
