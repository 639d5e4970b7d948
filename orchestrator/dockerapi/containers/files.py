# SPDX-License-Identifier: Apache-2.0
"""Endpoints of a container's files: archives, changes, export."""

from __future__ import annotations

import base64
import json
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import Refused
from orchestrator.dockerapi.containers.lookup import find
from orchestrator.dockerapi.gateway import Gateway, Streamed
from orchestrator.dockerapi.http.errors import ApiError, bad_parameter
from orchestrator.dockerapi.http.exchange import Body, Reply, Request, Stream
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.parameters import rfc3339
from orchestrator.pb import images_pb2, interact_pb2

ROUTES = Routes()
route = ROUTES.route

_TAR = "application/x-tar"
_CHUNK = 1 << 16
_KINDS = {"C": 0, "A": 1, "D": 2}

_GO_DIRECTORY, _GO_SYMLINK = 1 << 31, 1 << 27
"""Bits of Go's os.FileMode."""


@route("GET", "/containers/{id}/changes")
def changes(gateway: Gateway, request: Request) -> Reply:
    """Files that differ from the image's."""
    found = find(gateway, request["id"])
    reply = gateway.call("Images.Diff", images_pb2.DiffRequest(container=found.task.id))
    rows = [{"Path": each.path, "Kind": _KINDS.get(each.kind, 0)} for each in reply.changes]
    return Reply(rows or None)


@route("GET", "/containers/{id}/export")
def export(gateway: Gateway, request: Request) -> Stream:
    """A container's files as a tar."""
    found = find(gateway, request["id"])
    calls = gateway.stream("Images.Export", images_pb2.ExportRequest(container=found.task.id))
    return Stream((message.data for message in calls), _TAR, calls.cancel)


@route("HEAD", "/containers/{id}/archive", path=SAME)
def stat_path(gateway: Gateway, request: Request) -> Reply:
    """What is at a path."""
    archive = _Archive(gateway, request)
    archive.close()
    return Reply(headers=archive.headers)


@route("GET", "/containers/{id}/archive", path=SAME)
def read_path(gateway: Gateway, request: Request) -> Stream:
    """Files of a container as a tar."""
    archive = _Archive(gateway, request)
    return Stream(archive.chunks(), _TAR, archive.close, archive.headers)


class _Archive:
    """A path of a container, read as a tar. The description is that of the first entry."""

    def __init__(self, gateway: Gateway, request: Request) -> None:
        path = request.text("path")
        if not path:
            raise bad_parameter("missing or empty path parameter")
        found = find(gateway, request["id"])
        self._first = b""
        first = interact_pb2.CopyInput(
            copy_from=interact_pb2.CopyFrom(container=found.task.id, path=path)
        )
        self._calls: Streamed = gateway.stream("Interact.Copy", iter([first]))
        self._messages = iter(self._calls)
        try:
            for message in self._messages:
                if message.WhichOneof("kind") == "data":
                    self._first += message.data
                    if len(self._first) >= tarfile.BLOCKSIZE and self._read(path):
                        return
                elif message.WhichOneof("kind") == "done":
                    break
        except Refused as refused:
            status = HTTPStatus.NOT_FOUND if _is_missing(refused) else HTTPStatus.BAD_REQUEST
            raise ApiError(
                status,
                f"Could not find the file {path} in container {request['id']}"
                if status is HTTPStatus.NOT_FOUND
                else refused.message,
            ) from None
        raise ApiError(
            HTTPStatus.NOT_FOUND, f"Could not find the file {path} in container {request['id']}"
        )

    def _read(self, path: str) -> bool:
        """Take the description from the first entry; whether there is one yet."""
        import io

        try:
            with tarfile.open(fileobj=io.BytesIO(self._first), mode="r|") as tar:
                entry = tar.next()
        except tarfile.TarError:
            return False
        if entry is None:
            return False
        mode = entry.mode & 0o7777
        go = mode & 0o777
        if entry.isdir():
            go |= _GO_DIRECTORY
        elif entry.issym():
            go |= _GO_SYMLINK
        for bit, flag in (
            (stat.S_ISUID, 1 << 23),
            (stat.S_ISGID, 1 << 22),
            (stat.S_ISVTX, 1 << 20),
        ):
            if mode & bit:
                go |= flag
        document = {
            "name": posixpath.basename(path.rstrip("/")) or "/",
            "size": entry.size if not entry.isdir() else 4096,
            "mode": go,
            "mtime": rfc3339(float(entry.mtime)),
            "linkTarget": entry.linkname if entry.issym() else "",
        }
        text = base64.b64encode(json.dumps(document).encode()).decode()
        self.headers = {"X-Docker-Container-Path-Stat": text}
        return True

    def chunks(self) -> Iterator[bytes]:
        """The tar."""
        yield self._first
        for message in self._messages:
            if message.WhichOneof("kind") == "data":
                yield message.data

    def close(self) -> None:
        """Read no more."""
        self._calls.cancel()


def _is_missing(refused: Refused) -> bool:
    text = refused.message.lower()
    return refused.missing or "no such file" in text or "not exist" in text


@route(
    "PUT", "/containers/{id}/archive", path=SAME, noOverwriteDirNonDir="ignored", copyUIDGID=SAME
)
def write_path(gateway: Gateway, request: Request) -> Reply:
    """Extract a tar into a directory of a container."""
    path = request.text("path")
    if not path:
        raise bad_parameter("missing or empty path parameter")
    found = find(gateway, request["id"])
    calls = gateway.stream("Interact.Copy", _upload(found.task.id, path, request))
    try:
        for message in calls:
            if message.WhichOneof("kind") == "done":
                return Reply()
    except Refused as refused:
        if _is_missing(refused):
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                f"Could not find the file {path} in container {request['id']}",
            ) from None
        raise
    return Reply()


def _upload(id: str, path: str, request: Request) -> Iterator[Any]:
    archive = request.flag("copyUIDGID")
    yield interact_pb2.CopyInput(
        copy_to=interact_pb2.CopyTo(container=id, path=path, archive=archive)
    )
    yield from (interact_pb2.CopyInput(data=data) for data in _plain(request.body))
    yield interact_pb2.CopyInput(eof=True)


def _plain(body: Body) -> Iterator[bytes]:
    """The tar, unpacked if it is compressed by gzip."""
    import zlib

    data = body.read(_CHUNK)
    unpacker = zlib.decompressobj(31) if data[:2] == b"\x1f\x8b" else None
    while data:
        yield unpacker.decompress(data) if unpacker is not None else data
        data = body.read(_CHUNK)
    if unpacker is not None:
        yield unpacker.flush()
