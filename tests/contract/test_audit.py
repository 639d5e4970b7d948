# SPDX-License-Identifier: Apache-2.0
"""The audit trail of a real manager, compared with the history of its store."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from managerhost import Running, manager_in

from orchestrator.cli.app.contexts import Context, dump_context
from orchestrator.identity import ca
from orchestrator.identity.authority import Authority
from orchestrator.identity.bootstrap import new_admin
from orchestrator.identity.certificates import Issued, KeyPair
from orchestrator.identity.join import JoinRefused
from orchestrator.identity.join_tokens import JoinToken, new_secret
from orchestrator.manager.audit.trail import EntryFilter
from orchestrator.manager.planning.plan import Change
from orchestrator.manager.store.commit import commit
from orchestrator.manager.store.keys import PREFIX, object_key, object_type
from orchestrator.model.administration.access import Certificate, Revocation
from orchestrator.model.administration.managers import Manager, ManagerPresence
from orchestrator.model.convert import decode, to_proto
from orchestrator.model.documents import Document
from orchestrator.model.nodes import Availability, Node
from orchestrator.model.objects import Cluster, Image, Network, Object, Volume
from orchestrator.model.services import Service
from orchestrator.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from orchestrator.model.tasks import Task
from orchestrator.pb import (
    access_pb2,
    access_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    certificates_pb2,
    certificates_pb2_grpc,
    containers_pb2,
    containers_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dashboard_pb2,
    dashboard_pb2_grpc,
    documents_pb2,
    documents_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    interact_pb2,
    interact_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    networks_pb2,
    networks_pb2_grpc,
    policies_pb2,
    policies_pb2_grpc,
    types_pb2,
    volumes_pb2,
    volumes_pb2_grpc,
)

SECRETS = [f"hunter2-{number}" for number in range(8)]
"""Values that are in requests, and may not be in the trail."""


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with manager_in(tmp_path / "manager", node_timeout=30.0) as running:
        yield running


def admin(running: Running, name: str) -> KeyPair:
    now = dt.datetime.now(dt.UTC)
    return new_admin(
        Authority.local(running.authority), running.identity.cluster_id, now, name=name
    )


async def entries(running: Running, number: int = 0) -> list[dict[str, Any]]:
    """All of them, once there are so many: a caller may learn that it is refused before that is
    recorded."""
    trail = running.manager._audit
    async with asyncio.timeout(60):
        while True:
            await trail.written()
            found = [each async for chunk in trail.entries(EntryFilter()) for each in chunk]
            if len(found) >= number:
                return found


class History:
    """What users changed of the store's objects, one after another, as (kind, id)."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []
        self.revision = 0
        self._objects: dict[str, Object] = {}

    async def follow(self, running: Running) -> None:
        async with running.kv.watch(PREFIX, 1) as batches:
            async for batch in batches:
                found = []
                for event in batch.events:
                    kind = object_type(event.key)
                    if kind is None:
                        continue
                    before = self._objects.pop(event.key, None)
                    after: Object | None = None
                    if event.entry is not None:
                        after = decode(kind[0], event.entry.value, event.mod_revision)
                        self._objects[object_key(after)] = after
                    if made := made_by_user(before, after):
                        found.append(made)
                if any(kind == "node" for kind, _ in found):
                    # The revocation of a removed node's certificates comes of the same call.
                    found = [each for each in found if not each[0].endswith("certificates")]
                self.changes += found
                self.revision = batch.revision

    async def until(self, revision: int) -> None:
        async with asyncio.timeout(60):
            while self.revision < revision:  # noqa: ASYNC110 - nobody else waits for it
                await asyncio.sleep(0.01)


def made_by_user(before: Object | None, after: Object | None) -> tuple[str, str] | None:
    """The object that a user changed; None for what the cluster does by itself."""
    match before, after:
        case None, Certificate() | Cluster() | Image():
            return None
        case (_, Manager() | ManagerPresence()) | (ManagerPresence(), None):
            return None
        case None, Network(name=name) if name in ("default", "bridge"):
            return None
        case _, Revocation(role=role):
            return f"{role} certificates", after.id
        case Cluster(), Cluster():
            return "cluster", after.id
        case Node(), Node():
            changed = (before.availability, before.labels) != (after.availability, after.labels)
            return ("node", after.id) if changed else None
        case Service(), Service():
            changed = (before.spec, before.removed) != (after.spec, after.removed)
            return (_word(after), after.id) if changed else None
        case Service(), None:
            return None  # a leader does so when its tasks are gone
        case Network(), Network():
            return ("network", after.id) if before.policies != after.policies else None
        case Document(), Document():
            changed = (before.version, before.labels) != (after.version, after.labels)
            return (after.kind.word, after.id) if changed else None
        case Task() as old, Task() as new:
            changed = old.standalone and old.container_name != new.container_name
            return ("container", new.id) if changed else None
        case Task() as old, None:
            return None
        case None, Task() as new:
            return ("container", new.id) if new.standalone else None
        case Volume(), Volume():
            return None
        case _:
            subject = after or before
            assert subject is not None
            return _word(subject), subject.id


def _word(item: Object) -> str:
    match item:
        case Document():
            return item.kind.word
        case Service():
            return "job" if item.spec.mode.is_job else "service"
        case _:
            return type(item).__name__.lower()


async def calls_of_every_kind(running: Running, channel: grpc.aio.Channel) -> None:
    """What an admin does, with secrets wherever a request may have one."""
    control = control_pb2_grpc.ControlStub(channel)
    task = TaskSpec(
        container=ContainerSpec(
            image="hello:1",
            env=(f"PASSWORD={SECRETS[0]}",),
            command=("login", f"--password={SECRETS[1]}"),
        )
    )
    spec = ServiceSpec(name="web", task=task, labels={"note": SECRETS[2]})
    service = await control.CreateService(
        control_pb2.CreateServiceRequest(spec=to_proto(spec), no_resolve_image=True)
    )
    updated = replace(spec, task=replace(task, container=replace(task.container, image="hello:2")))
    await control.UpdateService(
        control_pb2.UpdateServiceRequest(
            service="web",
            spec=to_proto(updated),
            base=service.spec,
            revision=service.revision,
            no_resolve_image=True,
        )
    )
    await control.RollbackService(control_pb2.RollbackServiceRequest(service="web"))

    joined = await running.join(running.token)
    await control.UpdateNode(
        control_pb2.UpdateNodeRequest(
            node=joined.node_id, availability=Availability.PAUSE, label_add={"zone": SECRETS[3]}
        )
    )
    await control.UpdateCluster(control_pb2.UpdateClusterRequest(certificate_lifetime=86400.0))
    await control.RotateToken(control_pb2.RotateTokenRequest(role="scrape"))

    networks = networks_pb2_grpc.NetworksStub(channel)
    await networks.CreateNetwork(networks_pb2.CreateNetworkRequest(name="blue"))
    policies = policies_pb2_grpc.PoliciesStub(channel)
    policy = await policies.AddPolicy(
        policies_pb2.AddPolicyRequest(
            network="blue", policy=types_pb2.NetworkPolicy(destination="web")
        )
    )
    await policies.RemovePolicy(policies_pb2.RemovePolicyRequest(network="blue", policy=policy.id))
    await networks.RemoveNetwork(networks_pb2.RemoveNetworkRequest(network="blue"))
    await control.RemoveService(control_pb2.RemoveServiceRequest(service="web"))

    documents = documents_pb2_grpc.DocumentsStub(channel)
    for kind in (0, 1):
        secret = documents_pb2.CreateDocumentRequest(
            kind=kind,
            name="db",
            data=SECRETS[4].encode(),  # type: ignore[arg-type]
        )
        await documents.CreateDocument(secret)
        await documents.UpdateDocument(
            documents_pb2.UpdateDocumentRequest(
                kind=kind,
                document="db",
                data=SECRETS[5].encode(),  # type: ignore[arg-type]
            )
        )
        await documents.RemoveDocument(
            documents_pb2.RemoveDocumentRequest(kind=kind, document="db")  # type: ignore[arg-type]
        )

    digest = f"sha256:{'0' * 64}"
    image = Image(id=digest, names=("hello:1",))
    await running.manager.cache.wait_for(await commit(running.kv, [Change(None, image)]))
    task = replace(task, container=replace(task.container, image=f"hello:1@{digest}"))
    containers = containers_pb2_grpc.ContainersStub(channel)
    await containers.CreateContainer(
        containers_pb2.CreateContainerRequest(name="box", spec=to_proto(task))
    )
    await containers.RenameContainer(
        containers_pb2.RenameContainerRequest(container="box", name="crate")
    )
    await control.RemoveNode(control_pb2.RemoveNodeRequest(node=joined.node_id, force=True))


async def refused(call: Awaitable[Any]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name


async def test_each_change_of_the_store_has_its_entry_and_no_secret_is_in_any(
    running: Running,
) -> None:
    history = History()
    following = asyncio.create_task(history.follow(running))
    anna, bob = admin(running, "anna"), admin(running, "bob")
    async with running.channel(anna) as channel:
        await calls_of_every_kind(running, channel)
        # What fails is recorded, too, and keeps its secrets to itself.
        images = images_pb2_grpc.ImagesStub(channel)
        login = images_pb2.LoginRequest(
            registry="reg.example", username="anna", password=SECRETS[6]
        )
        assert await refused(images.Login(login)) != "OK"
        execs = interact_pb2_grpc.InteractStub(channel).Session()
        await execs.write(
            interact_pb2.SessionInput(
                exec=interact_pb2.ExecRequest(
                    container="nowhere", command=["echo", SECRETS[7]], env=[f"A={SECRETS[7]}"]
                )
            )
        )
        with suppress(grpc.aio.AioRpcError):
            await execs.read()
        assert await execs.code() is grpc.StatusCode.NOT_FOUND
    async with running.channel(bob) as channel:
        await certificates_pb2_grpc.CertificatesStub(channel).Renew(
            certificates_pb2.RenewRequest(csr=ca.new_request()[1])
        )
        await access_pb2_grpc.AccessStub(channel).Revoke(
            access_pb2.RevokeRequest(kind="admin", name="anna", reason="left")
        )
        await dashboard_pb2_grpc.DashboardStub(channel).OpenDashboard(
            dashboard_pb2.OpenDashboardRequest()
        )
        jobs = jobs_pb2_grpc.JobsStub(channel)
        assert await refused(jobs.StartJob(jobs_pb2.StartJobRequest(job="none"))) == "NOT_FOUND"
        volumes = volumes_pb2_grpc.VolumesStub(channel)
        await refused(volumes.RemoveVolume(volumes_pb2.RemoveVolumeRequest(name="none")))
    found = await entries(running)
    await history.until(running.manager.cache.revision)
    following.cancel()
    assert history.changes
    about = {kind for kind, _ in history.changes}
    done = Counter(
        ("cluster" if each["kind"] == "token" else each["kind"], each["id"] or "any")
        for each in found
        if each["result"] == "OK"
    )
    changes = Counter(history.changes)
    # A token's entry names no object: it is the cluster that has it.
    cluster = running.identity.cluster_id
    done[("cluster", cluster)] += done.pop(("cluster", "any"), 0)
    assert {key: done[key] for key in changes} == changes
    assert {key for key in done if key[0] in about} == changes.keys()
    assert [each["seq"] for each in found] == list(range(1, len(found) + 1))
    who = {each["method"]: (each["user"], each["role"]) for each in found}
    assert who["Control.CreateService"] == ("anna", "admin")
    assert who["Access.Revoke"] == ("bob", "admin")
    assert who["Join.Sign"] == ("", "")
    issued = Issued.of(anna.certificate)
    assert issued is not None
    [created] = [each for each in found if each["method"] == "Control.CreateService"]
    assert created["certificate"] == issued.serial
    assert created["name"] == "web"
    assert created["address"].startswith("127.0.0.1:")
    assert created["manager"] == running.identity.manager_id
    login = next(each for each in found if each["method"] == "Images.Login")
    assert (login["kind"], login["name"]) == ("registry", "reg.example")
    sessions = [each["result"] for each in found if each["method"] == "Interact.Session"]
    assert sessions == ["STARTED", "NOT_FOUND"]
    written = "".join(path.read_text() for path in (running.folder / "audit").iterdir())
    tokens = [running.identity.worker_token, running.identity.manager_token]
    for secret in [*SECRETS, *tokens, "PRIVATE", "BEGIN"]:
        assert secret not in written, secret


async def test_refused_callers_are_recorded_separately(running: Running) -> None:
    joined = await running.join(running.token, "host-1")
    async with running.channel(KeyPair(joined.certificate, joined.key)) as channel:
        control = control_pb2_grpc.ControlStub(channel)
        request = control_pb2.RemoveNodeRequest(node="host-1", force=True)
        assert await refused(control.RemoveNode(request)) == "PERMISSION_DENIED"
    wrong = JoinToken(ca.digest(running.authority.certificate), new_secret())
    with pytest.raises(JoinRefused):
        await running.join(str(wrong))
    found = await entries(running, 3)
    denied = [each for each in found if each["log"] == "refused"]
    assert [(each["method"], each["role"], each["kind"], each["result"]) for each in denied] == [
        ("Control.RemoveNode", "worker", "node", "PERMISSION_DENIED"),
        ("Join.Sign", "", "node", "PERMISSION_DENIED"),
    ]
    assert denied[0]["user"] == denied[0]["id"] == joined.node_id
    assert wrong.secret not in (running.folder / "audit" / "refused.log").read_text()


async def test_reading_is_not_recorded_and_a_workers_session_neither(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        await control_pb2_grpc.ControlStub(channel).GetCluster(control_pb2.GetClusterRequest())
    assert await entries(running) == []


async def test_request_id_of_the_caller_is_kept_and_returned(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        control = control_pb2_grpc.ControlStub(channel)
        for chosen in ("deploy-42", "no\x7fsuch id"[:2] + " x"):
            call = control.RotateToken(
                control_pb2.RotateTokenRequest(role="worker"),
                metadata=(("orc-request-id", chosen),),
            )
            await call
            told = dict(await call.trailing_metadata())["orc-request-id"]
            [*_, newest] = await entries(running)
            assert newest["request"] == told
            assert (told == chosen) == (chosen == "deploy-42")


@asynccontextmanager
async def following(running: Running, **wanted: Any) -> AsyncIterator[Any]:
    async with running.channel(running.admin) as channel:
        call = audit_pb2_grpc.AuditStub(channel).Entries(
            audit_pb2.AuditRequest(follow=True, **wanted)
        )
        yield call
        call.cancel()


async def test_entries_are_followed_without_a_gap_or_a_double(running: Running) -> None:
    async with running.channel(running.admin) as channel:
        control = control_pb2_grpc.ControlStub(channel)

        async def rotate() -> None:
            for _ in range(50):
                await control.RotateToken(control_pb2.RotateTokenRequest(role="scrape"))

        changing = asyncio.create_task(rotate())
        seen: list[str] = []
        async with following(running) as call, asyncio.timeout(60):
            while len(seen) < 50:
                seen += [each.sequence for each in (await call.read()).entries]
        await changing
    assert seen == [str(number) for number in range(1, 51)]


async def test_a_follower_stops_at_its_until(running: Running) -> None:
    until = dt.datetime.now(dt.UTC).timestamp() + 0.2
    async with following(running, until=until) as call, asyncio.timeout(60):
        while await call.read() is not grpc.aio.EOF:
            pass
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_audit_trail_is_readable_by_admins_only(running: Running, role: str) -> None:
    async with running.channel(running.issue(role)) as channel:
        call = audit_pb2_grpc.AuditStub(channel).Entries(audit_pb2.AuditRequest())
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call.read()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def orc(running: Running, folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    contexts = folder / "orc" / "contexts"
    contexts.mkdir(parents=True, exist_ok=True)
    context = Context(
        "root",
        (f"127.0.0.1:{running.identity.port}",),
        running.authority.certificate,
        running.admin.certificate,
        running.admin.key,
    )
    (contexts / "root.json").write_text(dump_context(context))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from orchestrator.cli.main import main; main()",
        "--context=root",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
    )


async def output(running: Running, folder: Path, *arguments: str) -> str:
    process = await orc(running, folder, *arguments)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def rows(text: str, *keys: str) -> Sequence[tuple[str, ...]]:
    return [tuple(row[key] for key in keys) for row in json.loads(text)]


async def test_the_command_line_shows_and_follows(running: Running, tmp_path: Path) -> None:
    await output(running, tmp_path, "cluster", "token", "--rotate", "worker")
    await output(running, tmp_path, "network", "create", "blue")
    text = await output(running, tmp_path, "audit", "--format=json")
    assert rows(text, "user", "method", "kind", "name", "result") == [
        ("admin", "Control.RotateToken", "token", "worker", "OK"),
        ("admin", "Networks.CreateNetwork", "network", "blue", "OK"),
    ]
    text = await output(running, tmp_path, "audit", "-n1", "--format=json")
    assert rows(text, "method") == [("Networks.CreateNetwork",)]
    text = await output(
        running, tmp_path, "audit", "--filter=kind=token", "--user=admin", "--since=1h"
    )
    head, line = text.splitlines()
    assert head.split() == [
        "TIME",
        "USER",
        "FROM",
        "METHOD",
        "OBJECT",
        "RESULT",
        "TOOK",
        "REQUEST",
    ]
    assert "Control.RotateToken" in line
    assert "token worker" in line
    assert rows(await output(running, tmp_path, "audit", "--user=bob", "--format=json")) == []
    process = await orc(running, tmp_path, "audit", "--follow", "--tail=1", "--format=json")
    assert process.stdout is not None
    async with asyncio.timeout(60):
        first = json.loads(await process.stdout.readline())
        await output(running, tmp_path, "network", "rm", "blue")
        second = json.loads(await process.stdout.readline())
    assert [first["method"], second["method"]] == [
        "Networks.CreateNetwork",
        "Networks.RemoveNetwork",
    ]
    assert first["id"] == second["id"]
    process.terminate()
    await process.communicate()
