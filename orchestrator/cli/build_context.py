"""A folder as the tar stream of a build's context, without what `.dockerignore` names.

Made piece by piece, so that a context of any size takes little memory. Owners are root and
entries sorted, so that the same folder is the same stream. The rules of `.dockerignore` are those
of https://docs.docker.com/build/concepts/context/#dockerignore-files.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

CHUNK = 256 << 10
"""Bytes of a file that are read at a time, and so the size of most messages."""

OUTSIDE = ".orc.Dockerfile"
"""Name in the stream of a Dockerfile that is not in the context."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of `.dockerignore`."""

    pattern: re.Pattern[str]
    keep: bool
    """It began with `!`: what matches is sent after all."""


def parse_rules(text: str) -> list[Rule]:
    """The rules of a `.dockerignore`. Raises ValueError for a pattern with bad syntax."""
    rules = []
    for raw in text.removeprefix("\ufeff").splitlines():
        line = raw.strip()
        if not line or raw.startswith("#"):
            continue
        keep = line.startswith("!")
        pattern = os.path.normpath(line.removeprefix("!").strip()).lstrip("/")
        if pattern in ("", "."):
            continue
        try:
            rules.append(Rule(re.compile(_regex(pattern)), keep))
        except re.error:
            raise ValueError(f".dockerignore has the bad pattern {line!r}") from None
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


def read_rules(folder: Path) -> list[Rule]:
    """The rules of a folder; none if it has no `.dockerignore`."""
    try:
        return parse_rules((folder / ".dockerignore").read_text())
    except FileNotFoundError:
        return []


def dockerfile_name(folder: Path, dockerfile: Path) -> str:
    """What a Dockerfile is called inside the stream."""
    try:
        return dockerfile.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return OUTSIDE


def stream(folder: Path, dockerfile: Path) -> Iterator[bytes]:
    """The tar of a build's context, in pieces. Raises OSError for what cannot be read."""
    name = dockerfile_name(folder, dockerfile)
    for path, entry in _walk(folder, read_rules(folder), {name, ".dockerignore"}):
        yield from _member(entry, path)
    if name == OUTSIDE:
        yield from _member(dockerfile, name)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _walk(
    folder: Path, rules: Sequence[Rule], always: set[str], prefix: str = ""
) -> Iterator[tuple[str, Path]]:
    """(path in the stream, file) of all that is sent; `always` is sent whatever the rules say."""
    # An ignored folder need only be entered for what may be sent from it after all.
    exceptions = any(rule.keep for rule in rules)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = prefix + entry.name
        ignored = is_ignored(path, rules) and path not in always
        if not ignored:
            yield path, Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            continue
        wanted = any(PurePosixPath(path) in PurePosixPath(each).parents for each in always)
        if not ignored or exceptions or wanted:
            yield from _walk(Path(entry.path), rules, always, f"{path}/")


def _member(source: Path, path: str) -> Iterator[bytes]:
    status = source.lstat()
    info = tarfile.TarInfo(path)
    info.mode = stat.S_IMODE(status.st_mode)
    info.mtime = int(status.st_mtime)
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(source)
    elif not stat.S_ISREG(status.st_mode):
        return  # sockets, pipes and devices have no place in an image
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
    """Exactly `size` bytes and their padding, even if the file changes meanwhile."""
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
