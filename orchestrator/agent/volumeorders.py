"""What managers ask about volumes beside the session (`OpenTunnel`)."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.agent.volumes.errors import VolumeError
from orchestrator.agent.volumes.listing import VolumeListing
from orchestrator.agent.volumes.store import VolumeStore
from orchestrator.model.convert import from_proto
from orchestrator.pb import dispatch_pb2

ORDERS = ("list_volumes", "create_volume", "remove_volume")
"""The orders that `VolumeOrders.serve` takes."""


class VolumeOrders:
    """Serves a manager's orders about volumes."""

    def __init__(self, store: VolumeStore, listing: VolumeListing) -> None:
        self._store = store
        self._listing = listing

    async def serve(
        self, call: Any, order: dispatch_pb2.OpenTunnel, readers: asyncio.TaskGroup
    ) -> dispatch_pb2.TunnelResult:
        """Do what is asked (a handler of `tunnels.Tunnels`)."""
        try:
            match order.WhichOneof("order"):
                case "list_volumes":
                    return dispatch_pb2.TunnelResult(volumes=await self._listing.look())
                case "create_volume":
                    await self._store.create(from_proto(order.create_volume))
                case "remove_volume":
                    asked = order.remove_volume
                    await self._store.remove(from_proto(asked.volume), force=asked.force)
        except VolumeError as error:
            return dispatch_pb2.TunnelResult(error=str(error))
        return dispatch_pb2.TunnelResult()
