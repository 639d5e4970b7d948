# SPDX-License-Identifier: Apache-2.0
"""`orc cp`: files and folders into and out of a container, by Docker's rules."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click

from orchestrator import copying
from orchestrator.cli.app.command_groups import example
from orchestrator.cli.app.completion_names import completes
from orchestrator.cli.app.errors import CliError
from orchestrator.cli.container.terminal import write_all
from orchestrator.cli.output.screen import ByteMeter
from orchestrator.cli.rpc.client import Client, pass_client
from orchestrator.model.units import format_size

_MAX_QUEUED = 8
"""Maximum number of chunks of an upload that wait for the network."""


@click.command(
    epilog=example("orc cp web.3:/etc/hosts .", "orc cp site/. web.3:/www", "orc cp web.3:/www -")
)
@click.option("--archive", "-a", is_flag=True, help="Keep owner and group.")
@click.option("--follow-link", "-L", is_flag=True, help="Follow symbolic links in SOURCE.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing about the copy.")
@click.argument("source", shell_complete=completes("copy_paths"))
@click.argument("target", shell_complete=completes("copy_paths"))
@pass_client
def cp(
    client: Client, archive: bool, follow_link: bool, quiet: bool, source: str, target: str
) -> None:
    """Copy a file or folder from a container, CONTAINER:PATH, to this host, or the other way.

    `-` is a tar archive on stdout or stdin. `DIR/.` is the content of the folder."""
    here, there = _split(source), _split(target)
    meter = ByteMeter(f"copying {source}", quiet=quiet)
    try:
        match here, there:
            case (str() as container, path), None:
                _download(client, container, path, target, follow_link, archive, meter)
            case None, (str() as container, path):
                _upload(client, source, container, path, follow_link, archive, meter)
            case None, None:
                raise click.UsageError(
                    "source or destination must be in a container, as CONTAINER:PATH"
                )
            case _:
                raise click.UsageError("source or destination must be on this host")
    except copying.CopyError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        name = f"{error.filename}: " if isinstance(error.filename, str) else ""
        raise CliError(f"{name}{(error.strerror or str(error)).lower()}") from None
    if not quiet and target != "-":
        click.echo(f"copied {format_size(meter.count)} to {target}", err=True)


def _split(word: str) -> tuple[str, str] | None:
    """Container and path of CONTAINER:PATH; None for a path of this host, which may hold a colon
    if it begins with `/` or `.`."""
    container, colon, path = word.partition(":")
    if not colon or word.startswith(("/", ".")) or not container:
        return None
    return container, path or "/"


def _download(
    client: Client,
    container: str,
    path: str,
    target: str,
    follow: bool,
    keep: bool,
    meter: ByteMeter,
) -> None:
    from orchestrator.pb import interact_pb2

    request = interact_pb2.CopyFrom(container=container, path=path, follow_link=follow)
    first = interact_pb2.CopyInput(copy_from=request)
    lost = ""
    with meter, closing(client.stream("Interact.Copy", iter([first]))) as answers:
        about = next(answers).source
        parts = _DownloadReader(answers, meter)
        if target == "-":
            if sys.stdout.isatty():
                raise CliError(
                    "the output is a tar archive; redirect it, or name a folder instead of -"
                )
            while data := parts.read(copying.CHUNK):
                write_all(1, data)
        else:
            if os.open not in os.supports_dir_fd:
                raise CliError(
                    "files cannot be unpacked safely on this system; take them as a tar: "
                    "orc cp CONTAINER:PATH - > FILE"
                )
            folder, name = copying.target(target, about.top, about.folder)
            owner = copying.Owner(keep and os.geteuid() == 0)
            lost = copying.unpack(parts, folder, about.top, name, owner)
        parts.finish()
    if lost:
        click.echo(lost, err=True)


class _DownloadReader:
    """The data of a copy's answers as a file to read from."""

    def __init__(self, answers: Iterator[Any], meter: ByteMeter) -> None:
        self._answers = answers
        self._meter = meter
        self._rest = b""
        self._done = False

    def read(self, most: int) -> bytes:
        """At most that number of bytes; empty at the end."""
        while not self._rest and not self._done:
            answer = next(self._answers, None)
            if answer is None:
                raise CliError("the copy was interrupted")
            self._done = answer.done
            self._rest = answer.data
        data, self._rest = self._rest[:most], self._rest[most:]
        self._meter.add(len(data))
        return data

    def finish(self) -> None:
        """Read the rest; the last message may be an error."""
        while self.read(copying.CHUNK):
            pass


def _upload(
    client: Client,
    source: str,
    container: str,
    path: str,
    follow: bool,
    archive: bool,
    meter: ByteMeter,
) -> None:
    from orchestrator.pb import interact_pb2

    top, is_folder = "", False
    if source != "-":
        source, top, is_folder = copying.source(source, follow)
    request = interact_pb2.CopyTo(
        container=container, path=path, top=top, folder=is_folder, archive=archive
    )
    parts = _UploadPacker(source, top)
    notices: list[str] = []

    def messages() -> Iterator[Any]:
        yield interact_pb2.CopyInput(copy_to=request)
        for data in parts:
            meter.add(len(data))
            yield interact_pb2.CopyInput(data=data)
        if parts.failure is None:
            yield interact_pb2.CopyInput(eof=True)

    try:
        with meter:
            for answer in client.stream("Interact.Copy", messages()):
                if answer.notice:
                    notices.append(answer.notice)
    except CliError:
        # The cause is the local read error, not the interrupted upload.
        if parts.failure is None:
            raise
    if parts.failure is not None:
        raise parts.failure
    for notice in notices:
        click.echo(notice, err=True)


class _UploadPacker:
    """A tar of local files (or the one on stdin) in chunks, made by its own thread."""

    def __init__(self, source: str, top: str) -> None:
        self._source, self._top = source, top
        self._queue: queue.Queue[bytes | None] = queue.Queue(_MAX_QUEUED)
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        threading.Thread(target=self._make, daemon=True).start()
        while (data := self._queue.get()) is not None:
            yield data

    def write(self, data: bytes) -> None:
        """Add a chunk; blocks while too many have not been sent."""
        self._queue.put(data)

    def _make(self) -> None:
        try:
            if self._source == "-":
                while data := os.read(0, copying.CHUNK):
                    self.write(data)
            else:
                copying.pack(self._source, self._top, self)
        except Exception as error:
            self.failure = error
        self._queue.put(None)
