# SPDX-License-Identifier: Apache-2.0
"""A folder as the tar stream of a build's context, without files that `.dockerignore` excludes.

Made piece by piece, so that a context of any size takes little memory. Owners are root and
entries sorted, so that the same folder is the same stream. The rules of `.dockerignore` are those
of https://docs.docker.com/build/concepts/context/#dockerignore-files.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 256 << 10
"""Bytes of a file read at a time, and so the size of most messages."""

MAX_DOCKERFILE = 1 << 20
"""Maximum bytes of a Dockerfile: it is sent in one message."""

_UNREADABLE = (
    *(tarfile.TarError, OSError, EOFError, KeyError, ValueError),
    *(zlib.error, lzma.LZMAError),
)
"""What reading an archive can raise that is damaged."""

END = bytes(2 * tarfile.BLOCKSIZE)
"""The end of a tar, and all of one with nothing in it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of `.dockerignore`."""

    pattern: re.Pattern[str]
    keep: bool
    """It began with `!`: a match is included again."""


def parse_rules(text: str) -> list[Rule]:
    """The rules of a `.dockerignore`. Raises ValueError for a pattern with bad syntax."""
    rules = []
    for raw in text.removeprefix("\ufeff").splitlines():
        line = raw.strip()
        if not line or raw.startswith("#"):
            continue
        keep = line.startswith("!")
        if line == "!":
            raise ValueError(".dockerignore has a '!' without a pattern")
        pattern = os.path.normpath(line.removeprefix("!").strip()).lstrip("/")
        if pattern in ("", "."):
            continue
        try:
            rules.append(Rule(re.compile(_regex(pattern)), keep))
        except re.error:
            raise ValueError(f".dockerignore has the invalid pattern {line!r}") from None
    return rules


def is_ignored(path: str, rules: Sequence[Rule]) -> bool:
    """Whether a path, relative and with `/`, is left out: the last rule that matches it or a
    folder above it decides."""
    parts = path.split("/")
    prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    ignored = False
    for rule in rules:
        # Only a rule that would change the outcome need be tried.
        if rule.keep == ignored and any(map(rule.pattern.fullmatch, prefixes)):
            ignored = not rule.keep
    return ignored


def _regex(pattern: str) -> str:
    result, rest = "", pattern
    while rest:
        if rest.startswith("**/"):
            result, rest = result + "(?:.*/)?", rest[3:]
        elif rest.startswith("**"):
            result, rest = result + ".*", rest[2:]
        elif rest[0] == "*":
            result, rest = result + "[^/]*", rest[1:]
        elif rest[0] == "?":
            result, rest = result + "[^/]", rest[1:]
        elif rest[0] == "[" and "]" in rest[1:]:
            inside, _, rest = rest[1:].partition("]")
            result += f"[{inside}]"
        elif rest[0] == "\\" and len(rest) > 1:
            result, rest = result + re.escape(rest[1]), rest[2:]
        else:
            result, rest = result + re.escape(rest[0]), rest[1:]
    return result


def rule_files(folder: Path, dockerfile: Path) -> tuple[Path, Path]:
    """Where the rules for a Dockerfile may be, the first that exists counts."""
    return dockerfile.with_name(f"{dockerfile.name}.dockerignore"), folder / ".dockerignore"


def read_rules(folder: Path, dockerfile: Path) -> list[Rule]:
    """The rules for a Dockerfile: of a file beside it that is called as it is, and
    `.dockerignore`; else of the folder's `.dockerignore`; none without either."""
    for file in rule_files(folder, dockerfile):
        try:
            return parse_rules(file.read_text())
        except FileNotFoundError:
            continue
    return []


def stream(folder: Path, rules: Sequence[Rule], *, timeless: bool = False) -> Iterator[bytes]:
    """The tar of a build's context, in pieces; `timeless`: whenever its files were written. Raises
    OSError for what cannot be read."""
    for path, entry in _walk(folder, rules):
        yield from _member(entry, path, timeless)
    yield END


def archived_dockerfile(archive: BinaryIO, names: Sequence[str]) -> bytes:
    """The content of the first of these files that a tar has; empty without any, and for an archive
    that cannot be read here, which the node reports."""
    archive.seek(0)
    found: dict[str, bytes] = {}
    with suppress(*_UNREADABLE), tarfile.open(fileobj=archive) as members:
        for member in members:
            name = member.name.removeprefix("./")
            if name in names and member.size <= MAX_DOCKERFILE:
                content = members.extractfile(member)
                found[name] = content.read() if content is not None else b""
    return next((found[name] for name in names if name in found), b"")


def pieces(source: BinaryIO, head: bytes = b"") -> Iterator[bytes]:
    """What a file has, after `head`, which was read from it already."""
    if head:
        yield head
    while data := source.read(CHUNK):
        yield data


def _walk(folder: Path, rules: Sequence[Rule], prefix: str = "") -> Iterator[tuple[str, Path]]:
    """(path in the stream, file) of all that is sent, a folder before what is in it."""
    # An excluded folder is entered only if a pattern may include files in it again.
    exceptions = any(rule.keep for rule in rules)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, file = prefix + entry.name, Path(entry.path)
        included = not is_ignored(path, rules)
        if included:
            yield path, file
        if entry.is_dir(follow_symlinks=False) and (included or exceptions):
            for inner in _walk(file, rules, f"{path}/"):
                if not included:
                    yield path, file
                    included = True
                yield inner


def _member(source: Path, path: str, timeless: bool) -> Iterator[bytes]:
    status = source.lstat()
    info = tarfile.TarInfo(path)
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = 0 if timeless else int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(source)
    elif not stat.S_ISREG(status.st_mode):
        return  # sockets, pipes and devices are skipped
    else:
        info.size = status.st_size
    if info.type != tarfile.REGTYPE:
        yield _header(info)
        return
    with source.open("rb") as file:
        yield _header(info)
        yield from _content(file, info.size)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes and their padding, even if the file is modified while it is read."""
    left = size
    while left:
        data = file.read(min(CHUNK, left))
        if not data:
            break
        left -= len(data)
        yield data
    padding = left + (-size % tarfile.BLOCKSIZE)
    while padding:
        zeros = min(CHUNK, padding)
        yield b"\0" * zeros
        padding -= zeros
