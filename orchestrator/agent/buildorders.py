"""What a manager orders of this node's builds: to build a context, and to see to the cache."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any, Protocol

from orchestrator.agent.builds.build_cgroup import BuildLimits
from orchestrator.agent.builds.buildah import Progress
from orchestrator.agent.builds.builder import BuildSpec, CacheUsage
from orchestrator.agent.tunnelframes import Frames, receive
from orchestrator.model.convert import to_proto
from orchestrator.model.objects import Image
from orchestrator.pb import control_pb2, dispatch_pb2, images_pb2

ORDERS = ("build", "build_cache")
"""The kinds of orders that are served here."""


class ImageBuilder(Protocol):
    """What is needed of `images.build.Builder`."""

    async def build(self, context: Path, spec: BuildSpec, progress: Progress) -> Image: ...

    async def cache(self) -> CacheUsage: ...

    async def prune(self, everything: bool) -> int: ...


class BuildOrders:
    """Serves the orders about builds."""

    def __init__(self, builder: ImageBuilder, scratch: Path) -> None:
        """`scratch`: an existing folder for the contexts that are uploaded."""
        self._builder = builder
        self._scratch = scratch

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Do what one of `ORDERS` says. Raises ImageError."""
        if order.WhichOneof("order") == "build_cache":
            return await self._cache(order.build_cache)
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            await receive(call, file)
            async with Frames.sending(call) as frames:
                image = await self._builder.build(
                    Path(file.name),
                    _spec(order.build),
                    lambda line: frames.put(dispatch_pb2.Frame(line=line)),
                )
        return dispatch_pb2.TunnelResult(image=to_proto(image))

    async def _cache(self, order: images_pb2.BuildCacheOrder) -> dispatch_pb2.TunnelResult:
        freed = await self._builder.prune(order.all) if order.prune else 0
        usage = await self._builder.cache()
        cache = images_pb2.BuildCache(entries=usage.entries, size=usage.size, freed=freed)
        return dispatch_pb2.TunnelResult(build_cache=cache)


def _spec(order: control_pb2.ImageHeader) -> BuildSpec:
    return BuildSpec(
        names=tuple(name for name in (order.name, *order.more_names) if name),
        dockerfile=order.dockerfile,
        content=order.dockerfile_content,
        build_args=dict(order.build_args),
        labels=dict(order.labels),
        target=order.target,
        no_cache=order.no_cache,
        pull=order.pull,
        oci=order.format == "oci",
        network=order.network,
        add_hosts=tuple(order.add_hosts),
        secrets=dict(order.secrets),
        limits=BuildLimits(
            memory=order.limits.memory,
            memory_swap=order.limits.memory_swap,
            cpu_shares=order.limits.cpu_shares,
            cpu_quota=order.limits.cpu_quota,
            cpu_period=order.limits.cpu_period,
            cpuset_cpus=order.limits.cpuset_cpus,
            pids=order.limits.pids,
            shm_size=order.limits.shm_size,
            ulimits=tuple(order.limits.ulimits),
        ),
    )
