"""Names of images in the cluster: each belongs to one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.planning.views import ClusterView
from orchestrator.manager.store.cache import Cache
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.kv import Conflict, Kv
from orchestrator.model.objects import Image


async def give_names(kv: Kv, cache: Cache, node_id: str, image: Image) -> Image:
    """Record that a node has an image, and that the image's names are now its own.

    Any manager may do it. Returns the image as stored, once this manager's cache has it. Raises
    StoreError.
    """
    while True:
        read = cache.revision
        changes = list(naming(cache.view, node_id, image))
        if not changes:
            return cache.view.images[image.id]
        try:
            revision = await commit(kv, changes)
        except Conflict:
            # The leader recorded what a node has; nothing of that is overwritten.
            await cache.wait_for(read + 1)
        else:
            await cache.wait_for(revision)


def naming(view: ClusterView, node_id: str, image: Image) -> Iterator[Change]:
    """The changes that move the image's names to it from other images."""
    for other in list(view.images.values()):
        if other.id != image.id and set(other.names) & set(image.names):
            names = tuple(n for n in other.names if n not in image.names)
            yield Change(other, replace(other, names=names))
    known = view.images.get(image.id)
    if known is None:
        yield Change(None, replace(image, nodes=(node_id,), revision=0))
        return
    after = replace(
        known,
        names=tuple(sorted({*known.names, *image.names})),
        nodes=tuple(sorted({*known.nodes, node_id})),
        condemned=(),  # it is wanted again
        indexes=tuple(sorted({*known.indexes, *image.indexes})),
    )
    if after != known:
        yield Change(known, after)
