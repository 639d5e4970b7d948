"""Where an image comes from: this node's store, else other nodes, else its registry.

Which of the latter two, a manager says, for it knows who has what and whose turn it is. A node
that reaches no manager asks the nodes that its assignment named, and then the registry with
whatever credentials it has itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from orchestrator.agent.images.blobs import ChannelFactory, fetch_from
from orchestrator.agent.images.config import ImageConfig, LocalImage
from orchestrator.agent.images.errors import ImageError, NoSpace
from orchestrator.agent.images.incoming import Fetch
from orchestrator.agent.images.registry import Registry
from orchestrator.agent.images.registryblobs import LayerProgress
from orchestrator.agent.images.store import ImageStore
from orchestrator.model.names import parse_image
from orchestrator.pb import images_pb2, images_pb2_grpc

log = logging.getLogger(__name__)

_LOCATE_WITHIN = 10.0
"""Seconds in which a manager says what it has under a name."""


def _unseen(digest: str, done: int, total: int) -> None:
    """Nobody looks at the progress."""


class ClusterImages:
    """Makes images ready to run, wherever in the cluster or at which registry they are."""

    def __init__(
        self,
        store: ImageStore,
        dial: ChannelFactory,
        own_address: str,
        rng: random.Random,
        registry: Registry | None = None,
        manager: Callable[[], grpc.aio.Channel | None] = lambda: None,
    ) -> None:
        """`dial` opens a channel to another node's blob port; `own_address` is this node's
        HOST:PORT, which is not asked; `manager` is the channel of the session, if there is one."""
        self._store = store
        self._dial = dial
        self._own_address = own_address
        self._rng = rng
        self._registry = registry
        self._manager = manager

    async def prepare(self, name: str, digest: str, sources: Sequence[str]) -> LocalImage:
        """See `parts.Images`."""
        local = self._store.resolve(digest or name)
        if local is not None:
            return await self._store.ensure(local, self._from_nodes(sources))
        failures: dict[str, ImageError] = {}
        """What nodes had to say that could not give it, by their HOST:PORT."""
        while True:
            async with self._granted(name, digest, sources, list(failures)) as grant:
                try:
                    return await self.pull(name, digest, grant)
                except NoSpace:
                    raise
                except ImageError as error:
                    fresh = [node for node in grant.nodes if node not in failures]
                    if grant.registry or not fresh or self._manager() is None:
                        raise _with(error, failures) from error
                    failures.update(dict.fromkeys(fresh, error))
                    log.warning("another source is asked: %s", error, extra={"image": name})

    async def config(self, digest: str) -> ImageConfig | None:
        """See `parts.Images`."""
        return await self._store.config(digest)

    async def pull(
        self,
        name: str,
        digest: str,
        grant: images_pb2.Grant,
        progress: LayerProgress = _unseen,
        rename: bool = False,
    ) -> LocalImage:
        """Get an image from where `grant` says: its nodes, else the registry. What comes from the
        registry gets its name; with `rename`, also what comes from nodes. Raises ImageError."""
        nodes = [source for source in grant.nodes if source != self._own_address]
        missing: ImageError | None = None
        if nodes and digest:
            try:
                fetch = self._from_nodes(nodes)
                if not rename:
                    return await self._store.ensure(digest, fetch)
                return await self._store.ensure(digest, fetch, name)
            except ImageError as error:
                missing = error
        if not grant.registry or self._registry is None:
            raise missing or ImageError(f"no node that is up has the image {name}")
        try:
            digest = digest or await self._registry.resolve(name, grant.auth)
            async with self._registry.source(
                name, digest, grant.auth, progress, self._store.blob_path
            ) as fetch:
                return await self._store.ensure(digest, fetch, name.partition("@")[0])
        except ImageError as error:
            raise ImageError(f"no node that is up has the image {name}, and {error}") from error

    async def base(self, name: str, fresh: bool, progress: Callable[[str], None]) -> str:
        """The digest of the image that a build means by `name`, and that image is here then.

        The cluster's own is taken, else the registry's; with `fresh`, the registry is asked first.
        Raises ImageError.
        """
        known = await self._located(name)
        digest = name.partition("@")[2] or known.digest
        if digest and not fresh:
            if self._store.resolve(digest) is None:
                progress(f"{name}: getting it from another node")
            return (await self.prepare(name, digest, ())).digest
        if self._registry is None:
            raise ImageError(f"no node that is up has the image {name}")
        progress(f"{name}: asking its registry")
        try:
            newest = await self._registry.resolve(name, known.auth)
            return (await self.prepare(name, newest, ())).digest
        except ImageError as error:
            if not digest:
                raise ImageError(f"no node has the image {name}, and {error}") from error
            progress(f"{error}: the cluster's own {name} is taken")
            return (await self.prepare(name, digest, ())).digest

    async def _located(self, name: str) -> images_pb2.LocateReply:
        """What a manager knows of a name; what this node knows, where none can be asked."""
        here = images_pb2.LocateReply(digest=self._store.resolve(name) or "")
        if (channel := self._manager()) is None:
            return here
        try:
            stub = images_pb2_grpc.SourcesStub(channel)
            request = images_pb2.LocateRequest(name=str(parse_image(name)))
            known = await stub.Locate(request, timeout=_LOCATE_WITHIN)
        except grpc.aio.AioRpcError as error:
            log.info("no manager says what %s is: %s", name, error.details())
            return here
        found: images_pb2.LocateReply = known
        if not found.digest:
            found.digest = here.digest
        return found

    def _from_nodes(self, sources: Sequence[str]) -> Fetch:
        others = [source for source in sources if source != self._own_address]
        return fetch_from(others, self._dial, self._rng)

    @asynccontextmanager
    async def _granted(
        self, name: str, digest: str, sources: Sequence[str], failed: Sequence[str]
    ) -> AsyncIterator[images_pb2.Grant]:
        """Where to get an image from, for the length of the block: a manager's word, else what
        can be known without one; not from nodes that have failed."""
        grant = images_pb2.Grant(nodes=sources, registry=self._registry is not None)
        channel = self._manager() if self._registry is not None else None
        if channel is None:
            yield grant
            return
        request = images_pb2.AcquireRequest(name=name, digest=digest, failed=failed)
        call = images_pb2_grpc.SourcesStub(channel).Acquire(request)
        try:
            try:
                answer = await call.read()
                if isinstance(answer, images_pb2.Grant):
                    grant = answer
            except grpc.aio.AioRpcError as error:
                log.info("no manager says where %s is: %s", name, error.details())
            yield grant
        finally:
            call.cancel()


def _with(error: ImageError, failures: Mapping[str, ImageError]) -> ImageError:
    """The last error, and before it what the first node said that has the image."""
    first = next(iter(failures.values()), None)
    return error if first is None else ImageError(f"{first}; {error}")
