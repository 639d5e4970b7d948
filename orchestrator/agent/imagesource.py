"""Where a task's image comes from: this node's store, else the nodes that the manager names."""

from __future__ import annotations

import random
from collections.abc import Sequence

from orchestrator.agent.images.blobs import ChannelFactory, fetch_from
from orchestrator.agent.images.config import LocalImage
from orchestrator.agent.images.errors import ImageError
from orchestrator.agent.images.store import ImageStore


class ClusterImages:
    """Makes images ready to run, wherever in the cluster they are."""

    def __init__(
        self, store: ImageStore, dial: ChannelFactory, own_address: str, rng: random.Random
    ) -> None:
        """`dial` opens a channel to another node's blob port; `own_address` is this node's
        HOST:PORT, which is not asked."""
        self._store = store
        self._dial = dial
        self._own_address = own_address
        self._rng = rng

    async def prepare(self, name: str, digest: str, sources: Sequence[str]) -> LocalImage:
        """See `parts.Images`."""
        local = self._store.resolve(digest or name)
        others = [source for source in sources if source != self._own_address]
        if local is None and not (digest and others):
            raise ImageError(f"no node that is up has the image {name}")
        fetch = fetch_from(others, self._dial, self._rng)
        return await self._store.ensure(local or digest, fetch)
