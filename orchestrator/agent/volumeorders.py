"""What managers ask about volumes beside the session (`OpenTunnel`)."""

from __future__ import annotations

from orchestrator.agent.volumes.listing import VolumeListing
from orchestrator.agent.volumes.store import VolumeStore
from orchestrator.model.convert import from_proto
from orchestrator.pb import dispatch_pb2


class VolumeOrders:
    """Serves `list_volumes`, `create_volume` and `remove_volume`."""

    def __init__(self, store: VolumeStore, listing: VolumeListing) -> None:
        self._store = store
        self._listing = listing

    async def serve(self, order: dispatch_pb2.OpenTunnel) -> dispatch_pb2.TunnelResult:
        """Do what is asked. Raises VolumeError."""
        match order.WhichOneof("order"):
            case "list_volumes":
                return dispatch_pb2.TunnelResult(volumes=await self._listing.list())
            case "create_volume":
                await self._store.create(from_proto(order.create_volume))
            case "remove_volume":
                asked = order.remove_volume
                await self._store.remove(from_proto(asked.volume), force=asked.force)
        return dispatch_pb2.TunnelResult()
