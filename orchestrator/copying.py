# SPDX-License-Identifier: Apache-2.0
"""Packing and unpacking of file trees as tar archives, by the rules of `docker cp`.

Used by the client on its own files, and on nodes by `agent.streams.copy_program` in the root of a
container, where no module can be imported: so it uses the standard library only and imports
everything at the start. Archives from containers are not trusted: nothing is ever created through a
symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Protocol

CHUNK = 1 << 18
MAX_HEADER = 1 << 20
"""Maximum size in bytes of the extended header of an entry: its name and attributes."""
XATTR = "SCHILY.xattr."
"""Prefix of extended attributes in PAX headers."""
_HOST_ATTRIBUTES = (
    "security.selinux",
    "security.ima",
    "security.evm",
    "security.SMACK",
    "trusted.",
)
"""Attributes that a host's kernel assigns; losing them in a copy is not reported."""
# These do not exist on Windows, where the client packs, too.
_SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFE_FLAGS
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}
_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
"""Entries that are not files but headers of the next one."""


_open_tar: Any = tarfile.open
"""Untyped, as streams that only read or only write are sufficient here."""


class CopyError(Exception):
    """A copy failed; the text is one line for the user."""


class Reader(Protocol):
    """Source of an archive."""

    def read(self, size: int, /) -> bytes: ...


class Writer(Protocol):
    """Destination of an archive."""

    def write(self, data: bytes, /) -> object: ...


def source(path: str, follow: bool) -> tuple[str, str, bool]:
    """Resolve a source path: its path, the top-level name of its entries in the archive, and
    whether it is a folder. `FOLDER/.` means its content; a link is copied as a link unless
    `follow`.

    Raises CopyError.
    """
    inside = path in ("", ".", "/") or path.endswith(("/.", "/.."))
    if follow or path.endswith("/"):
        path = os.path.realpath(path)
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        raise CopyError(f"{path}: {error_text(error)}") from None
    return path, "." if inside else os.path.basename(path.rstrip("/")), is_folder


def pack(path: str, top: str, out: Writer) -> None:
    """Write the file or folder at `path` as an archive whose entries begin with `top`."""
    inodes: dict[tuple[int, int], str] = {}
    with _open_tar(
        fileobj=out,
        mode="w|",
        format=tarfile.PAX_FORMAT,
        bufsize=CHUNK,
        encoding="utf-8",
        errors="surrogateescape",
    ) as archive:
        waiting = [(path, top)]
        while waiting:
            place, name = waiting.pop()
            try:
                status = os.lstat(place)
            except FileNotFoundError:
                continue  # removed concurrently
            entry = tar_entry(place, name, status, inodes)
            if entry is None:
                continue
            add_entry(archive, entry, place)
            if entry.isdir():
                try:
                    names = sorted(os.listdir(place), reverse=True)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                waiting += [(os.path.join(place, n), f"{name}/{n}") for n in names]


def tar_entry(
    place: str, name: str, status: os.stat_result, inodes: dict[tuple[int, int], str]
) -> tarfile.TarInfo | None:
    """The entry `name` for the file at `place`; None for a socket, which an archive cannot contain,
    and for a link that was replaced after `status` was read.

    `inodes` maps files with several links to their entries and is updated.
    """
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        return None
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid, entry.mtime = status.st_uid, status.st_gid, status.st_mtime
    inode = (status.st_dev, status.st_ino)
    if status.st_nlink > 1 and kind != tarfile.DIRTYPE:
        if inode in inodes:
            entry.type, entry.linkname = tarfile.LNKTYPE, inodes[inode]
            return entry
        inodes[inode] = name
    if kind == tarfile.REGTYPE:
        entry.size = status.st_size
    elif kind == tarfile.SYMTYPE:
        try:
            entry.linkname = os.readlink(place)
        except OSError:
            return None
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    entry.pax_headers = dict(_attributes(place))
    return entry


def _attributes(place: str) -> Iterator[tuple[str, str]]:
    """A file's extended attributes as PAX headers."""
    if not hasattr(os, "listxattr"):
        return  # Linux only
    try:
        keys = os.listxattr(place, follow_symlinks=False)
    except OSError:
        return  # not supported by the file system
    for key in keys:
        with suppress(OSError):  # removed concurrently, or not permitted
            value = os.getxattr(place, key, follow_symlinks=False)
            yield XATTR + key, value.decode("utf-8", "surrogateescape")


def add_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, place: str) -> None:
    """Write an entry with the content of the file at `place`; nothing if the file was removed or
    replaced."""
    if entry.isreg():
        try:
            fd = os.open(place, os.O_RDONLY | _NONBLOCK | _SAFE_FLAGS)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return
            raise
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                archive.addfile(entry, _ZeroPadded(file))  # type: ignore[arg-type]
    else:
        archive.addfile(entry)
    # tarfile keeps all entries: memory must not grow with the number of files.
    archive.members = []  # type: ignore[attr-defined]


class _ZeroPadded:
    """Reads a file that may shrink meanwhile; missing bytes are read as zeros."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(size, b"\0")


def target(path: str, top: str, is_folder: bool) -> tuple[str, str]:
    """The destination of an archive with the top-level entry `top`: an existing folder, and the
    entry's name in it.

    With an empty `top`, any archive for an existing folder. Raises CopyError.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise CopyError(f"{path}: {error_text(error)}") from None
    if status is not None and stat.S_ISDIR(status.st_mode):
        return os.path.realpath(path), top
    if not top:
        raise CopyError(f"{path} is not a folder")
    if status is not None:
        if is_folder:
            raise CopyError(f"cannot copy a folder to the file {path}")
        path = os.path.realpath(path)
    elif path.endswith("/") and not is_folder:
        raise CopyError(f"folder {path} does not exist")
    parent, name = os.path.split(path.rstrip("/"))
    parent = os.path.realpath(parent or ".")
    if not os.path.isdir(parent):
        raise CopyError(f"folder {parent} does not exist")
    return parent, name


class Owner:
    """Owner of unpacked files."""

    def __init__(self, keep: bool, ids: tuple[int, int] | None = None) -> None:
        """`keep`: the owner in the archive, else the calling user; `ids` overrides both."""
        self._keep, self._ids = keep, ids

    def of(self, entry: tarfile.TarInfo) -> tuple[int, int]:
        """User and group of an entry; -1: unchanged."""
        return self._ids or ((entry.uid, entry.gid) if self._keep else (-1, -1))


class _LostAttributes:
    """Extended attributes that could not be set."""

    def __init__(self) -> None:
        self._files = 0
        self._first = ""

    def add(self, file: str, key: str, error: OSError) -> None:
        """Record a failure; called once per file."""
        self._files += 1
        self._first = self._first or f"{file}: {key}: {error_text(error)}"

    def __str__(self) -> str:
        if not self._files:
            return ""
        files = "1 file" if self._files == 1 else f"{self._files} files"
        return f"extended attributes of {files} were not kept ({self._first})"


def unpack(archive_source: Reader, folder: str, top: str, name: str, owner: Owner) -> str:
    """Unpack an archive into a folder, its entry `top` (if not empty) under another name. Returns a
    line for the user about extended attributes that the file system or kernel rejected, else an
    empty string.

    Raises CopyError, OSError.
    """
    lost = _LostAttributes()
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    times: list[tuple[list[str], float]] = []
    try:
        with _open_tar(
            fileobj=archive_source,
            mode="r|",
            bufsize=CHUNK,
            encoding="utf-8",
            errors="surrogateescape",
            tarinfo=_BoundedHeaders,
        ) as archive:
            for entry in archive:
                archive.members = []  # see add_entry
                parts = _parts(entry.name, top, name)
                _make(
                    archive, entry, root, parts, owner, lost, lambda link: _parts(link, top, name)
                )
                if entry.isdir() and parts:
                    times.append((parts, entry.mtime))
        for parts, mtime in reversed(times):
            with _folder_of(root, [*parts, ""], make=False) as fd:
                os.utime(fd, (mtime, mtime))
    except tarfile.TarError as error:
        raise CopyError(f"invalid tar archive: {error}") from None
    finally:
        os.close(root)
    return str(lost)


class _BoundedHeaders(tarfile.TarInfo):
    """Limits the size of extended headers, which tarfile reads into memory."""

    # tarfile's hook for subclasses, called for all headers in all versions.
    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"header too large: {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _parts(name: str, top: str, new: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CopyError(f"{name} is outside of the folder")
    if top == ".":
        return ([new] if new not in (".", "") else []) + parts
    if top and parts and parts[0] == top:
        return [new, *parts[1:]]
    return parts


@contextmanager
def _folder_of(root: int, parts: list[str], make: bool) -> Iterator[int]:
    """A descriptor of the folder of a file below `root`, resolved without following links."""
    here = os.dup(root)
    try:
        for part in parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            try:
                inner = os.open(part, _FOLDER, dir_fd=here)
            except OSError as error:
                raise CopyError(
                    f"{'/'.join(parts[:-1])} is not a folder: {error_text(error)}"
                ) from None
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)


def _make(
    archive: tarfile.TarFile,
    entry: tarfile.TarInfo,
    root: int,
    parts: list[str],
    owner: Owner,
    lost: _LostAttributes,
    locate: Callable[[str], list[str]],
) -> None:
    if not parts:
        return
    with _folder_of(root, parts, make=True) as folder:
        name, existing = parts[-1], _kind(parts[-1], folder)
        shown = "/".join(parts)
        if entry.isdir():
            if existing not in (0, stat.S_IFDIR):
                raise CopyError(f"cannot replace the file {shown} with a folder")
            if not existing:
                os.mkdir(name, 0o700, dir_fd=folder)
        else:
            if existing == stat.S_IFDIR:
                raise CopyError(f"cannot replace the folder {shown} with a file")
            if existing:
                os.unlink(name, dir_fd=folder)
            if entry.islnk():
                other = locate(entry.linkname)
                with _folder_of(root, other, make=False) as origin:
                    os.link(
                        other[-1], name, src_dir_fd=origin, dst_dir_fd=folder,
                        follow_symlinks=False,
                    )  # fmt: skip
                return
            _make_file(archive, entry, name, folder)
        _set_metadata(entry, name, folder, owner, lost)


def _kind(name: str, folder: int) -> int:
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def _make_file(archive: tarfile.TarFile, entry: tarfile.TarInfo, name: str, folder: int) -> None:
    if entry.isreg():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE_FLAGS
        with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
            content = archive.extractfile(entry)
            assert content is not None
            while data := content.read(CHUNK):
                file.write(data)
    elif entry.issym():
        os.symlink(entry.linkname, name, dir_fd=folder)
    elif entry.isfifo():
        os.mkfifo(name, 0o600, dir_fd=folder)
    elif entry.ischr() or entry.isblk():
        kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
        device = os.makedev(entry.devmajor, entry.devminor)
        os.mknod(name, kind | 0o600, device, dir_fd=folder)
    else:
        raise CopyError(f"{entry.name} has an unsupported type")


def _set_metadata(
    entry: tarfile.TarInfo, name: str, folder: int, owner: Owner, lost: _LostAttributes
) -> None:
    uid, gid = owner.of(entry)
    if (uid, gid) != (-1, -1):
        os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
    # After the owner, as chown clears capabilities; before the mode, which may prevent it.
    _set_attributes(entry, name, folder, lost)
    if not entry.issym():
        os.chmod(name, entry.mode & 0o7777, dir_fd=folder)
    times = (entry.mtime, entry.mtime)
    os.utime(name, times, dir_fd=folder, follow_symlinks=False)


def _set_attributes(entry: tarfile.TarInfo, name: str, folder: int, lost: _LostAttributes) -> None:
    attributes = {
        key[len(XATTR) :]: value.encode("utf-8", "surrogateescape")
        for key, value in entry.pax_headers.items()
        if key.startswith(XATTR)
    }
    # By descriptor, not by /proc/self/fd: a container's procfs does not show this process.
    # Devices and the like, which cannot be opened without side effects, get none.
    if not attributes or not (entry.isreg() or entry.isdir()):
        return
    flags = os.O_RDONLY | _NONBLOCK | _SAFE_FLAGS
    file = os.open(name, flags, dir_fd=folder)
    reported = False
    try:
        for key, value in attributes.items():
            try:
                os.setxattr(file, key, value)
            except OSError as error:
                if not reported and not key.startswith(_HOST_ATTRIBUTES):
                    lost.add(entry.name, key, error)
                    reported = True
    finally:
        os.close(file)


def error_text(error: OSError) -> str:
    """The text of an OSError, in lower case."""
    return (error.strerror or str(error)).lower()
