# SPDX-License-Identifier: Apache-2.0
"""Namespaces of builds: a user namespace, and the network namespace that it owns.

buildah itself runs in them, so neither a RUN nor a vulnerability of buildah has the privileges of
the host's root: its root is an unprivileged user of the host without files. Its storage and context
are idmapped mounts (mount_setattr(2)), so files on disk have the owners that the image records,
independent of the build's id range.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from orchestrator.agent.builds.build_cgroup import BuildGroup
from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.isolation.idranges import BUILD_IDS, SIZE, IdRange
from orchestrator.agent.runtime.isolation.userns import NamespaceMaker
from orchestrator.agent.runtime.spec.node_facts import RESOLVER, read_resolver

HOST, NONE = "host", "none"
"""Networks of a RUN other than the default, the builds' network."""


class ExternalNetwork(Protocol):
    """Connects a network namespace with networks outside the node; see
    `agent.network.build_network.BuildNetwork`."""

    async def attach(self, name: str, netns: int) -> None: ...

    async def detach(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The namespaces of one build, as descriptors."""

    userns: int
    netns: int | None
    """None: the host's."""
    resolver: str
    """The text of its resolv.conf(5)."""
    group: BuildGroup = field(default_factory=BuildGroup)
    """Its cgroup."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Descriptors that a process needs to enter the namespaces."""
        return (self.userns,) if self.netns is None else (self.userns, self.netns)


class Sandboxes:
    """Makes sandboxes; an async context manager, which ends the helper for namespaces."""

    def __init__(self, external: ExternalNetwork | None = None) -> None:
        """Without `external`, the default network has a loopback interface only."""
        self._external = external
        self._maker = NamespaceMaker()
        self._free = list(range(BUILD_IDS.start, BUILD_IDS.stop, SIZE))
        self._returned = asyncio.Condition()

    async def __aenter__(self) -> Self:
        await self._maker.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._maker.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def sandbox(self, network: str = NONE) -> AsyncIterator[Sandbox]:
        """A sandbox with a range of ids of its own, on the network `HOST` or `NONE`, else on the
        builds' network. Raises ImageError."""
        async with AsyncExitStack() as stack:
            ids = await self._allocate_ids()
            stack.callback(self._free.append, ids)
            stack.push_async_callback(self._notify_free)
            try:
                userns, netns = await self._maker.make(IdRange(ids))
            except RuntimeFailure as error:
                raise ImageError(f"images cannot be built on this node: {error}") from error
            stack.callback(os.close, userns)
            stack.callback(os.close, netns)
            if network == HOST:
                yield Sandbox(userns, None, _host_resolver())
                return
            if network != NONE and self._external is not None:
                name = f"build-{uuid.uuid4().hex[:12]}"
                stack.push_async_callback(self._external.detach, name)
                await self._external.attach(name, netns)
            yield Sandbox(userns, netns, _resolver())

    async def _allocate_ids(self) -> int:
        async with self._returned:
            await self._returned.wait_for(lambda: bool(self._free))
            return self._free.pop(0)

    async def _notify_free(self) -> None:
        async with self._returned:
            self._returned.notify()


def _resolver() -> str:
    nameservers, search = read_resolver()
    lines = [f"nameserver {server}" for server in nameservers]
    if search:
        lines.append(f"search {' '.join(search)}")
    return "".join(f"{line}\n" for line in lines)


def _host_resolver() -> str:
    try:
        return RESOLVER.read_text()
    except OSError:
        return ""
