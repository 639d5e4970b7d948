# SPDX-License-Identifier: Apache-2.0
"""Image pulls: from this node's store, else from other nodes, else from the registry.

A manager grants each pull and its sources, since it knows which nodes have the image and limits
concurrent pulls. While a node has to wait, the manager reports why. A node without a manager, or
without a response for too long, pulls from the nodes in its assignment, and then from the registry
with its own credentials.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from orchestrator.agent.images.image_errors import ImageError, NoSpace
from orchestrator.agent.images.image_spec import ImageConfig, LocalImage
from orchestrator.agent.images.staging import FetchBlob, IncomingBlob
from orchestrator.agent.images.store import ImageStore
from orchestrator.agent.images.transfer.image_peers import ChannelFactory, fetch_from
from orchestrator.agent.images.transfer.registry import LayerProgress, Registry
from orchestrator.daemon.background import background
from orchestrator.model.names import parse_image
from orchestrator.pb import images_pb2, images_pb2_grpc

log = logging.getLogger(__name__)

_LOCATE_WITHIN = 10.0
"""Timeout of a manager's resolution of a name, in seconds."""
SILENCE = 30.0
"""Seconds without a response of a manager after which a node pulls an image without a grant."""
_RETRY = 1.0
"""Seconds between attempts to reach a manager."""
_REPORT = 5.0
"""Seconds between reports of a pull's progress."""

OnWait = Callable[[str], None]
"""Called with why the node waits for an image; empty: it no longer waits."""


_RESTARTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""The status of a call whose manager has ended."""


def _unseen(digest: str, done: int, total: int) -> None:
    """Drop the progress."""


def _ignore_wait(reason: str) -> None:
    """Drop the reason for waiting."""


class Received:
    """The progress of one pull."""

    def __init__(self) -> None:
        self._ended = 0
        self._coming: list[IncomingBlob] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._ended + sum(blob.received for blob in self._coming)

    @property
    def coming(self) -> bool:
        """Whether a blob is being transferred; else, for example, one is unpacked."""
        return bool(self._coming)

    def counting(self, fetch: FetchBlob) -> FetchBlob:
        """The same fetcher, counted here."""

        async def counted(blob: IncomingBlob) -> None:
            self._coming.append(blob)
            try:
                await fetch(blob)
            finally:
                self._coming.remove(blob)
                self._ended += blob.received

        return counted


@dataclass(frozen=True, slots=True)
class _Granted:
    """A manager's grant."""

    stub: images_pb2_grpc.SourcesStub
    call: grpc.aio.UnaryStreamCall[images_pb2.AcquireRequest, images_pb2.Grant]
    """The grant lasts as long as this call."""
    grant: images_pb2.Grant


class ImagePuller:
    """Makes images ready to run, from the cluster or from registries."""

    def __init__(
        self,
        store: ImageStore,
        dial: ChannelFactory,
        own_address: str,
        rng: random.Random,
        registry: Registry | None = None,
        manager: Callable[[], grpc.aio.Channel | None] = lambda: None,
        *,
        silence: float = SILENCE,
        report: float = _REPORT,
    ) -> None:
        """`dial` opens a channel to another node's blob port; `own_address` is this node's
        HOST:PORT, which is not asked; `manager` is the channel of the session, if there is one.
        `silence` and `report` are in seconds."""
        self._store = store
        self._dial = dial
        self._own_address = own_address
        self._rng = rng
        self._registry = registry
        self._manager = manager
        self._silence = silence
        self._report_every = report

    async def prepare(
        self,
        name: str,
        digest: str,
        sources: Sequence[str],
        on_wait: OnWait = _ignore_wait,
    ) -> LocalImage:
        """See `tasks.backends.Images`."""
        local = self._store.resolve(digest or name)
        if local is not None:
            return await self._store.ensure(local, self._from_nodes(sources))
        failures: dict[str, ImageError] = {}
        """Errors of nodes, by their HOST:PORT."""
        while True:
            received = Received()
            waits = self._granted(name, digest, sources, list(failures), on_wait, received)
            async with waits as grant:
                try:
                    return await self.pull(name, digest, grant, received=received)
                except NoSpace:
                    raise
                except ImageError as error:
                    fresh = [node for node in grant.nodes if node not in failures]
                    if grant.registry or not fresh or self._manager() is None:
                        raise _with(error, failures) from error
                    failures.update(dict.fromkeys(fresh, error))
                    log.warning("asking another source: %s", error, extra={"image": name})

    async def config(self, digest: str) -> ImageConfig | None:
        """See `tasks.backends.Images`."""
        return await self._store.config(digest)

    async def pull(
        self,
        name: str,
        digest: str,
        grant: images_pb2.Grant,
        progress: LayerProgress = _unseen,
        rename: bool = False,
        received: Received | None = None,
    ) -> LocalImage:
        """Pull an image from the sources of `grant`: nodes, else the registry. An image from the
        registry gets its name; with `rename`, also one from a node. Raises ImageError."""
        received = received or Received()
        nodes = [source for source in grant.nodes if source != self._own_address]
        missing: ImageError | None = None
        if nodes and digest:
            try:
                fetch = received.counting(self._from_nodes(nodes))
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
                fetch = received.counting(fetch)
                return await self._store.ensure(digest, fetch, name.partition("@")[0])
        except ImageError as error:
            raise ImageError(f"no node that is up has the image {name}, and {error}") from error

    async def base(self, name: str, fresh: bool, progress: Callable[[str], None]) -> str:
        """Pull the base image `name` of a build; return its digest.

        The cluster's image is preferred over the registry's; with `fresh`, the registry is asked
        first. Raises ImageError.
        """

        def on_wait(reason: str) -> None:
            if reason:
                progress(f"{name}: {reason}")

        known = await self._located(name)
        digest = name.partition("@")[2] or known.digest
        if digest and not fresh:
            if self._store.resolve(digest) is None:
                progress(f"{name}: pulling from another node")
            return (await self.prepare(name, digest, (), on_wait)).digest
        if self._registry is None:
            raise ImageError(f"no node that is up has the image {name}")
        progress(f"{name}: resolving at its registry")
        try:
            newest = await self._registry.resolve(name, known.auth)
            return (await self.prepare(name, newest, (), on_wait)).digest
        except ImageError as error:
            if not digest:
                raise ImageError(f"no node has the image {name}, and {error}") from error
            progress(f"{error}: using {name} from the cluster")
            return (await self.prepare(name, digest, (), on_wait)).digest

    async def _located(self, name: str) -> images_pb2.LocateReply:
        """A manager's record of an image name; without a manager, this node's."""
        here = images_pb2.LocateReply(digest=self._store.resolve(name) or "")
        if (channel := self._manager()) is None:
            return here
        try:
            stub = images_pb2_grpc.SourcesStub(channel)
            request = images_pb2.LocateRequest(name=str(parse_image(name)))
            known = await stub.Locate(request, timeout=_LOCATE_WITHIN)
        except grpc.aio.AioRpcError as error:
            log.info("no manager resolves %s: %s", name, error.details())
            return here
        found: images_pb2.LocateReply = known
        if not found.digest:
            found.digest = here.digest
        return found

    def _from_nodes(self, sources: Sequence[str]) -> FetchBlob:
        others = [source for source in sources if source != self._own_address]
        return fetch_from(others, self._dial, self._rng)

    @asynccontextmanager
    async def _granted(
        self,
        name: str,
        digest: str,
        sources: Sequence[str],
        failed: Sequence[str],
        on_wait: OnWait,
        received: Received,
    ) -> AsyncIterator[images_pb2.Grant]:
        """The sources of an image, for the duration of the block: granted by a manager, else those
        known without one, without nodes that have failed. Progress (`received`) is reported to the
        manager."""
        request = images_pb2.AcquireRequest(name=name, digest=digest, failed=failed, reports=True)
        granted = await self._asked(request, on_wait)
        if granted is None:
            yield images_pb2.Grant(nodes=sources, registry=self._registry is not None)
            return
        try:
            async with background(self._hold(granted, request, received)):
                yield granted.grant
        finally:
            granted.call.cancel()

    async def _asked(self, request: images_pb2.AcquireRequest, on_wait: OnWait) -> _Granted | None:
        """A manager's grant, which lasts as long as its call; None without a manager, or without an
        answer for too long."""
        now = asyncio.get_running_loop().time
        channel = self._manager() if self._registry is not None else None
        deadline, reported = now() + self._silence, False
        granted: _Granted | None = None
        while channel is not None and granted is None:
            stub = images_pb2_grpc.SourcesStub(channel)
            call = stub.Acquire(request)
            try:
                while granted is None:
                    async with asyncio.timeout_at(deadline):
                        answer = await call.read()
                    if not isinstance(answer, images_pb2.Grant):
                        break
                    deadline = now() + self._silence
                    if answer.waiting:
                        on_wait(answer.waiting)
                        reported = True
                    else:
                        granted = _Granted(stub, call, answer)
            except TimeoutError:
                log.warning("no manager grants the pull of an image", extra={"image": request.name})
            except grpc.aio.AioRpcError as error:
                log.info("no manager locates %s: %s", request.name, error.details())
                if error.code() not in _RESTARTED:
                    break
            finally:
                if granted is None:
                    call.cancel()
            # A restarted manager, or another one, is reachable soon.
            channel = None
            while granted is None and channel is None and now() + _RETRY < deadline:
                await asyncio.sleep(_RETRY)
                channel = self._manager()
        if reported:
            on_wait("")
        return granted

    async def _hold(
        self, granted: _Granted, request: images_pb2.AcquireRequest, received: Received
    ) -> None:
        """Report the progress of a pull. If the manager ends, register the pull with another one,
        so that meanwhile no other node pulls the image from the registry."""
        stub, call, grant = granted.stub, granted.call, granted.grant
        again = images_pb2.AcquireRequest()
        again.CopyFrom(request)
        again.pulling, again.source = True, next(iter(grant.nodes), "")
        while True:
            try:
                async with background(self._report(stub, request, received)):
                    while isinstance(await call.read(), images_pb2.Grant):
                        pass
            except grpc.aio.AioRpcError as error:
                log.debug("a manager has dropped a pull: %s", error.details())
            finally:
                call.cancel()
            # The session with another manager begins soon.
            channel = None
            while channel is None:
                await asyncio.sleep(_RETRY)
                channel = self._manager()
            stub = images_pb2_grpc.SourcesStub(channel)
            call = stub.Acquire(again)

    async def _report(
        self,
        stub: images_pb2_grpc.SourcesStub,
        request: images_pb2.AcquireRequest,
        received: Received,
    ) -> None:
        """Report the progress of a pull to the manager. A stalled pull loses its grant."""
        before = 0
        while True:
            await asyncio.sleep(self._report_every)
            if received.coming and received.size == before:
                continue
            before = received.size
            progress = images_pb2.PullProgress(
                name=request.name, digest=request.digest, received=before
            )
            try:
                await stub.Progress(progress, timeout=self._report_every)
            except grpc.aio.AioRpcError as error:
                log.debug("progress of a pull cannot be reported: %s", error.details())


def _with(error: ImageError, failures: Mapping[str, ImageError]) -> ImageError:
    """The last error, preceded by that of the first node with the image."""
    first = next(iter(failures.values()), None)
    return error if first is None else ImageError(f"{first}; {error}")
