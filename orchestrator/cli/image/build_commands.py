# SPDX-License-Identifier: Apache-2.0
"""`orc build` and `orc builder`: builds on the nodes, their limits, and the build cache."""

from __future__ import annotations

import ipaddress
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import click

from orchestrator.cli.app.command_groups import OrcGroup, example
from orchestrator.cli.app.completion_names import completes, file_option
from orchestrator.cli.app.errors import CliError, ManagerLost
from orchestrator.cli.app.option_groups import GroupedCommand
from orchestrator.cli.flags.flag_types import CPUS, MEMORY, pairs
from orchestrator.cli.flags.spec_flags import checked_image
from orchestrator.cli.flags.spec_settings import MEMORY_SWAP
from orchestrator.cli.image import build_context
from orchestrator.cli.image.build_output import (
    is_stored,
    parse_output,
    remove_unnamed,
    write_outputs,
)
from orchestrator.cli.image.remote_build_context import context_folder
from orchestrator.cli.output.listings import Column, column, format_option, print_json, print_table
from orchestrator.cli.output.screen import is_live
from orchestrator.cli.rpc.client import RECONNECT_PAUSE, Client, pass_client, upload
from orchestrator.model.formats.platforms import wanted_architecture
from orchestrator.model.names import short_id
from orchestrator.model.nodes import NodeState
from orchestrator.model.units import SHARES_PER_CORE, format_size
from orchestrator.model.validation.confinement import parse_ulimit
from orchestrator.pb import control_pb2, images_pb2

_PERIOD = 100_000
"""Microseconds: the kernel's default period."""

_OPTIONS = (
    click.option("--memory", "-m", type=MEMORY, help="Maximum memory of the build."),
    click.option(
        "--memory-swap",
        type=MEMORY_SWAP,
        metavar="SIZE|-1",
        help="Maximum memory and swap together; -1: no limit.",
    ),
    click.option("--cpus", type=CPUS, help="Maximum number of cores, such as 1.5."),
    click.option(
        "--cpu-shares",
        "-c",
        type=click.IntRange(2, 262_144),
        metavar="SHARES",
        help="CPU weight, 1024 by default.",
    ),
    click.option(
        "--cpu-quota",
        type=click.IntRange(1000),
        metavar="MICROSECONDS",
        help="CPU time in each period; see --cpus.",
    ),
    click.option(
        "--cpu-period",
        type=click.IntRange(1000, 1_000_000),
        metavar="MICROSECONDS",
        help="Period of --cpu-quota; 100000 unless given.",
    ),
    click.option("--cpuset-cpus", metavar="CPUS", help="CPUs to run on, such as 0-1,3."),
    click.option(
        "--pids-limit",
        type=click.IntRange(-1),
        metavar="NUMBER",
        help="Maximum number of processes and threads, 4096 by default; -1: no limit.",
    ),
    click.option("--shm-size", type=MEMORY, help="Size of /dev/shm in RUN, 64m by default."),
    click.option(
        "--ulimit",
        "ulimits",
        multiple=True,
        metavar="LIMIT=SOFT[:HARD]",
        help="A limit of the processes of RUN, such as nofile=1024; repeatable.",
    ),
)
_NAMES = (
    *("memory", "memory_swap", "cpus", "cpu_shares", "cpu_quota", "cpu_period", "cpuset_cpus"),
    *("pids_limit", "shm_size", "ulimits"),
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags; it takes what they say as `limits`, None if none is
    given."""

    @wraps(command)
    def limited(*arguments: Any, **given: Any) -> None:
        limits = _limits(**{name: given.pop(name) for name in _NAMES})
        command(*arguments, limits=limits, **given)

    for option in reversed(_OPTIONS):
        limited = option(limited)
    return limited


def _limits(
    memory: int | None,
    memory_swap: int | None,
    cpus: int | None,
    cpu_shares: int | None,
    cpu_quota: int | None,
    cpu_period: int | None,
    cpuset_cpus: str | None,
    pids_limit: int | None,
    shm_size: int | None,
    ulimits: tuple[str, ...],
) -> Any:
    if cpus and (cpu_quota or cpu_period):
        raise click.UsageError("--cpus sets quota and period; give either these or --cpus")
    if memory_swap and memory_swap > 0 and memory_swap < (memory or 0):
        raise click.UsageError("--memory-swap includes memory, so it cannot be below --memory")
    if memory_swap and not memory:
        raise click.UsageError(
            "--memory-swap limits memory and swap together; give --memory as well"
        )
    try:
        parsed = [parse_ulimit(text) for text in ulimits]
    except ValueError as error:
        raise click.UsageError(f"--ulimit: {error}") from None
    limits = control_pb2.BuildLimits(
        memory=memory or 0,
        memory_swap=memory_swap or 0,
        cpu_shares=cpu_shares or 0,
        cpu_quota=cpu_quota or (cpus or 0) * _PERIOD // SHARES_PER_CORE,
        cpu_period=cpu_period or 0,
        cpuset_cpus=cpuset_cpus or "",
        pids=pids_limit or 0,
        shm_size=shm_size or 0,
        ulimits=[f"{each.name}={each.soft}:{each.hard}" for each in parsed],
    )
    return limits if limits.ByteSize() else None


_ATTEMPTS = 3
"""Times that a build is started when its manager or node is lost."""
_MAX_DOCUMENT = 1 << 20
"""Maximum bytes of a Dockerfile, and of all secrets together: each is one message."""
_TAR_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")


class View(Protocol):
    """Shows the progress of a build."""

    def line(self, text: str) -> None: ...

    def sent(self, size: int) -> None: ...


@click.command(
    cls=GroupedCommand,
    epilog=example(
        "orc build -t hello:1 .",
        "orc build -t hello:1 -f web/Dockerfile --build-arg V=2 .",
        "orc build -t hello:1 --secret id=token,src=token.txt .",
        "orc build -t hello:1 - < Dockerfile",
        "orc build -t reg.example:5000/hello:1 --push .",
        "orc build -t hello:1 --memory 2g --cpus 1.5 .",
        "orc build -o files .",
        "orc build -t hello:1 https://github.com/me/hello.git#main:docker",
    ),
)
@click.option("--tag", "-t", multiple=True, metavar="NAME", help="The image's name; repeatable.")
@click.option(
    "--file",
    "-f",
    "dockerfile",
    metavar="FILE|-",
    shell_complete=completes("files"),
    help="The Dockerfile.  [default: DIR/Dockerfile]",
)
@click.option("--build-arg", multiple=True, metavar="KEY[=VALUE]", help="Set an ARG; repeatable.")
@click.option(
    "--node",
    metavar="NODE",
    shell_complete=completes("nodes"),
    help="Build on this node.  [default: any]",
)
@click.option("--no-cache", is_flag=True, help="Do not use the cache.")
@click.option("--target", default="", metavar="STAGE", help="Build this stage only.")
@click.option("--pull", is_flag=True, help="Check the registries for newer base images.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Label of the image; repeatable.")
@click.option("--platform", default="", metavar="OS/ARCH", help="Build on a node of this platform.")
@click.option(
    "--secret",
    multiple=True,
    metavar="id=ID[,src=FILE|,env=NAME]",
    help="Secret for RUN --mount=type=secret; repeatable.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["docker", "oci"]),
    default="docker",
    help="Format of the image; oci has no HEALTHCHECK, SHELL and ONBUILD.",
)
@click.option(
    "--network",
    type=click.Choice(["default", "host", "none"]),
    default="default",
    help="Network of RUN: the builds' own with outbound access, the node's, or none.",
)
@click.option(
    "--add-host", multiple=True, metavar="HOST:IP", help="Entry of /etc/hosts for RUN; repeatable."
)
@limit_options
@click.option(
    "--cache-from",
    multiple=True,
    metavar="IMAGE",
    help="Build on a node that has this image, where its steps are in the cache; repeatable.",
)
@click.option(
    "--output",
    "-o",
    multiple=True,
    metavar="DIR|type=TYPE[,dest=PATH]",
    help="Write the image here: local, tar, docker or oci, or push it: registry; repeatable.",
)
@click.option("--push", is_flag=True, help="Push the image to the registry of each name.")
@file_option("--iidfile", help="Write the image's id there.")
@click.option("--quiet", "-q", is_flag=True, help="Print the image's id only.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "tty", "quiet"]),
    default="auto",
    help="Form of the progress; auto: by steps on a terminal, else all lines.",
)
@click.argument(
    "folder", metavar="DIR|URL|-", type=click.Path(), shell_complete=completes("folders")
)
@pass_client
def build(
    client: Client,
    tag: tuple[str, ...],
    dockerfile: str | None,
    build_arg: tuple[str, ...],
    node: str | None,
    no_cache: bool,
    target: str,
    pull: bool,
    label: tuple[str, ...],
    platform: str,
    secret: tuple[str, ...],
    image_format: str,
    network: str,
    add_host: tuple[str, ...],
    cache_from: tuple[str, ...],
    output: tuple[str, ...],
    push: bool,
    iidfile: str | None,
    quiet: bool,
    progress: str,
    folder: str,
    limits: Any,
) -> None:
    """Build an image from a Dockerfile and the folder around it, on one of the nodes.

    The context is a folder, a Git repository (URL#REF:FOLDER), or the URL of a tar archive or of a
    Dockerfile, which this machine fetches; `-` reads an archive or a Dockerfile from stdin.
    """
    names = [checked_image(name) for name in tag]
    outputs = [parse_output(text) for text in output]
    push = push or any(each.push for each in outputs)
    if push and not names:
        raise click.UsageError("to push an image, name it with -t")
    if platform:
        try:
            wanted_architecture(platform)
        except ValueError as error:
            raise click.UsageError(f"--platform: {error}") from None
    header = control_pb2.ImageHeader(
        name=names[0] if names else "",
        more_names=names[1:],
        node=node or (_node_with(client, cache_from) if cache_from else ""),
        build_args=_build_args(build_arg),
        no_cache=no_cache,
        target=target,
        pull=pull,
        labels=pairs("label", label),
        platform=platform,
        secrets=_secrets(secret),
        format=image_format,
        network=network if network != "default" else "",
        add_hosts=[build_host(text) for text in add_host],
        limits=limits,
    )
    with ExitStack() as stack:
        view = stack.enter_context(_view("quiet" if quiet else progress))
        root = None if folder == "-" else stack.enter_context(context_folder(folder))
        if root is None or dockerfile == "-":
            chunks = _from_stdin(header, str(root or folder), dockerfile)
            image = _follow(client, header, chunks, view)
        else:
            remote = str(root) != folder
            read = partial(_from_folder, header, root, dockerfile, remote=remote)
            image = _follow_again(client, header, read, view)
    if iidfile:
        try:
            Path(iidfile).write_text(image.id)
        except OSError as error:
            raise CliError(f"cannot write {iidfile}: {(error.strerror or '').lower()}") from None
    write_outputs(client, image.id, outputs, quiet=quiet)
    if not names and not is_stored(outputs):
        remove_unnamed(client, image)
    if push:
        from orchestrator.cli.image.registry_commands import push_image

        for name in names:
            push_image(client, name, quiet)
    to_stdout = any(each.dest == "-" for each in outputs)
    if quiet:
        click.echo(image.id, err=to_stdout)
        return
    shown = ", ".join(names) or "an image without a name"
    words = f"built {shown} ({short_id(image.id)}, {format_size(image.size)})"
    click.echo(f"{words} and pushed it" if push else words, err=to_stdout)


def _node_with(client: Client, images: Iterable[str]) -> str:
    """The name of a node that has one of the images; none: any node, with a note."""
    wanted = [_cached_image(text) for text in images]
    reply = client.call("ListImages", control_pb2.ListImagesRequest())
    nodes = client.call("ListNodes", control_pb2.ListNodesRequest()).nodes
    ready = {row.node.id for row in nodes if row.node.state == NodeState.READY}
    for name in wanted:
        for image in reply.images:
            here = ready & set(image.nodes)
            if name in (*image.names, image.id) and here:
                return str(min(here))
    click.echo(f"note: no ready node has {' or '.join(wanted)}; any node is used", err=True)
    return ""


def _cached_image(text: str) -> str:
    """The image of IMAGE or type=registry,ref=IMAGE, checked. Raises a usage error."""
    if "=" not in text:
        return checked_image(text)
    keys = dict(part.partition("=")[::2] for part in text.split(","))
    if keys.keys() != {"type", "ref"} or keys["type"] != "registry":
        raise click.UsageError(
            f"--cache-from {text!r}: the cache is the nodes' own; name an image built there"
        )
    return checked_image(keys["ref"])


def build_folder(
    client: Client,
    header: Any,
    folder: Path,
    dockerfile: str | None,
    quiet: bool,
    *,
    remote: bool = False,
) -> Any:
    """Build what a header describes from a folder, with progress on stderr unless `quiet`, and
    return the image. Raises CliError."""
    read = partial(_from_folder, header, folder, dockerfile, remote=remote)
    with _view("quiet" if quiet else "auto") as view:
        return _follow_again(client, header, read, view)


def build_digest(header: Any, folder: Path, dockerfile: str | None, *, remote: bool = False) -> str:
    """The digest of an image's inputs: the settings, the Dockerfile, the files of the folder with
    their modes, without modification times. Raises CliError."""
    import hashlib

    chunks = _from_folder(header, folder, dockerfile, timeless=True, remote=remote)
    found = hashlib.sha256(header.SerializeToString(deterministic=True))
    try:
        for chunk in chunks:
            found.update(chunk)
    except OSError as error:
        raise CliError(f"cannot read {error.filename}: {error.strerror}") from None
    return found.hexdigest()


def _from_folder(
    header: Any,
    root: Path,
    dockerfile: str | None,
    *,
    timeless: bool = False,
    remote: bool = False,
) -> Iterator[bytes]:
    """The context of a folder; its Dockerfile goes into the header. `remote`: untrusted, so the
    Dockerfile must be a file inside."""
    if not root.is_dir():
        raise CliError(f"{root} is not a folder; name the one with the Dockerfile")
    if dockerfile:
        file = root / dockerfile if remote else Path(dockerfile)
    else:
        found = [root / name for name in ("Dockerfile", "Containerfile") if (root / name).is_file()]
        file = found[0] if found else root / "Dockerfile"
    if remote:
        for each in (file, *build_context.rule_files(root, file)):
            if not each.resolve().is_relative_to(root.resolve()):
                raise CliError(f"{each.relative_to(root)} of the context is a link that leaves it")
    if not file.is_file():
        shown = file.relative_to(root) if remote else file
        raise CliError(f"{shown} not found; write one, or name it with -f")
    _put_dockerfile(header, file.read_bytes(), dockerfile or file.name)
    try:
        rules = build_context.read_rules(root, file)
    except (ValueError, OSError) as error:
        raise CliError(str(error)) from None
    return build_context.stream(root, rules, timeless=timeless)


def _from_stdin(header: Any, folder: str, dockerfile: str | None) -> Iterator[bytes]:
    """As in Docker: stdin has a Dockerfile, or a whole context as a tar."""
    if folder == dockerfile:
        raise click.UsageError("the context and the Dockerfile cannot both be stdin")
    if sys.stdin.isatty():
        raise click.UsageError("stdin is empty; pipe a Dockerfile or a context in")
    source = sys.stdin.buffer
    if dockerfile == "-":
        _put_dockerfile(header, source.read(), "Dockerfile")
        root = Path(folder)
        if not root.is_dir():
            raise CliError(f"{root} is not a folder; name the one to build from")
        return build_context.stream(root, build_context.read_rules(root, root / "Dockerfile"))
    head = source.read(512)
    if head.startswith(_TAR_MAGICS) or head[257:262] == b"ustar":
        header.dockerfile = dockerfile or ""
        return _from_archive(header, head, source)
    if dockerfile:
        raise click.UsageError("-f has no effect with a Dockerfile from stdin")
    _put_dockerfile(header, head + source.read(), "Dockerfile")
    return iter([build_context.END])


def _from_archive(header: Any, head: bytes, source: BinaryIO) -> Iterator[bytes]:
    """A context that is a tar, which begins with `head`. Its Dockerfile goes into the header, too:
    it says which registries' passwords the node may have."""
    archive = tempfile.TemporaryFile()  # noqa: SIM115 - read until the upload ends
    archive.write(head)
    shutil.copyfileobj(source, archive)
    names = [header.dockerfile] if header.dockerfile else ["Dockerfile", "Containerfile"]
    header.dockerfile_inside = build_context.archived_dockerfile(archive, names)
    archive.seek(0)
    return build_context.pieces(archive, b"")


def _put_dockerfile(header: Any, content: bytes, name: str) -> None:
    if not content.strip():
        raise CliError(f"{name} is empty; a Dockerfile begins with FROM")
    if len(content) > _MAX_DOCUMENT:
        raise CliError(f"{name} has over {format_size(_MAX_DOCUMENT)}; is it a Dockerfile?")
    header.dockerfile, header.dockerfile_content = name, content


def _build_args(texts: Iterable[str]) -> dict[str, str]:
    """As in Docker: a KEY alone takes the value of the client's environment."""
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key:
            raise click.BadParameter(f"build argument {text!r} is not of the form KEY=VALUE")
        if equals or key in os.environ:
            result[key] = value if equals else os.environ[key]
    return result


def _secrets(texts: Iterable[str]) -> dict[str, bytes]:
    """Contents by id; as in Docker, an id alone names a variable of the environment or a file."""
    found: dict[str, bytes] = {}
    for text in texts:
        keys = dict(part.partition("=")[::2] for part in text.split(","))
        identity = keys.pop("id", "")
        kind = keys.pop("type", "")
        source = keys.pop("src", "") or keys.pop("source", "")
        variable = keys.pop("env", "")
        if not identity or keys or kind not in ("", "file", "env"):
            raise click.UsageError(f"--secret {text!r} is not id=ID,src=FILE or id=ID,env=NAME")
        if not source and not variable:
            variable = identity if kind == "env" or identity in os.environ else ""
            source = "" if variable else identity
        if variable:
            if variable not in os.environ:
                raise CliError(f"--secret {identity}: the environment has no {variable}")
            found[identity] = os.environb[variable.encode()]
            continue
        try:
            found[identity] = Path(source).expanduser().read_bytes()
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise CliError(f"--secret {identity}: cannot read {source}: {reason}") from None
    if sum(map(len, found.values())) > _MAX_DOCUMENT:
        raise CliError(f"the secrets have over {format_size(_MAX_DOCUMENT)} together")
    return found


def build_host(text: str) -> str:
    """`HOST:IP` or `HOST=IP` of a build, checked. Raises a usage error."""
    name, separator, address = text.partition("=" if "=" in text else ":")
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        address = "" if address != "host-gateway" else address
    if not name or not separator or not address:
        raise click.UsageError(f"--add-host {text!r} is not of the form HOST:IP")
    return f"{name}:{address.strip('[]')}"


def _view(progress: str) -> AbstractContextManager[View]:
    if progress == "tty" or (progress == "auto" and is_live(sys.stderr)):
        from orchestrator.cli.output.byte_bar import BuildSteps

        return BuildSteps()
    return nullcontext(_Quiet() if progress == "quiet" else _Plain())


class _Plain:
    def line(self, text: str) -> None:
        click.echo(text, err=True)

    def sent(self, size: int) -> None:
        """Nothing to show without a terminal."""


class _Quiet(_Plain):
    def line(self, text: str) -> None:
        """Not shown."""


def _follow(client: Client, header: Any, chunks: Iterator[bytes], view: View) -> Any:
    """Upload the context, show the progress, and return the image."""

    def counted() -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            view.sent(len(chunk))

    image = None
    try:
        for progress in client.stream("BuildImage", upload(header, counted())):
            if progress.WhichOneof("part") == "image":
                image = progress.image
            else:
                view.line(progress.line)
    except OSError as error:
        raise CliError(f"cannot read {error.filename}: {error.strerror}") from None
    if image is None:
        raise CliError("the manager ended the build without an image; see its log")
    return image


def _follow_again(
    client: Client, header: Any, read: Callable[[], Iterator[bytes]], view: View
) -> Any:
    """As `_follow`, with the context that `read` reads. A build that has begun and whose manager or
    node is lost is started again: the node has the layers of the steps that were done. Raises
    ManagerLost after `_ATTEMPTS`, or if no manager took the context."""
    begun = False

    def noticed(chunks: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal begun
        begun = True
        yield from chunks

    for attempt in count(1):
        try:
            return _follow(client, header, noticed(read()), view)  # `read` completes the header
        except ManagerLost as lost:
            if not begun or attempt == _ATTEMPTS:
                raise
            view.line(f"orc: {lost.message} (the build starts again)")
            time.sleep(RECONNECT_PAUSE)


@click.group(cls=OrcGroup)
def builder() -> None:
    """Manage the build cache of the nodes."""


@builder.command("du", epilog=example("orc builder du", "orc builder du --node node1"))
@click.option("--node", metavar="NODE", shell_complete=completes("nodes"), help="Only that node.")
@format_option()
@pass_client
def du(client: Client, form: str, node: str | None) -> None:
    """Show the size of the build cache on each node."""
    reply = client.call("Images.BuildCaches", images_pb2.BuildCachesRequest(node=node or ""))
    rows = [
        {"node": name, "entries": cache.entries, "size": cache.size}
        for name, cache in sorted(reply.caches.items())
    ]
    if form == "json":
        print_json(rows)
    else:
        print_table(
            rows,
            [
                column("NODE", "node"),
                column("ENTRIES", "entries"),
                Column("SIZE", lambda row: format_size(row["size"])),
            ],
        )
    _say(reply.notices)


@builder.command("prune", epilog=example("orc builder prune -f", "orc builder prune -a -f"))
@click.option("--all", "-a", "all_", is_flag=True, help="Also remove base images of builds.")
@click.option("--force", "-f", is_flag=True, help="Do not ask for confirmation.")
@click.option("--node", metavar="NODE", shell_complete=completes("nodes"), help="Only that node.")
@pass_client
def prune(client: Client, all_: bool, force: bool, node: str | None) -> None:
    """Empty the build cache of all nodes. Built images are kept."""
    if not force:
        click.confirm(
            "This empties the build cache, so the next builds run every step. Continue?", abort=True
        )
    request = images_pb2.BuildCachesRequest(node=node or "", prune=True, all=all_)
    reply = client.call("Images.BuildCaches", request, timeout=300.0)
    click.echo(f"freed {format_size(sum(cache.freed for cache in reply.caches.values()))}")
    _say(reply.notices)


def _say(notices: Iterable[str]) -> None:
    for notice in notices:
        click.echo(notice, err=True)
