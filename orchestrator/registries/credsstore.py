# SPDX-License-Identifier: Apache-2.0
"""Docker's `credsStore`: one credential helper for all registries, which skopeo does not ask.

skopeo itself asks the helpers of registries.conf (`credential-helpers`) and the `credHelpers` of
auth.json and of Docker's config.json. Helpers are asked each time, so a password that rotates needs
no new login. Source of the protocol: https://github.com/docker/docker-credential-helpers.
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

_WITHIN = 30.0
"""Seconds that a helper may take."""
_HUB, _HUB_KEY = "docker.io", "https://index.docker.io/v1/"
_TOKEN = "<token>"
_CONF = Path("/etc/containers/registries.conf")


async def stored_auth(registry: str) -> bytes:
    """An auth.json with what this host's `credsStore` has for a registry; empty where there is no
    store, or something that comes before it. Raises ImageError when the helper fails."""
    key = _HUB_KEY if registry == _HUB else registry
    store = ""
    for document in await asyncio.to_thread(lambda: list(_documents())):
        nearer = {**_map(document, "auths"), **_map(document, "credHelpers")}
        if registry in nearer or key in nearer:
            return b""
        store = store or str(document.get("credsStore") or "")
    if not store:
        return b""
    answer = await _ask(f"docker-credential-{store}", key)
    if answer is None:
        return b""
    username, secret = answer
    basic = base64.b64encode(f"{username}:{secret}".encode()).decode()
    entry = {"auth": basic}
    if username == _TOKEN:
        entry = {"auth": base64.b64encode(f"{_TOKEN}:".encode()).decode(), "identitytoken": secret}
    return json.dumps({"auths": {registry: entry}}).encode()


def has_credentials() -> bool:
    """Whether this host has credentials, or helpers that know them, for any registry."""
    if any(
        document.get(key)
        for document in _documents()
        for key in ("auths", "credHelpers", "credsStore")
    ):
        return True
    return any(_helpers(path) for path in _confs())


def _documents() -> Iterator[dict[str, Any]]:
    """The files of credentials, in the order in which skopeo looks at them."""
    home = Path(os.environ.get("HOME", "/root"))
    if told := os.environ.get("REGISTRY_AUTH_FILE"):
        paths = [Path(told)]
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
            continue  # skopeo says what is wrong with it
        if isinstance(document, dict):
            yield document


def _map(document: dict[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _confs() -> Iterator[Path]:
    home = Path(os.environ.get("HOME", "/root"), ".config/containers/registries.conf")
    told = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    main = Path(told) if told else home if home.exists() else _CONF
    yield main
    yield from sorted(Path(f"{main}.d").glob("*.conf"))


def _helpers(path: Path) -> bool:
    """Whether a registries.conf(5) names other helpers than its own file of credentials."""
    try:
        helpers = tomllib.loads(path.read_text()).get("credential-helpers") or []
    except (OSError, ValueError):
        return False
    return any(helper != "containers-auth.json" for helper in helpers)


async def _ask(program: str, key: str) -> tuple[str, str] | None:
    """User name and secret; None where the helper has none."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(program, "get"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except FileNotFoundError:
        raise ImageError(f"{program} is not in the PATH, and credsStore names it") from None
    try:
        async with asyncio.timeout(_WITHIN):
            output, _ = await process.communicate(key.encode())
    except TimeoutError:
        raise ImageError(f"{program} did not answer within {_WITHIN:g} seconds") from None
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
        raise ImageError(f"{program} answered something else than credentials") from None
    return (username, secret) if username else None
