# SPDX-License-Identifier: Apache-2.0
"""Docker's `credsStore`: one credential helper for all registries, which skopeo does not support.

skopeo itself supports helpers of registries.conf (`credential-helpers`) and the `credHelpers` of
auth.json and Docker's config.json. Helpers are called each time, so rotated passwords need no new
login. Protocol: https://github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.registries.registry_errors import ImageError

_HELPER_TIMEOUT = 30.0
"""Timeout of a helper in seconds."""
_HUB, _HUB_KEY = "docker.io", "https://index.docker.io/v1/"
_TOKEN = "<token>"
_CONF = Path("/etc/containers/registries.conf")


async def stored_auth(registry: str) -> bytes:
    """An auth.json with the credentials of this host's `credsStore` for a registry. Empty without a
    store, or if other credentials take precedence. Raises ImageError if the helper fails."""
    key = _HUB_KEY if registry == _HUB else registry
    store = ""
    for document in await asyncio.to_thread(lambda: list(_documents())):
        specific = {**_map(document, "auths"), **_map(document, "credHelpers")}
        if registry in specific or key in specific:
            return b""
        store = store or str(document.get("credsStore") or "")
    if not store:
        return b""
    answer = await _query_helper(f"docker-credential-{store}", key)
    if answer is None:
        return b""
    username, secret = answer
    basic = base64.b64encode(f"{username}:{secret}".encode()).decode()
    entry = {"auth": basic}
    if username == _TOKEN:
        entry = {"auth": base64.b64encode(f"{_TOKEN}:".encode()).decode(), "identitytoken": secret}
    return json.dumps({"auths": {registry: entry}}).encode()


def has_credentials() -> bool:
    """Whether this host has credentials or credential helpers for any registry."""
    if any(
        document.get(key)
        for document in _documents()
        for key in ("auths", "credHelpers", "credsStore")
    ):
        return True
    return any(_has_helpers(path) for path in _registries_confs())


def _documents() -> Iterator[dict[str, Any]]:
    """The credential files, in skopeo's order."""
    home = Path(os.environ.get("HOME", "/root"))
    if file := os.environ.get("REGISTRY_AUTH_FILE"):
        paths = [Path(file)]
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        docker = Path(os.environ.get("DOCKER_CONFIG") or home / ".docker")
        paths = [
            Path(runtime or "/run/containers", "containers" if runtime else str(os.getuid())),
            config / "containers",
        ]
        paths = [*(path / "auth.json" for path in paths), docker / "config.json"]
    for path in paths:
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # skopeo reports the error
        if isinstance(document, dict):
            yield document


def _map(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _registries_confs() -> Iterator[Path]:
    home = Path(os.environ.get("HOME", "/root"), ".config/containers/registries.conf")
    configured = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    main = Path(configured) if configured else home if home.exists() else _CONF
    yield main
    yield from sorted(Path(f"{main}.d").glob("*.conf"))


def _has_helpers(path: Path) -> bool:
    """Whether a registries.conf(5) lists credential helpers besides the auth file."""
    try:
        helpers = tomllib.loads(path.read_text()).get("credential-helpers") or []
    except (OSError, ValueError):
        return False
    return any(helper != "containers-auth.json" for helper in helpers)


async def _query_helper(program: str, key: str) -> tuple[str, str] | None:
    """User name and secret from a helper; None if it has none."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, "get"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except FileNotFoundError:
        raise ImageError(f"{program}, which credsStore names, is not in PATH") from None
    try:
        async with asyncio.timeout(_HELPER_TIMEOUT):
            output, _ = await process.communicate(key.encode())
    except TimeoutError:
        raise ImageError(f"{program} did not answer within {_HELPER_TIMEOUT:g} seconds") from None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    text = output.decode(errors="replace").strip()
    if process.returncode:
        if "not found" in text:
            return None
        raise ImageError(f"{program} failed: {(text.splitlines() or ['no reason'])[0]}")
    try:
        document = json.loads(text)
        username, secret = str(document["Username"]), str(document["Secret"])
    except (ValueError, KeyError, TypeError):
        raise ImageError(f"{program} returned invalid credentials") from None
    return (username, secret) if username else None
