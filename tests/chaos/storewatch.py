# SPDX-License-Identifier: Apache-2.0
"""Watch one etcd member and print each commit, as a line of JSON: what the store really had.

Run in the network namespace of a manager's host, with the folder of its member and the first
revision to print: etcd listens on loopback only. It ends when the member is reached in another
way, and the harness starts it again.

    python -m tests.chaos.storewatch /var/lib/orc-dev/NAME/manager1/data/etcd 1
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import orchestrator  # noqa: F401
from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcd_tls import EtcdTls
from orchestrator.manager.store.keys import LEADER, PREFIX, SEQUENCE
from orchestrator.manager.store.kv import Batch, Compacted, Entry, Event
from orchestrator.pb import types_pb2

TAG = "chaos.tag"
"""Label in which users store the tag of a write."""


def change(event: Event) -> dict[str, Any]:
    """A change as `history.Change` has it."""
    kind, _, identity = event.key.removeprefix(PREFIX).partition("/")
    if event.entry is None:
        return {"kind": kind, "id": identity, "deleted": True}
    return {"kind": kind, "id": identity, "fields": _fields(event.key, kind, event.entry)}


def _fields(key: str, kind: str, entry: Entry) -> dict[str, Any]:
    if key == LEADER:
        return {"term": entry.create_revision, "holder": entry.value.decode(errors="replace")}
    if key == SEQUENCE:
        term, _, count = entry.value.decode().partition("/")
        return {"term": int(term), "count": int(count)}
    if kind == "tasks":
        return _task(types_pb2.Task.FromString(entry.value))
    if kind == "services":
        return _service(types_pb2.Service.FromString(entry.value))
    if kind == "nodes":
        node = types_pb2.Node.FromString(entry.value)
        return {
            "hostname": node.description.hostname,
            "state": node.state,
            "availability": node.availability,
            "message": node.message,
        }
    if kind == "networks":
        return {"name": types_pb2.Network.FromString(entry.value).name}
    if kind == "documents":
        return {"name": types_pb2.Document.FromString(entry.value).name}
    return {}


def _ports(spec: types_pb2.TaskSpec) -> list[list[int]]:
    return [[port.published, port.protocol, port.mode] for port in spec.ports if port.published]


def _task(task: types_pb2.Task) -> dict[str, Any]:
    return {
        "service_id": task.service_id,
        "service": task.service_name,
        "slot": task.slot,
        "node": task.node_id,
        "desired": task.desired_state,
        "state": task.status.state,
        "message": task.status.message,
        "exit_code": task.status.exit_code,
        "version": task.spec_version,
        "documents": dict(task.documents),
        "job_run": task.job_run,
        "addresses": dict(task.status.addresses),
        "ports": _ports(task.spec),
    }


def _service(service: types_pb2.Service) -> dict[str, Any]:
    spec = service.spec
    orders = (spec.update.order, spec.rollback.order)
    return {
        "name": spec.name,
        "tag": spec.labels.get(TAG, ""),
        "version": service.spec_version,
        "documents": dict(service.documents),
        "mode": spec.mode,
        "replicas": spec.replicas,
        "removed": service.removed,
        "vips": dict(service.vips),
        "ports": _ports(spec.task),
        "starts_first": types_pb2.UPDATE_START_FIRST in orders,
        "runs": [
            {"number": run.number, "state": run.state, "completed": run.completed}
            for run in service.job.runs
        ],
    }


def line(batch: Batch) -> str:
    """One commit as a line."""
    changes = [change(event) for event in batch.events]
    document = {"revision": batch.revision, "changes": changes}
    return json.dumps(document, separators=(",", ":"))


async def _watch(folder: Path, first: int) -> None:
    """Print until the member gets another port or other certificates, as one does that is repaired
    or joins again."""
    access = _access(folder)
    tls = folder / "tls"
    client = EtcdTls(tls / "ca.pem", tls / "client.pem", tls / "client-key.pem")
    async with EtcdKv([f"https://127.0.0.1:{json.loads(access[0])['client']}"], client) as kv:
        printing = asyncio.create_task(_print(kv, first))
        try:
            while not printing.done() and _access(folder) == access:
                await asyncio.wait((printing,), timeout=0.5)
        finally:
            printing.cancel()
            await asyncio.gather(printing, return_exceptions=True)


def _access(folder: Path) -> tuple[str, str, str]:
    """How the member is reached. Raises OSError while it is not known."""
    tls = folder / "tls"
    files = (folder / "ports.json", tls / "ca.pem", tls / "client.pem")
    return tuple(path.read_text() for path in files)  # type: ignore[return-value]


async def _print(kv: EtcdKv, first: int) -> None:
    while True:
        try:
            async with kv.watch(PREFIX, first) as batches:
                async for batch in batches:
                    if batch.events:
                        print(line(batch), flush=True)
        except Compacted:
            # The other members had what this one missed while it was gone.
            first = (await kv.list(PREFIX)).revision + 1


if __name__ == "__main__":
    asyncio.run(_watch(Path(sys.argv[1]), int(sys.argv[2])))
