# SPDX-License-Identifier: Apache-2.0
"""Endpoints of secrets and configs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.dockerapi.gateway import Gateway, remove_or_defer
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter, conflict
from orchestrator.dockerapi.http.exchange import NO_CONTENT, Reply, Request
from orchestrator.dockerapi.http.routing import SAME, Answer, Routes
from orchestrator.dockerapi.ids import own_swarm_id, swarm_id
from orchestrator.dockerapi.parameters import Fields, filters, has_labels, rfc3339
from orchestrator.dockerapi.swarm.specs import version
from orchestrator.model.documents import DocumentKind
from orchestrator.pb import documents_pb2

ROUTES = Routes()


class _Kind:
    """The endpoints of one kind."""

    def __init__(self, kind: DocumentKind) -> None:
        self._kind = kind
        self._word = kind.name.lower()
        path = f"/{self._word}s"
        self._add("GET", path, self.list_all, filters=SAME)
        self._add(
            "POST",
            f"{path}/create",
            self.create,
            Name=SAME,
            Labels=SAME,
            Data=SAME,
            Templating=SAME,
            **({"Driver": "refused"} if kind is DocumentKind.SECRET else {}),
        )
        self._add("GET", f"{path}/{{id}}", self.inspect)
        self._add("DELETE", f"{path}/{{id}}", self.remove)
        fixed = (
            "Name",
            "Data",
            "Templating",
            *(("Driver",) if kind is DocumentKind.SECRET else ()),
        )
        self._add(
            "POST",
            f"{path}/{{id}}/update",
            self.update,
            version="ignored",
            Labels=SAME,
            **dict.fromkeys(fixed, "ignored: only labels can change"),
        )

    def _add(
        self,
        method: str,
        path: str,
        handler: Callable[[Gateway, Request], Answer],
        **notes: str,
    ) -> None:
        ROUTES.route(method, path, "", **notes)(handler)

    def _rows(self, gateway: Gateway, name: str = "") -> list[Any]:
        request = documents_pb2.ListDocumentsRequest(
            kind=int(self._kind),  # type: ignore[arg-type]
            document=name,
            with_data=self._kind is DocumentKind.CONFIG,
        )
        rows = gateway.call("Documents.ListDocuments", request).documents
        # Tasks that end with their service still use one whose removal is pending.
        return [row for row in rows if not row.document.removing]

    def _find(self, gateway: Gateway, name: str) -> Any:
        try:
            return self._rows(gateway, own_swarm_id(name) or name)[0]
        except (Refused, IndexError) as error:
            if isinstance(error, Refused) and not error.missing:
                raise
            raise ApiError(HTTPStatus.NOT_FOUND, f"{self._word} {name} not found") from None

    def _document(self, row: Any) -> dict[str, Any]:
        found = row.document
        spec: dict[str, Any] = {"Name": found.name, "Labels": dict(found.labels)}
        if self._kind is DocumentKind.CONFIG:
            spec["Data"] = base64.b64encode(row.data).decode()
        if found.template_driver:
            spec["Templating"] = {"Name": found.template_driver}
        return {
            "ID": swarm_id(found.id),
            "Version": version(found.revision),
            "CreatedAt": rfc3339(found.created_at),
            "UpdatedAt": rfc3339(found.updated_at or found.created_at),
            "Spec": spec,
        }

    def list_all(self, gateway: Gateway, request: Request) -> Reply:
        """All of the kind."""
        wanted = filters(request, ("id", "label", "name", "names"))
        names = [*wanted.get("name", ()), *wanted.get("names", ())]
        rows = []
        for row in map(self._document, self._rows(gateway)):
            if names and not any(value in row["Spec"]["Name"] for value in names):
                continue
            if "id" in wanted and not any(row["ID"].startswith(each) for each in wanted["id"]):
                continue
            if has_labels(row["Spec"]["Labels"], wanted.get("label", ())):
                rows.append(row)
        return Reply(rows)

    def create(self, gateway: Gateway, request: Request) -> Reply:
        """Create one."""
        body = Fields(request.json())
        if body.mapping("Driver"):
            raise bad_parameter(f"a {self._word} with a driver is not supported")
        try:
            data = base64.b64decode(body.text("Data"), validate=True)
        except (ValueError, binascii.Error):
            raise bad_parameter("invalid JSON: Data must be in base64") from None
        message = documents_pb2.CreateDocumentRequest(
            kind=int(self._kind),  # type: ignore[arg-type]
            name=body.text("Name"),
            labels=body.labels("Labels"),
            data=data,
            template_driver=body.object("Templating").text("Name"),
        )
        try:
            made = gateway.call("Documents.CreateDocument", message)
        except Refused as refused:
            if "exists" in refused.message:
                raise conflict(
                    f"rpc error: code = AlreadyExists desc = {self._word} {message.name} "
                    "already exists"
                ) from None
            raise
        return Reply({"ID": swarm_id(made.id)}, HTTPStatus.CREATED)

    def inspect(self, gateway: Gateway, request: Request) -> Reply:
        """One; a secret without its data."""
        return Reply(self._document(self._find(gateway, request["id"])))

    def remove(self, gateway: Gateway, request: Request) -> Reply:
        """Remove one that no service uses."""
        row = self._find(gateway, request["id"])
        message = documents_pb2.RemoveDocumentRequest(
            kind=int(self._kind),  # type: ignore[arg-type]
            document=row.document.id,
        )
        remove_or_defer(gateway, "Documents.RemoveDocument", message)
        return NO_CONTENT

    def update(self, gateway: Gateway, request: Request) -> Reply:
        """Change labels."""
        row = self._find(gateway, request["id"])
        labels = Fields(request.json()).labels("Labels")
        message = documents_pb2.UpdateDocumentRequest(
            kind=int(self._kind),  # type: ignore[arg-type]
            document=row.document.id,
            label_add=labels,
            label_rm=[key for key in row.document.labels if key not in labels],
        )
        gateway.call("Documents.UpdateDocument", message)
        return Reply()


_KINDS = tuple(_Kind(kind) for kind in DocumentKind)
