# SPDX-License-Identifier: Apache-2.0
"""Endpoints of images."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from orchestrator.cli.app.errors import CliError, Refused
from orchestrator.dockerapi.gateway import Gateway, Streamed
from orchestrator.dockerapi.http.errors import (
    ApiError,
    bad_parameter,
    conflict,
    not_found,
    unsupported,
)
from orchestrator.dockerapi.http.exchange import Reply, Request, Stream
from orchestrator.dockerapi.http.routing import SAME, Routes
from orchestrator.dockerapi.parameters import (
    Fields,
    boolean_filter,
    filters,
    has_labels,
    moment,
    rfc3339,
)
from orchestrator.model.convert import from_proto
from orchestrator.model.names import parse_image
from orchestrator.model.objects import Image
from orchestrator.pb import control_pb2, images_pb2

ROUTES = Routes()
route = ROUTES.route

_TAR = "application/x-tar"
_PREFIX = "sha256:"


def familiar(name: str) -> str:
    """A name as Docker shows it: without its registry and library where they are the default."""
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def image_id(image: Image) -> str:
    """Docker's id: the digest of the config."""
    return image.config_digest or image.id


def list_images(gateway: Gateway) -> list[Image]:
    """All images of the cluster."""
    reply = gateway.call("ListImages", control_pb2.ListImagesRequest())
    return [from_proto(message) for message in reply.images]


def resolve(gateway: Gateway, name: str) -> str:
    """Our name or digest of an image that a client names. Raises ApiError."""
    word = name.removeprefix(_PREFIX)
    if word and all(letter in "0123456789abcdef" for letter in word) and len(word) <= 64:
        matches = {
            image.id
            for image in list_images(gateway)
            if image_id(image).removeprefix(_PREFIX).startswith(word)
            or image.id.removeprefix(_PREFIX).startswith(word)
        }
        if len(matches) == 1:
            return matches.pop()
        if name.startswith(_PREFIX):
            raise not_found("image", name)
    try:
        return str(parse_image(name))
    except ValueError:
        raise bad_parameter("invalid reference format") from None


def inspect_image(gateway: Gateway, name: str) -> Any:
    """The InspectImageReply of an image. Raises ApiError 404 for one that no node has."""
    if not name:
        raise bad_parameter("invalid reference format")
    try:
        return gateway.call(
            "Images.Inspect", images_pb2.InspectImageRequest(image=resolve(gateway, name))
        )
    except Refused as refused:
        if refused.missing:
            shown = name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"
            raise not_found("image", shown) from None
        raise


def image_config(gateway: Gateway, name: str) -> tuple[Image, Mapping[str, Any]]:
    """An image, and the `config` of its JSON. Raises ApiError 404."""
    reply = inspect_image(gateway, name)
    found = json.loads(reply.config) if reply.config else {}
    return from_proto(reply.image), found.get("config") or {}


def _digests(image: Image) -> list[str]:
    repositories = dict.fromkeys(name.rpartition(":")[0] for name in image.names)
    return [f"{familiar(each)}@{image.id}" for each in repositories]


@route(
    "GET",
    "/images/json",
    all="ignored: there are no intermediate images",
    filters=SAME,
    digests=SAME,
    **{"shared-size": "ignored"},
)
def list_all(gateway: Gateway, request: Request) -> Reply:
    """Images that some node has."""
    wanted = filters(
        request, ("before", "dangling", "label", "reference", "since", "until", "containers")
    )
    images = list_images(gateway)
    moments = {}
    for key in ("before", "since"):
        for name in wanted.get(key, ()):
            moments[key] = from_proto(inspect_image(gateway, name).image).created_at
    dangling = boolean_filter(wanted, "dangling", False)
    rows = []
    for image in sorted(images, key=lambda each: (-each.created_at, each.id)):
        if "dangling" in wanted and dangling is bool(image.names):
            continue
        if "before" in moments and image.created_at >= moments["before"]:
            continue
        if "since" in moments and image.created_at <= moments["since"]:
            continue
        if not has_labels(image.labels, wanted.get("label", ())):
            continue
        names = [familiar(name) for name in image.names]
        if "reference" in wanted:
            names = [
                name for name in names if any(_refers(name, each) for each in wanted["reference"])
            ]
            if not names:
                continue
        rows.append(
            {
                "Id": image_id(image),
                "ParentId": "",
                "RepoTags": names or None,
                "RepoDigests": _digests(image) or None,
                "Created": int(image.created_at),
                "Size": image.size,
                "VirtualSize": image.size,
                "SharedSize": -1,
                "Labels": dict(image.labels) or None,
                "Containers": -1,
            }
        )
    return Reply(rows)


def _refers(name: str, pattern: str) -> bool:
    import fnmatch

    repository, _, _ = name.rpartition(":")
    return any(
        fnmatch.fnmatchcase(each, pattern) for each in (name, repository, repository.split("/")[-1])
    )


@route("GET", "/images/{name}/json")
def inspect(gateway: Gateway, request: Request) -> Reply:
    """An image in full."""
    reply = inspect_image(gateway, request["name"])
    image: Image = from_proto(reply.image)
    found = json.loads(reply.config) if reply.config else {}
    return Reply(
        {
            "Id": image_id(image),
            "RepoTags": [familiar(name) for name in image.names],
            "RepoDigests": _digests(image),
            "Parent": "",
            "Comment": found.get("comment", ""),
            "Created": found.get("created") or rfc3339(image.created_at),
            "DockerVersion": "",
            "Author": found.get("author", ""),
            "Config": _config(found.get("config") or {}),
            "Architecture": found.get("architecture", ""),
            "Variant": found.get("variant", ""),
            "Os": found.get("os", "linux"),
            "Size": image.size,
            "VirtualSize": image.size,
            "GraphDriver": {"Data": None, "Name": "overlay2"},
            "RootFS": {
                "Type": "layers",
                "Layers": (found.get("rootfs") or {}).get("diff_ids") or [],
            },
            "Metadata": {"LastTagTime": rfc3339(image.created_at)},
        }
    )


def _config(found: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "Hostname": "",
        "Domainname": "",
        "User": "",
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": None,
        "Cmd": None,
        "Image": "",
        "Volumes": None,
        "WorkingDir": "",
        "Entrypoint": None,
        "OnBuild": None,
        "Labels": None,
    }
    return {**empty, **found}


@route("GET", "/images/{name}/history")
def history(gateway: Gateway, request: Request) -> Reply:
    """The steps that made an image, the newest first."""
    reply = inspect_image(gateway, request["name"])
    image: Image = from_proto(reply.image)
    found = json.loads(reply.config) if reply.config else {}
    manifest = json.loads(reply.manifest) if reply.manifest else {}
    sizes = iter([layer.get("size", 0) for layer in manifest.get("layers") or []])
    rows = []
    for step in found.get("history") or []:
        rows.append(
            {
                "Id": "<missing>",
                "Created": int(_seconds(step.get("created", ""))),
                "CreatedBy": step.get("created_by", ""),
                "Tags": None,
                "Size": 0 if step.get("empty_layer") else next(sizes, 0),
                "Comment": step.get("comment", ""),
            }
        )
    rows.reverse()
    if rows:
        rows[0] |= {"Id": image_id(image), "Tags": [familiar(each) for each in image.names]}
    return Reply(rows)


def _seconds(text: str) -> float:
    try:
        return moment(text, "created", 0.0)
    except ApiError:
        return 0.0


def credentials(request: Request) -> Any:
    """The registry credentials in a request's header; None without. Raises ApiError."""
    text = request.headers.get("x-registry-auth", "")
    if not text:
        return None
    try:
        padded = text + "=" * (-len(text) % 4)
        document = json.loads(base64.urlsafe_b64decode(padded) or b"{}")
    except (ValueError, binascii.Error):
        raise bad_parameter("invalid X-Registry-Auth header") from None
    if not document:
        return None
    given = Fields(document, "X-Registry-Auth")
    found = images_pb2.RegistryLogin(
        username=given.text("username"),
        password=given.text("password"),
        identity_token=given.text("identitytoken"),
    )
    return found if found.ByteSize() else None


@route(
    "POST",
    "/images/create",
    fromImage=SAME,
    tag=SAME,
    fromSrc="only `-`: the body",
    repo=SAME,
    message=SAME,
    changes=SAME,
    platform="ignored",
    **{"X-Registry-Auth": SAME},
)
def create(gateway: Gateway, request: Request) -> Stream:
    """Pull an image, or import one from a tar."""
    if request.text("fromSrc"):
        return _import(gateway, request)
    name, tag = request.text("fromImage"), request.text("tag")
    if not name:
        raise bad_parameter("invalid reference format")
    if tag:
        name += f"@{tag}" if tag.startswith(_PREFIX) else f":{tag}"
    try:
        whole = str(parse_image(name))
    except ValueError:
        raise bad_parameter("invalid reference format") from None
    message = images_pb2.PullImageRequest(name=whole)
    if (login := credentials(request)) is not None:
        message.login.CopyFrom(login)
    calls = gateway.stream("Images.Pull", message)
    return Stream(_pulled(calls, familiar(whole)), cancel=calls.cancel)


def line(**fields: Any) -> bytes:
    """One message of a stream of progress."""
    return json.dumps(fields).encode() + b"\r\n"


def failure(error: CliError) -> bytes:
    """The last message of a stream that failed."""
    text = error.format_message()
    return line(errorDetail={"message": text}, error=text)


def _layers(message: Any) -> bytes:
    """Progress of a layer."""
    layer = message.layer
    id = layer.digest.removeprefix(_PREFIX)[:12]
    if layer.total and layer.done >= layer.total:
        return line(status="Pull complete", progressDetail={}, id=id)
    detail = {"current": layer.done, "total": layer.total}
    return line(status="Downloading", progressDetail=detail, id=id)


def _pulled(calls: Streamed, name: str) -> Iterator[bytes]:
    repository, _, tag = name.rpartition(":")
    yield line(status=f"Pulling from {repository}", id=tag)
    try:
        for message in calls:
            match message.WhichOneof("part"):
                case "layer":
                    yield _layers(message)
                case "image":
                    yield line(status=f"Digest: {message.image.id}")
    except CliError as error:
        yield failure(error)
        return
    yield line(status=f"Status: Downloaded newer image for {name}")


def _import(gateway: Gateway, request: Request) -> Stream:
    if request.text("fromSrc") != "-":
        raise unsupported("an image is imported from the request's body alone: fromSrc must be '-'")
    name, tag = request.text("repo"), request.text("tag")
    header = images_pb2.ImportImageHeader(
        name=str(parse_image(f"{name}:{tag}" if tag else name)) if name else "",
        changes=list(request.query.get("changes", ())),
        message=request.text("message"),
    )

    def parts() -> Iterator[Any]:
        yield images_pb2.ImportImageUpload(header=header)
        while data := request.body.read(1 << 16):
            yield images_pb2.ImportImageUpload(data=data)

    image = _last_image(gateway.stream("Images.Import", parts()))
    return Stream(iter([line(status=image_id(from_proto(image)))]))


def _last_image(calls: Streamed) -> Any:
    image = None
    for message in calls:
        if message.WhichOneof("part") == "image":
            image = message.image
    if image is None:
        raise ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "the manager returned no image")
    return image


@route("POST", "/images/load", quiet=SAME)
def load(gateway: Gateway, request: Request) -> Stream:
    """Load images from an archive of `docker save`."""

    def parts() -> Iterator[Any]:
        yield control_pb2.ImageUpload(header=control_pb2.ImageHeader())
        while data := request.body.read(1 << 16):
            yield control_pb2.ImageUpload(data=data)

    lines = []
    for message in gateway.stream("LoadImage", parts()):
        if message.WhichOneof("part") == "image":
            image: Image = from_proto(message.image)
            names = [familiar(name) for name in image.names] or [image_id(image)]
            lines += [line(stream=f"Loaded image: {name}\n") for name in names]
    return Stream(iter(lines))


@route("GET", "/images/get", names=SAME)
def save_all(gateway: Gateway, request: Request) -> Stream:
    """Images as an archive."""
    names = [each for text in request.query.get("names", ()) for each in text.split(",") if each]
    if not names:
        raise bad_parameter("no images to save")
    return _saved(gateway, names)


@route("GET", "/images/{name}/get")
def save(gateway: Gateway, request: Request) -> Stream:
    """An image as an archive."""
    return _saved(gateway, [request["name"]])


def _saved(gateway: Gateway, names: list[str]) -> Stream:
    for name in names:
        inspect_image(gateway, name)
    message = images_pb2.SaveImageRequest(images=[resolve(gateway, name) for name in names])
    calls = gateway.stream("Images.Save", message)
    return Stream((part.data for part in calls), _TAR, calls.cancel)


@route("POST", "/images/{name}/tag", repo=SAME, tag=SAME)
def tag(gateway: Gateway, request: Request) -> Reply:
    """Give an image another name."""
    repository, tag = request.text("repo"), request.text("tag")
    inspect_image(gateway, request["name"])
    try:
        name = str(parse_image(f"{repository}:{tag}" if tag else repository))
    except ValueError:
        raise bad_parameter("invalid reference format") from None
    message = images_pb2.TagImageRequest(image=resolve(gateway, request["name"]), name=name)
    gateway.call("Images.Tag", message)
    return Reply(status=HTTPStatus.CREATED)


@route("POST", "/images/{name}/push", tag=SAME, **{"X-Registry-Auth": SAME})
def push(gateway: Gateway, request: Request) -> Stream:
    """Push an image to its registry."""
    name, tag = request["name"], request.text("tag")
    whole = f"{name}:{tag}" if tag else name
    inspect_image(gateway, whole)
    message = images_pb2.PushImageRequest(name=str(parse_image(whole)))
    if (login := credentials(request)) is not None:
        message.login.CopyFrom(login)
    calls = gateway.stream("Images.Push", message)
    return Stream(_pushed(calls, familiar(str(parse_image(whole)))), cancel=calls.cancel)


def _pushed(calls: Streamed, name: str) -> Iterator[bytes]:
    repository, _, tag = name.rpartition(":")
    yield line(status=f"The push refers to repository [{repository}]")
    try:
        for message in calls:
            match message.WhichOneof("part"):
                case "layer":
                    layer = message.layer
                    id = layer.digest.removeprefix(_PREFIX)[:12]
                    done = layer.total and layer.done >= layer.total
                    detail = {} if done else {"current": layer.done, "total": layer.total}
                    yield line(status="Pushed" if done else "Pushing", progressDetail=detail, id=id)
                case "image":
                    digest, size = message.image.id, message.image.size
                    yield line(status=f"{tag}: digest: {digest} size: {size}")
                    aux = {"Tag": tag, "Digest": digest, "Size": size}
                    yield line(progressDetail={}, aux=aux)
    except CliError as error:
        yield failure(error)


@route("DELETE", "/images/{name}", force=SAME, noprune="ignored")
def remove(gateway: Gateway, request: Request) -> Reply:
    """Remove a name of an image, and the image with its last one."""
    inspect_image(gateway, request["name"])
    message = images_pb2.RemoveImageRequest(
        image=resolve(gateway, request["name"]), force=request.flag("force")
    )
    try:
        reply = gateway.call("Images.Remove", message, 60.0)
    except Refused as refused:
        if refused.missing:
            raise
        raise conflict(
            f"conflict: unable to delete {request['name']} (must be forced) - {refused.message}"
        ) from None
    return Reply(_removed(reply))


def _removed(reply: Any) -> list[dict[str, str]]:
    rows = [{"Untagged": familiar(name)} for name in reply.untagged]
    return rows + [{"Deleted": digest} for digest in reply.deleted]


@route("POST", "/images/prune", filters=SAME)
def prune(gateway: Gateway, request: Request) -> Reply:
    """Remove images that no container uses."""
    wanted = filters(request, ("dangling", "until", "label", "label!"))
    labels = dict(text.partition("=")[::2] for text in wanted.get("label", ()))
    message = images_pb2.PruneImagesRequest(
        all=not boolean_filter(wanted, "dangling", True),
        until=moment(next(iter(wanted.get("until", ())), ""), "until", time.time()),
        labels=labels,
        without=list(wanted.get("label!", ())),
    )
    reply = gateway.call("Images.Prune", message, 120.0)
    return Reply({"ImagesDeleted": _removed(reply) or None, "SpaceReclaimed": reply.freed})


@route(
    "POST",
    "/commit",
    container=SAME,
    repo=SAME,
    tag=SAME,
    comment=SAME,
    author=SAME,
    pause=SAME,
    changes=SAME,
    containerConfig="ignored: use `changes`",
)
def commit(gateway: Gateway, request: Request) -> Reply:
    """Make an image of a container's files."""
    from orchestrator.dockerapi.containers.lookup import find

    found = find(gateway, request.text("container"))
    repository, tag = request.text("repo"), request.text("tag")
    message = images_pb2.CommitRequest(
        container=found.task.id,
        name=str(parse_image(f"{repository}:{tag}" if tag else repository)) if repository else "",
        changes=[line for text in request.query.get("changes", ()) for line in text.split("\n")],
        author=request.text("author"),
        message=request.text("comment"),
        no_pause=not request.flag("pause", True),
    )
    image = gateway.call("Images.Commit", message, 120.0)
    return Reply({"Id": image_id(from_proto(image))}, HTTPStatus.CREATED)


@route("GET", "/distribution/{name}/json", "only images that the cluster has")
def distribution(gateway: Gateway, request: Request) -> Reply:
    """The digest to which a name leads, which clients put into the specs of services."""
    reply = inspect_image(gateway, request["name"])
    image: Image = from_proto(reply.image)
    manifest = json.loads(reply.manifest) if reply.manifest else {}
    config = json.loads(reply.config) if reply.config else {}
    return Reply(
        {
            "Descriptor": {
                "mediaType": manifest.get("mediaType", ""),
                "digest": image.id,
                "size": len(reply.manifest.encode()),
            },
            "Platforms": [
                {"architecture": config.get("architecture", ""), "os": config.get("os", "linux")}
            ],
        }
    )


@route("GET", "/images/search", "refused: use the registry's own search")
def search(gateway: Gateway, request: Request) -> Reply:
    """Not served."""
    raise unsupported("images cannot be searched here: use the registry's own search")
