# SPDX-License-Identifier: Apache-2.0
"""Join tokens: `ORC-1-<SHA-256 of the CA certificate, hex>-<secret>`."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_FORM = re.compile(r"ORC-1-([0-9a-f]{64})-([0-9a-z]{25,64})")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class BadToken(Exception):
    """Not a join token; one line for the user."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a host needs to trust a manager and be trusted by it."""

    ca_digest: str
    secret: str

    def __str__(self) -> str:
        return f"ORC-1-{self.ca_digest}-{self.secret}"


def new_secret() -> str:
    """A fresh secret of about 155 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(30))


def parse(text: str) -> JoinToken:
    """Read a token as a user pastes it. Raises `BadToken`."""
    match = _FORM.fullmatch(text.strip())
    if not match:
        raise BadToken(
            "this is not a join token; copy the whole ORC-1-… text that "
            "'orc cluster token worker' prints on a manager"
        )
    return JoinToken(match[1], match[2])
