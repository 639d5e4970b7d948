# SPDX-License-Identifier: Apache-2.0
"""Credentials that this user's Docker has for registries: `config.json` and the helpers it names.

Sources: https://docs.docker.com/reference/cli/docker/login/#credential-stores, and the protocol of
https://github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cli.app.errors import CliError

_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
_TOKEN = "<token>"
_HELPER_TIMEOUT = 30.0
"""Timeout of a helper in seconds: it may ask its user."""


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """The credentials for one registry."""

    username: str
    password: str
    identity_token: str
    """An identity token, instead of user and password."""
    source: str
    """The source, for messages."""


def stored_login(registry: str) -> StoredLogin | None:
    """The credentials that this user's Docker has for a registry (HOST[:PORT]); None: none.

    A helper for the registry comes before the helper for all, and that before what the file itself
    has. Raises CliError when a helper cannot be asked.
    """
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    try:
        document = json.loads(path.read_bytes())
        helpers, auths = document.get("credHelpers") or {}, document.get("auths") or {}
        store = document.get("credsStore") or ""
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CliError(f"cannot read {path}: {(error.strerror or '').lower()}") from None
    except (ValueError, AttributeError):
        raise CliError(f"{path} is not a Docker configuration: not a JSON object") from None
    keys = [_HUB_KEY, _HUB] if registry == _HUB else [registry, f"https://{registry}"]
    helper = next((str(helpers[key]) for key in keys if key in helpers), str(store))
    if helper and (found := _call_helper(helper, keys[0], path)) is not None:
        return found
    for key in keys:
        if (entry := auths.get(key)) and (found := _stored_auth(entry, path)) is not None:
            return found
    return None


def _call_helper(helper: str, key: str, path: Path) -> StoredLogin | None:
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=key,
            capture_output=True,
            text=True,
            timeout=_HELPER_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise CliError(f"{program} is named in {path} but not in the PATH; install it") from None
    except subprocess.TimeoutExpired:
        raise CliError(f"{program} did not answer within {_HELPER_TIMEOUT:g} seconds") from None
    if done.returncode:
        output = (done.stdout.strip() or done.stderr.strip()).splitlines()
        if output and "not found" in output[0]:
            return None
        reason = output[0] if output else f"status {done.returncode}"
        raise CliError(f"{program} failed: {reason}")
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise CliError(f"{program} returned no credentials") from None
    if username == _TOKEN:
        return StoredLogin("", "", secret, program)
    return StoredLogin(username, secret, "", program) if username else None


def _stored_auth(entry: Any, path: Path) -> StoredLogin | None:
    try:
        if token := entry.get("identitytoken"):
            return StoredLogin("", "", str(token), str(path))
        text = base64.b64decode(entry.get("auth") or "").decode()
    except (ValueError, AttributeError):
        raise CliError(f"{path} has invalid credentials; log in again") from None
    username, _, password = text.partition(":")
    return StoredLogin(username, password.rstrip("\0"), "", str(path)) if username else None
