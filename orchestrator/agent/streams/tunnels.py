# SPDX-License-Identifier: Apache-2.0
"""Streams that a manager requests beside the session: opens them and dispatches to handlers.

For each `OpenTunnel` the agent opens a separate stream to the requesting manager, on the same
connection. A tunnel waits only for its own slow reader. Its errors go into its last frame, one
line, and do not affect others.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.tasks.runner import TaskRunner
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.objects import Image
from orchestrator.pb import dispatch_pb2, dispatch_pb2_grpc


async def _control_container(
    runners: Mapping[str, TaskRunner], order: dispatch_pb2.ContainerOrder
) -> None:
    """Signal, pause, resume or resize a container. Raises RuntimeFailure."""
    runner = runners.get(order.task_id)
    if runner is None:
        raise RuntimeFailure("the container is no longer on its node")
    match order.action:
        case dispatch_pb2.ContainerOrder.SIGNAL:
            await runner.send_signal(order.signal)
        case dispatch_pb2.ContainerOrder.PAUSE:
            await runner.freeze(True)
        case dispatch_pb2.ContainerOrder.UNPAUSE:
            await runner.freeze(False)
        case dispatch_pb2.ContainerOrder.RESIZE:
            await runner.resize(from_proto(order.spec))
        case _:
            raise RuntimeFailure("the node's version of Orc does not support this request")


log = logging.getLogger(__name__)


class Loader(Protocol):
    """The methods of `images.store.ImageStore` that are used here."""

    async def load_all(self, archive: Path, name: str = "") -> tuple[Image, ...]: ...


Handler = Callable[
    [Any, dispatch_pb2.OpenTunnel, asyncio.TaskGroup], Awaitable[dispatch_pb2.TunnelResult]
]
"""Serves one kind of request: given the call, the request, and a group for tasks that still read
from the call when the result is written. May raise RuntimeFailure."""


class TunnelFailure(Exception):
    """A request failed; one line for the user."""


class Tunnels:
    """Serves the tunnels of one node."""

    def __init__(
        self,
        *,
        runners: Mapping[str, TaskRunner],
        images: Loader,
        scratch: Path,
        handlers: Mapping[str, Handler] | None = None,
    ) -> None:
        """`scratch` is an exclusive folder for uploads. `handlers` are for the other kinds of
        requests."""
        self._handlers = dict(handlers or {})
        self._runners = runners
        self._images = images
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in scratch.iterdir():
            left.unlink()

    async def open(self, channel: grpc.aio.Channel, order: dispatch_pb2.OpenTunnel) -> None:
        """Serve a request over a separate stream. Never raises."""
        call = dispatch_pb2_grpc.DispatchStub(channel).Tunnel(metadata=(("orc-tunnel", order.id),))
        async with asyncio.TaskGroup() as readers:
            try:
                async with _while_open(call):
                    result = await self._served(call, order, readers)
                    await call.write(dispatch_pb2.Frame(result=result))
                await call.done_writing()
                # The manager ends the stream when it has read everything.
                await call.code()
            except (grpc.RpcError, asyncio.InvalidStateError, _StreamClosed) as error:
                log.info("tunnel closed early: %s", _reason(error), extra={"tunnel": order.id})
            finally:
                call.cancel()

    async def _served(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        kind = order.WhichOneof("order")
        try:
            match kind:
                case "container":
                    await _control_container(self._runners, order.container)
                    return dispatch_pb2.TunnelResult()
                case "load":
                    async with self._upload(call) as archive:
                        images = await self._images.load_all(archive, order.load.name)
                case str() if (handler := self._handlers.get(kind)) is not None:
                    return await handler(call, order, readers)
                case _:
                    raise TunnelFailure("this node's version of Orc does not support this request")
        except (TunnelFailure, ImageError, RuntimeFailure) as error:
            return dispatch_pb2.TunnelResult(error=str(error))
        except OSError as error:
            return dispatch_pb2.TunnelResult(error=_reason(error))
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise
        except Exception as error:
            log.exception("tunnel failed", extra={"tunnel": order.id, "order": kind})
            return dispatch_pb2.TunnelResult(error=f"internal error of the agent: {error}")
        first, *more = (to_proto(image) for image in images)
        return dispatch_pb2.TunnelResult(image=first, more_images=more)

    @asynccontextmanager
    async def _upload(self, call: Any) -> AsyncIterator[Path]:
        """A file with an upload, for the duration of the block."""
        with tempfile.NamedTemporaryFile(dir=self._scratch) as file:
            while True:
                frame = await call.read()
                if not isinstance(frame, dispatch_pb2.Frame):  # grpc.aio.EOF
                    raise TunnelFailure("the upload was interrupted; try again")
                if frame.data:
                    await asyncio.to_thread(file.write, frame.data)
                if frame.eof:
                    break
            await asyncio.to_thread(file.flush)
            yield Path(file.name)


class _StreamClosed(Exception):
    """The other end has closed the stream."""


@asynccontextmanager
async def _while_open(call: Any) -> AsyncIterator[None]:
    """End the block with `_StreamClosed` when the other end closes the stream."""
    inside = True
    try:
        async with asyncio.timeout(None) as scope:

            def closed(_: object) -> None:
                if inside:
                    scope.reschedule(asyncio.get_running_loop().time())

            call.add_done_callback(closed)
            try:
                yield
            finally:
                inside = False
    except TimeoutError:
        if not scope.expired():
            raise
        raise _StreamClosed("the other end has closed it") from None


def _reason(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return str(error.details())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror.lower()} on this node"
    return str(error) or type(error).__name__
