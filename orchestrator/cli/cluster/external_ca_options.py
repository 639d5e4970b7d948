# SPDX-License-Identifier: Apache-2.0
"""The flags that describe an external CA, of `orc cluster init` and `orc cluster ca external`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.app.errors import CliError

_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class ExternalCaFlags:
    """An external CA as a user describes it; certificates are PEM."""

    url: str
    ca_certificate: str
    root: str
    """The CA that issued the endpoint's own certificate; empty: the host's CAs."""
    profile: str
    auth_key: str


def external_ca_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags to a command; `read_flags` takes their values."""
    for option in reversed(
        (
            click.option(
                "--ca-cert",
                type=_FILE,
                metavar="FILE",
                help="Certificate of the CA itself (PEM).",
            ),
            click.option(
                "--endpoint-ca",
                type=_FILE,
                metavar="FILE",
                help="CA that issued the endpoint's own certificate (PEM)  [default: the managers' "
                "hosts' CAs]",
            ),
            click.option(
                "--auth-key-file",
                type=_FILE,
                metavar="FILE",
                help="Key that authenticates requests (hexadecimal digits), for cfssl's authsign.",
            ),
            click.option(
                "--ca-profile", default="", metavar="NAME", help="Signing profile to ask for."
            ),
        )
    ):
        command = option(command)
    return command


def read_flags(
    url: str,
    ca_cert: Path | None,
    endpoint_ca: Path | None,
    auth_key_file: Path | None,
    ca_profile: str,
) -> ExternalCaFlags:
    """Read the files. Raises CliError, UsageError."""
    if ca_cert is None:
        raise click.UsageError("give the certificate of the external CA with --ca-cert FILE")
    try:
        return ExternalCaFlags(
            url,
            ca_cert.read_text(),
            endpoint_ca.read_text() if endpoint_ca else "",
            ca_profile,
            auth_key_file.read_text().strip() if auth_key_file else "",
        )
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read a certificate or key: {error}") from None
