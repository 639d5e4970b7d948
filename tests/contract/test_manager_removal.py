# SPDX-License-Identifier: Apache-2.0
"""A service is removed whatever the leader writes of it at the same moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from managerhost import manager_in

from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import name_key
from orchestrator.manager.store.kv import Delete, Guard, Op
from orchestrator.manager.store.memory import MemoryKv
from orchestrator.model.convert import from_proto, to_proto
from orchestrator.model.services import Service, UpdateState, UpdateStatus
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.pb import control_pb2, control_pb2_grpc


class _Overtaken(MemoryKv):
    """A store in which another write of an object comes first when its name is given back."""

    change: Change | None = None

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        change = self.change
        if change is not None and Delete(name_key(Service, "web")) in ops:
            self.change = None
            await commit(self, [change])
        return await super().txn(guards, ops)


async def test_a_service_is_removed_while_its_update_ends(tmp_path: Path) -> None:
    kv = _Overtaken(asyncio.get_running_loop().time)
    async with (
        manager_in(tmp_path / "manager", kv=kv) as running,
        running.channel(running.admin) as channel,
    ):
        control = control_pb2_grpc.ControlStub(channel)
        task = TaskSpec(container=ContainerSpec(rootfs="host", command=("true",)))
        spec = ServiceSpec(name="web", task=task, replicas=0)
        request = control_pb2.CreateServiceRequest(spec=to_proto(spec), no_resolve_image=True)
        made = from_proto(await control.CreateService(request))
        cache = running.manager.cache
        async with cache.subscribe() as feed:
            while not (service := cache.view.services[made.id]).vips:
                await feed.next()  # the leader has done what it has to do with it
        ended = replace(service, update=UpdateStatus(UpdateState.COMPLETED))
        kv.change = Change(service, ended)
        await control.RemoveService(control_pb2.RemoveServiceRequest(service="web"))
        assert kv.change is None
        async with cache.subscribe() as feed:
            while made.id in cache.view.services:
                await feed.next()
