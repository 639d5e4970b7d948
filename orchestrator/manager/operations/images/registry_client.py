# SPDX-License-Identifier: Apache-2.0
"""The manager's own requests to registries.

Nodes are not asked to resolve names: a node could answer with an image of its own making.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.model.names import parse_image
from orchestrator.registries.registry_errors import CorruptContent
from orchestrator.registries.skopeo import INSPECT_TIMEOUT, Skopeo

_IN_MEMORY = (Path("/dev/shm"), Path("/run"))
MAX_CONCURRENT = 8
"""Concurrent requests: each is a process."""


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """The image that a name resolves to at its registry."""

    digest: str
    """Digest of the manifest, or of a multi-platform index."""
    manifests: frozenset[str]
    """Digests of an index' manifests; otherwise the image's own alone."""


class RegistryClient:
    """A client of image registries."""

    def __init__(self, skopeo: Skopeo | None = None) -> None:
        self._skopeo = skopeo or Skopeo(host="manager")
        self._turns = asyncio.Semaphore(MAX_CONCURRENT)

    async def resolve(
        self, name: str, auth: bytes = b"", within: float = INSPECT_TIMEOUT
    ) -> ResolvedImage:
        """Resolve a name; `auth` is an auth.json. Raises ImageError."""
        async with self._turns:
            data = await self._skopeo.inspect(name, "", auth, within)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        wanted = parse_image(name).digest
        if wanted and wanted != digest:
            raise CorruptContent(f"the registry answered {name} with {digest}")
        return ResolvedImage(digest, manifests_of(data) or frozenset({digest}))

    async def login(self, registry: str, username: str, password: str) -> None:
        """Check credentials at a registry. Raises ImageError with its answer."""
        async with self._turns:
            await self._skopeo.login(registry, username, password, _scratch())


def _scratch() -> Path:
    """A folder in memory, if there is one: skopeo writes the password there until it ends."""
    return next((path for path in _IN_MEMORY if path.is_dir()), Path(tempfile.gettempdir()))


def manifests_of(data: bytes) -> frozenset[str]:
    """The digests that an index lists; none for a manifest."""
    found = set()
    with suppress(ValueError, TypeError, AttributeError):
        for each in json.loads(data).get("manifests") or ():
            if isinstance(digest := each.get("digest"), str):
                found.add(digest)
    return frozenset(found)
