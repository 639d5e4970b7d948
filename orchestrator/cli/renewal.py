"""The certificate of a context is renewed by a command that finds it half through its life.

That comes after the command's own work, takes some 200 ms once in six weeks, and says nothing. If
it fails the next command tries again; near the end the user is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.cli.context import Context, save_context
from orchestrator.cli.groups import CliError

if TYPE_CHECKING:
    from orchestrator.identity.pair import Life

_TIMEOUT = 5.0
"""Seconds that a manager may take to sign."""
_NEAR = 0.9
"""The part of its life from which on a certificate that cannot be renewed is spoken of."""


def renew_if_due(context: Context, call: Callable[..., Any]) -> None:
    """Renew a context's certificate if it is time to, with `call` (as `Client.call`)."""
    now = time.time()
    if now < context.renew_at:
        return
    from orchestrator.identity.pair import Life

    life = Life.of(context.certificate)
    if life is None:
        return
    due = life.renewal(0.0).timestamp()
    if now >= due:
        try:
            context, due = _renewed(context, call)
        except CliError as error:
            _speak(context, life, now, error)
            return
    save_context(replace(context, renew_at=due), use=False)


def _renewed(context: Context, call: Callable[..., Any]) -> tuple[Context, float]:
    """The context with another certificate, and when to renew that. Raises CliError."""
    from orchestrator.identity.ca import new_request
    from orchestrator.identity.pair import Life
    from orchestrator.pb import certificates_pb2

    key, request = new_request()
    reply = call("Certificates.Renew", certificates_pb2.RenewRequest(csr=request), _TIMEOUT)
    life = Life.of(reply.certificate)
    if life is None:
        raise CliError("the manager answered with no certificate")
    renewed = replace(context, certificate=reply.certificate, key=key)
    return renewed, life.renewal(0.0).timestamp()


def _speak(context: Context, life: Life, now: float, error: CliError) -> None:
    begins, ends = life.begins.timestamp(), life.ends.timestamp()
    if now - begins > _NEAR * (ends - begins):
        import click

        click.echo(
            f"orc: the certificate of context {context.name!r} ends at {life.ends:%F %R} UTC and "
            f"cannot be renewed: {error}; 'orc cluster admin' makes another, on a manager's host",
            err=True,
        )
