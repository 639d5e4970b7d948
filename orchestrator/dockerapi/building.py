# SPDX-License-Identifier: Apache-2.0
"""Endpoints of builds: Docker's classic builder in front of the nodes' builds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.image.build_context import archived_dockerfile, pieces
from orchestrator.cli.rpc.client import upload
from orchestrator.dockerapi.gateway import Gateway, Streamed
from orchestrator.dockerapi.http.errors import bad_parameter, unsupported
from orchestrator.dockerapi.http.exchange import Reply, Request, Stream
from orchestrator.dockerapi.http.routing import SAME, Answer, Routes
from orchestrator.dockerapi.images import failure, familiar, image_id, line
from orchestrator.dockerapi.parameters import Fields, filters
from orchestrator.model.convert import from_proto
from orchestrator.model.formats.platforms import wanted_architecture
from orchestrator.model.names import parse_image
from orchestrator.model.objects import Image
from orchestrator.pb import control_pb2, images_pb2

ROUTES = Routes()
route = ROUTES.route

_BUILDKIT = "2"
_NO_SESSION = (
    "BuildKit is not supported: build with the classic builder, by DOCKER_BUILDKIT=0, or with "
    "'orc build'"
)
_KEPT_BY_CLUSTER = "ignored: the cluster's own credentials are used, see `POST /auth`"


@route(
    "POST",
    "/build",
    **dict.fromkeys(
        (
            *("dockerfile", "t", "extrahosts", "q", "nocache", "pull", "memory", "memswap"),
            *("cpushares", "cpusetcpus", "cpuperiod", "cpuquota", "buildargs", "shmsize"),
            *("labels", "platform", "target", "ulimits"),
        ),
        SAME,
    ),
    **dict.fromkeys(("rm", "forcerm", "cgroupparent", "isolation", "securityopt"), "ignored"),
    cachefrom="ignored: each node has its own cache",
    remote="refused: send the context in the body",
    squash="refused",
    networkmode="`default`, `host` or `none`",
    outputs="refused: only BuildKit has them",
    version="1; 2, which is BuildKit, is refused",
    **{"X-Registry-Config": _KEPT_BY_CLUSTER},
)
def build(gateway: Gateway, request: Request) -> Stream:
    """Build an image on a node."""
    if request.text("version") == _BUILDKIT or request.text("session"):
        raise unsupported(_NO_SESSION)
    if request.text("remote"):
        raise unsupported("a context cannot be fetched by its URL here: send it in the body")
    if request.flag("squash"):
        raise unsupported("layers cannot be squashed")
    if request.text("outputs"):
        raise unsupported("outputs are a function of BuildKit: use 'orc build --output'")
    header = _header(request)
    archive = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - read until the upload ends
    while data := request.body.read(1 << 18):
        archive.write(data)
    if not archive.tell():
        raise bad_parameter("the build context is empty")
    names = [header.dockerfile] if header.dockerfile else ["Dockerfile", "Containerfile"]
    header.dockerfile_inside = archived_dockerfile(archive, names)
    archive.seek(0)
    calls = gateway.stream("BuildImage", upload(header, pieces(archive)))
    tags = [familiar(name) for name in (header.name, *header.more_names) if name]
    return Stream(_built(calls, tags, request.flag("q")), cancel=calls.cancel)


def _header(request: Request) -> Any:
    names = [_name(text) for text in request.query.get("t", ()) if text]
    network = request.text("networkmode")
    if network not in ("", "default", "bridge", "host", "none"):
        raise bad_parameter(
            f"the network {network!r} cannot be used in a build: use default, host or none"
        )
    platform = request.text("platform")
    if platform:
        try:
            wanted_architecture(platform)
        except ValueError as error:
            raise bad_parameter(str(error)) from None
    limits = _limits(request)
    return control_pb2.ImageHeader(
        name=names[0] if names else "",
        more_names=names[1:],
        dockerfile=request.text("dockerfile"),
        build_args=_texts(request, "buildargs"),
        no_cache=request.flag("nocache"),
        target=request.text("target"),
        pull=request.flag("pull"),
        labels=_texts(request, "labels"),
        network=network if network in ("host", "none") else "",
        add_hosts=[
            entry
            for text in request.query.get("extrahosts", ())
            for entry in text.split(",")
            if entry
        ],
        platform=platform,
        limits=limits if limits.ByteSize() else None,
    )


def _name(text: str) -> str:
    try:
        return str(parse_image(text))
    except ValueError:
        raise bad_parameter("invalid reference format") from None


def _document(request: Request, name: str, kind: type) -> Any:
    """A parameter that is JSON; None without it. Raises ApiError."""
    text = request.text(name)
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_parameter(f"invalid value for the parameter {name}: {error}") from None
    if found is not None and not isinstance(found, kind):
        raise bad_parameter(f"invalid value {text!r} for the parameter {name}")
    return found


def _texts(request: Request, name: str) -> dict[str, str]:
    """A mapping of strings; a value that is null is left out, as for an unset build argument."""
    found: Mapping[str, Any] = _document(request, name, dict) or {}
    if not all(isinstance(value, str | None) for value in found.values()):
        raise bad_parameter(f"invalid value for the parameter {name}: its values must be strings")
    return {key: value for key, value in found.items() if value is not None}


def _limits(request: Request) -> Any:
    ulimits: Sequence[Any] = _document(request, "ulimits", list) or ()
    entries = [Fields(each, "ulimits") for each in ulimits]
    return control_pb2.BuildLimits(
        memory=request.number("memory"),
        memory_swap=request.number("memswap"),
        cpu_shares=request.number("cpushares"),
        cpu_quota=request.number("cpuquota"),
        cpu_period=request.number("cpuperiod"),
        cpuset_cpus=request.text("cpusetcpus"),
        shm_size=request.number("shmsize"),
        ulimits=[
            f"{each.text('Name')}={each.number('Soft')}:{each.number('Hard')}" for each in entries
        ],
    )


def _built(calls: Streamed, tags: Sequence[str], quiet: bool) -> Iterator[bytes]:
    """The output as the docker CLI shows it; of a quiet build only the image's id."""
    image: Image | None = None
    try:
        for message in calls:
            if message.WhichOneof("part") == "image":
                image = from_proto(message.image)
            elif not quiet:
                yield line(stream=f"{message.line}\n")
    except CliError as error:
        yield failure(error)
        return
    if image is None:
        return  # the client has gone
    id = image_id(image)
    yield line(aux={"ID": id})
    if quiet:
        yield line(stream=f"{id}\n")
        return
    yield line(stream=f"Successfully built {id.removeprefix('sha256:')[:12]}\n")
    for tag in tags:
        yield line(stream=f"Successfully tagged {tag}\n")


@route(
    "POST",
    "/build/prune",
    all="also removes the base images of builds",
    filters="refused",
    **{"keep-storage": "ignored: all is removed"},
)
def prune(gateway: Gateway, request: Request) -> Reply:
    """Empty the build caches of all nodes."""
    filters(request, ())
    message = images_pb2.BuildCachesRequest(prune=True, all=request.flag("all"))
    reply = gateway.call("Images.BuildCaches", message, 300.0)
    freed = sum(cache.freed for cache in reply.caches.values())
    return Reply({"CachesDeleted": None, "SpaceReclaimed": freed})


def _refuse(gateway: Gateway, request: Request) -> Answer:
    raise unsupported(_NO_SESSION)


for _path in ("/session", "/grpc"):
    route("POST", _path, "refused: BuildKit is not supported")(_refuse)
