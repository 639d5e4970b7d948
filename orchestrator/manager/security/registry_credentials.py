# SPDX-License-Identifier: Apache-2.0
"""The cluster's registry credentials: stored sealed, opened for each pull."""

from __future__ import annotations

import base64
import json

from orchestrator.manager.planning.view import ClusterView
from orchestrator.manager.security.vault import Vault
from orchestrator.model.names import parse_image
from orchestrator.pb import images_pb2

HUB = "docker.io"
_HUB_NAMES = frozenset(
    {"", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"}
)


def registry_name(text: str) -> str:
    """The key of a registry's credentials: HOST[:PORT], without scheme or path. Raises ValueError
    if invalid."""
    if text in _HUB_NAMES:
        return HUB
    host = text.removeprefix("https://").removeprefix("http://").partition("/")[0]
    if parse_image(f"{host}/x").registry != host and host != HUB:
        raise ValueError(f"{text!r} is no registry; write HOST or HOST:PORT")
    return host


def purpose(registry: str) -> str:
    """The purpose that a password is sealed for."""
    return f"registry {registry}"


def auth_file(registry: str, username: str, password: str) -> bytes:
    """An auth.json (containers-auth.json(5)) for one registry."""
    return json.dumps({"auths": {registry: {"auth": _basic(username, password)}}}).encode()


def _basic(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


def given_auth(image: str, login: images_pb2.RegistryLogin) -> bytes:
    """An auth.json of a client's credentials for an image's registry; empty without any."""
    registry = parse_image(image).registry or HUB
    if login.identity_token:
        entry = {"auth": _basic("<token>", ""), "identitytoken": login.identity_token}
        return json.dumps({"auths": {registry: entry}}).encode()
    if login.username:
        return auth_file(registry, login.username, login.password)
    return b""


def auth_for(view: ClusterView, vault: Vault, image: str) -> bytes:
    """The auth.json for an image's registry; empty if the cluster has no credentials."""
    registry = parse_image(image).registry or HUB
    credential = view.credentials.get(registry)
    if credential is None:
        return b""
    password = vault.open(credential.sealed, purpose(registry))
    return auth_file(registry, credential.username, password)
