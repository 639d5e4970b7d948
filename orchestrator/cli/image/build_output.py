# SPDX-License-Identifier: Apache-2.0
"""Outputs of `orc build` outside the cluster: `--output` and `-o`.

The forms are Docker's (https://docs.docker.com/reference/cli/docker/buildx/build/#output).
"""

from __future__ import annotations

import copy
import json
import os
import posixpath
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from orchestrator.cli.app.errors import CliError
from orchestrator.cli.output.screen import metered
from orchestrator.cli.rpc.client import Client
from orchestrator.pb import images_pb2

LOCAL, TAR, DOCKER, OCI, IMAGE, REGISTRY = "local", "tar", "docker", "oci", "image", "registry"
_WRITTEN = (LOCAL, TAR, DOCKER, OCI)
_OF_ENTRY = ("path", "linkpath", "size")
"""Keys of PAX headers that say what an entry itself does."""
_HIDES, _HIDES_ALL = ".wh.", ".wh..wh..opq"


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a build."""

    kind: str
    dest: str = ""
    """A folder (`LOCAL`) or a file; `-`: stdout."""
    push: bool = False


def parse_output(text: str) -> Output:
    """`type=TYPE[,dest=PATH]`, or a folder alone, or `-`. Raises a usage error."""
    if "=" not in text:
        return Output(TAR, "-") if text == "-" else Output(LOCAL, text)
    keys = dict(part.partition("=")[::2] for part in text.split(","))
    kind, dest = keys.pop("type", ""), keys.pop("dest", "")
    push = kind == REGISTRY or keys.pop("push", "false") == "true"
    if kind not in (*_WRITTEN, IMAGE, REGISTRY):
        raise click.UsageError(
            f"--output {text!r}: the type {kind!r} is unknown; known are {LOCAL}, {TAR}, {DOCKER}, "
            f"{OCI}, {IMAGE} and {REGISTRY}"
        )
    if keys:
        raise click.UsageError(f"--output {text!r}: {min(keys)} is unknown")
    if kind in _WRITTEN and push:
        raise click.UsageError(f"--output {text!r}: push goes with type={IMAGE}")
    if kind in _WRITTEN and not dest:
        if kind == LOCAL:
            raise click.UsageError(f"--output {text!r}: needs a destination, dest=DIR")
        dest = "-"
    if kind == LOCAL and dest == "-":
        raise click.UsageError(f"--output {text!r}: a folder cannot go to stdout; use type={TAR}")
    if dest == "-" and sys.stdout.isatty():
        raise click.UsageError("cannot write an archive to a terminal; use dest=FILE or a pipe")
    return Output(kind, dest, push)


def write_outputs(client: Client, image: str, outputs: Sequence[Output], *, quiet: bool) -> None:
    """Write an image, by its id or name, as the outputs say. Raises CliError."""
    written = [each for each in outputs if each.kind in _WRITTEN]
    if not written:
        return
    with tempfile.TemporaryFile() as archive:
        pieces = client.stream("Images.Save", images_pb2.SaveImageRequest(images=[image]))
        for piece in metered((each.data for each in pieces), "fetching the image", quiet=quiet):
            archive.write(piece)
        for output in written:
            archive.seek(0)
            try:
                _write(archive, output)
            except (OSError, tarfile.TarError) as error:
                reason = getattr(error, "strerror", None) or error
                raise CliError(f"cannot write {output.dest}: {str(reason).lower()}") from None


def _write(archive: BinaryIO, output: Output) -> None:
    if output.kind == LOCAL:
        with tempfile.TemporaryFile() as files:
            flatten(archive, files)
            files.seek(0)
            Path(output.dest).mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=files) as tar:
                tar.extractall(output.dest, members=_creatable(tar), filter="tar")
        return
    if output.dest == "-":
        _fill(archive, sys.stdout.buffer, output.kind)
        sys.stdout.buffer.flush()
        return
    target = Path(output.dest)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            _fill(archive, file, output.kind)
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)


def _fill(archive: BinaryIO, target: BinaryIO, kind: str) -> None:
    # What is saved is an OCI layout that has Docker's manifest, too.
    if kind == TAR:
        flatten(archive, target)
        return
    while piece := archive.read(1 << 20):
        target.write(piece)


def _creatable(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Skip devices, which only root can create."""
    return (entry for entry in tar if os.geteuid() == 0 or not entry.isdev())


def flatten(archive: BinaryIO, target: BinaryIO) -> None:
    """Write the files of a saved image, all its layers together, as a tar.

    Layers as in https://github.com/opencontainers/image-spec/blob/main/layer.md.
    """
    with tarfile.open(fileobj=archive, mode="r:") as saved:
        manifest = saved.extractfile("manifest.json")
        assert manifest is not None
        names: list[str] = json.load(manifest)[0]["Layers"]
        kept = _visible_entries([_entries(saved, name) for name in names])
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as files:
            for name, numbers in zip(names, kept, strict=True):
                with _layer(saved, name) as layer:
                    _copy(layer, numbers, files)


def _copy(layer: tarfile.TarFile, numbers: set[int], files: tarfile.TarFile) -> None:
    entries = layer.getmembers()
    paths = {_path(entries[number].name) for number in numbers}
    for number, entry in enumerate(entries):
        if number not in numbers:
            continue
        if entry.islnk() and _path(entry.linkname) not in paths:
            # The target of the link is hidden by an upper layer.
            source = layer.getmember(entry.linkname)
        else:
            source = entry
        found = copy.copy(source)
        found.name = _path(entry.name)
        found.pax_headers = {k: v for k, v in source.pax_headers.items() if k not in _OF_ENTRY}
        content = layer.extractfile(source) if source.isreg() else None
        files.addfile(found, content)


def _layer(saved: tarfile.TarFile, name: str) -> tarfile.TarFile:
    file = saved.extractfile(name)
    assert file is not None
    return tarfile.open(fileobj=file, mode="r:*")


def _entries(saved: tarfile.TarFile, name: str) -> list[tuple[str, bool]]:
    """Path of each entry of a layer, and whether it is a folder."""
    with _layer(saved, name) as layer:
        return [(_path(entry.name), entry.isdir()) for entry in layer]


def _path(name: str) -> str:
    return posixpath.normpath(f"/{name}").lstrip("/") or "."


def _visible_entries(layers: Sequence[Sequence[tuple[str, bool]]]) -> list[set[int]]:
    """For each layer, lowest first, the indexes of the entries that no upper layer hides."""
    kept: list[set[int]] = []
    seen: dict[str, bool] = {}
    hidden: set[str] = set()
    for entries in reversed(layers):
        numbers: dict[str, int] = {}
        above, hides = dict(seen), set[str]()
        for number, (path, _) in enumerate(entries):
            folder, base = posixpath.split(path)
            if base == _HIDES_ALL:
                hides.add(f"{folder}/")
            elif base.startswith(_HIDES):
                hides.add(posixpath.join(folder, base.removeprefix(_HIDES)))
            elif path not in above and not _is_hidden(path, above, hidden):
                numbers[path] = number
        for path, number in numbers.items():
            seen[path] = entries[number][1]
        hidden |= hides
        kept.append(set(numbers.values()))
    return kept[::-1]


def _is_hidden(path: str, above: dict[str, bool], hidden: set[str]) -> bool:
    """Whether upper layers hide it or a parent folder."""
    if path in hidden:
        return True
    folder = posixpath.dirname(path)
    while folder:
        if folder in hidden or f"{folder}/" in hidden or above.get(folder, True) is False:
            return True
        folder = posixpath.dirname(folder)
    return "/" in hidden


def is_stored(outputs: Sequence[Output]) -> bool:
    """Whether the image is also stored in the cluster."""
    return not outputs or any(each.kind not in _WRITTEN for each in outputs)


def remove_unnamed(client: Client, image: Any) -> None:
    """Remove an image that was built only for an output."""
    client.call("Images.Remove", images_pb2.RemoveImageRequest(image=image.id))
