# SPDX-License-Identifier: Apache-2.0
"""Trees of files to and from a tar, by Docker's rules of copying.

A client uses this on files of its own; a node does in the root of a container (`agent/copier.py`),
where no module can be imported any more: so it is of the standard library alone, and imports all
at its start. What comes out of a container is not trusted, so nothing is ever made through a
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
"""Bytes of a header of a tar's entry: a name, extended attributes."""
XATTR = "SCHILY.xattr."
"""What the names of extended attributes begin with in a PAX header."""
_OF_THE_HOST = ("security.selinux", "security.ima", "security.evm", "security.SMACK", "trusted.")
"""What a host's kernel gives its files, and a copy elsewhere does not miss."""
# The client packs also where these do not exist (Windows).
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFELY
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
"""Entries that are no files but belong to the next one."""


_open_tar: Any = tarfile.open
"""With streams that only read or only write, which is all that it asks of them here."""


class CannotCopy(Exception):
    """Why not, in one line for the user."""


class Reader(Protocol):
    """Where a tar comes from."""

    def read(self, size: int, /) -> bytes: ...


class Writer(Protocol):
    """Where a tar goes."""

    def write(self, data: bytes, /) -> object: ...


def source(path: str, follow: bool) -> tuple[str, str, bool]:
    """What to copy: its path, the name that a tar's entries of it begin with, whether it is a
    folder. `FOLDER/.` is what is in it; a link is itself, unless it is to be followed.

    Raises CannotCopy.
    """
    inside = path in ("", ".", "/") or path.endswith(("/.", "/.."))
    if follow or path.endswith("/"):
        path = os.path.realpath(path)
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError as error:
        raise CannotCopy(f"{path}: {words(error)}") from None
    return path, "." if inside else os.path.basename(path.rstrip("/")), is_folder


def pack(path: str, top: str, out: Writer) -> None:
    """Write the file or folder at `path` as a tar whose entries begin with `top`."""
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
                continue  # it went meanwhile
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
    """The entry `name` of the file at `place`; None for a socket, which a tar cannot hold, and for
    a link that has been replaced since `status` was read.

    `inodes` has the entries of files with several names, and gets this one's.
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
    """Extended attributes as a tar has them."""
    if not hasattr(os, "listxattr"):
        return  # Python has it on Linux alone
    try:
        keys = os.listxattr(place, follow_symlinks=False)
    except OSError:
        return  # a file system without them
    for key in keys:
        with suppress(OSError):  # it went meanwhile, or is not for us to see
            value = os.getxattr(place, key, follow_symlinks=False)
            yield XATTR + key, value.decode("utf-8", "surrogateescape")


def add_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, place: str) -> None:
    """Write an entry, with the content of the file at `place`; nothing if it is gone, or is no
    regular file any more."""
    if entry.isreg():
        try:
            fd = os.open(place, os.O_RDONLY | _NONBLOCK | _SAFELY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return
            raise
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                archive.addfile(entry, _Exactly(file))  # type: ignore[arg-type]
    else:
        archive.addfile(entry)
    # tarfile keeps every entry: memory must not grow with the number of files.
    archive.members = []  # type: ignore[attr-defined]


class _Exactly:
    """A file that may shrink while it is read: then zeros follow."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size).ljust(size, b"\0")


def target(path: str, top: str, is_folder: bool) -> tuple[str, str]:
    """Where a tar with the entry `top` goes: an existing folder, and the entry's new name in it.

    `top` empty: any tar, for a folder that exists. Raises CannotCopy.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    except OSError as error:
        raise CannotCopy(f"{path}: {words(error)}") from None
    if there is not None and stat.S_ISDIR(there.st_mode):
        return os.path.realpath(path), top
    if not top:
        raise CannotCopy(f"{path} is no folder to unpack a tar in")
    if there is not None:
        if is_folder:
            raise CannotCopy(f"{path} is a file, and a folder cannot be copied to it")
        path = os.path.realpath(path)
    elif path.endswith("/") and not is_folder:
        raise CannotCopy(f"there is no folder {path}; make it first")
    parent, name = os.path.split(path.rstrip("/"))
    parent = os.path.realpath(parent or ".")
    if not os.path.isdir(parent):
        raise CannotCopy(f"there is no folder {parent}; make it first")
    return parent, name


class Owner:
    """To whom what is unpacked belongs."""

    def __init__(self, keep: bool, ids: tuple[int, int] | None = None) -> None:
        """`keep`: the owner in the tar, else the user who unpacks it; `ids`: always these."""
        self._keep, self._ids = keep, ids

    def of(self, entry: tarfile.TarInfo) -> tuple[int, int]:
        """User and group; -1: leave it."""
        return self._ids or ((entry.uid, entry.gid) if self._keep else (-1, -1))


class _Lost:
    """Extended attributes that could not be set."""

    def __init__(self) -> None:
        self._files = 0
        self._first = ""

    def add(self, file: str, key: str, error: OSError) -> None:
        """One could not be set on a file, as the first of it."""
        self._files += 1
        self._first = self._first or f"{file}: {key}: {words(error)}"

    def __str__(self) -> str:
        if not self._files:
            return ""
        files = "1 file" if self._files == 1 else f"{self._files} files"
        return f"extended attributes of {files} were not kept ({self._first})"


def unpack(archive_source: Reader, folder: str, top: str, name: str, owner: Owner) -> str:
    """Unpack a tar into a folder, its entry `top` (if not empty) under another name. Returns, in
    one line for the user, which extended attributes the file system or the kernel has refused;
    empty if none.

    Raises CannotCopy, OSError.
    """
    lost = _Lost()
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    times: list[tuple[list[str], float]] = []
    try:
        with _open_tar(
            fileobj=archive_source,
            mode="r|",
            bufsize=CHUNK,
            encoding="utf-8",
            errors="surrogateescape",
            tarinfo=_Bounded,
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
        raise CannotCopy(f"that is no tar: {error}") from None
    finally:
        os.close(root)
    return str(lost)


class _Bounded(tarfile.TarInfo):
    """Entries whose headers are read into memory only if they are of a sane size."""

    # tarfile's own entry point for subclasses, of all headers in all versions.
    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.type in _HEADERS and self.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


def _parts(name: str, top: str, new: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise CannotCopy(f"{name} leads out of the folder")
    if top == ".":
        return ([new] if new not in (".", "") else []) + parts
    if top and parts and parts[0] == top:
        return [new, *parts[1:]]
    return parts


@contextmanager
def _folder_of(root: int, parts: list[str], make: bool) -> Iterator[int]:
    """The folder of a file below `root`, never through a link."""
    here = os.dup(root)
    try:
        for part in parts[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=here)
            try:
                inner = os.open(part, _FOLDER, dir_fd=here)
            except OSError as error:
                raise CannotCopy(f"{'/'.join(parts[:-1])} is no folder: {words(error)}") from None
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
    lost: _Lost,
    locate: Callable[[str], list[str]],
) -> None:
    if not parts:
        return
    with _folder_of(root, parts, make=True) as folder:
        name, there = parts[-1], _kind(parts[-1], folder)
        shown = "/".join(parts)
        if entry.isdir():
            if there not in (0, stat.S_IFDIR):
                raise CannotCopy(f"{shown} is a file, and a folder cannot take its place")
            if not there:
                os.mkdir(name, 0o700, dir_fd=folder)
        else:
            if there == stat.S_IFDIR:
                raise CannotCopy(f"{shown} is a folder, and a file cannot take its place")
            if there:
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
        _dress(entry, name, folder, owner, lost)


def _kind(name: str, folder: int) -> int:
    try:
        return stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return 0


def _make_file(archive: tarfile.TarFile, entry: tarfile.TarInfo, name: str, folder: int) -> None:
    if entry.isreg():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFELY
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
        raise CannotCopy(f"{entry.name} is of a kind that a tar of files does not have")


def _dress(entry: tarfile.TarInfo, name: str, folder: int, owner: Owner, lost: _Lost) -> None:
    uid, gid = owner.of(entry)
    if (uid, gid) != (-1, -1):
        os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
    # After the owner, whose change takes capabilities away; before the mode, which may forbid it.
    _set_attributes(entry, name, folder, lost)
    if not entry.issym():
        os.chmod(name, entry.mode & 0o7777, dir_fd=folder)
    times = (entry.mtime, entry.mtime)
    os.utime(name, times, dir_fd=folder, follow_symlinks=False)


def _set_attributes(entry: tarfile.TarInfo, name: str, folder: int, lost: _Lost) -> None:
    attributes = {
        key[len(XATTR) :]: value.encode("utf-8", "surrogateescape")
        for key, value in entry.pax_headers.items()
        if key.startswith(XATTR)
    }
    # By descriptor, not by /proc/self/fd: a container's procfs does not show this process.
    # What cannot be opened without a consequence, such as a device, keeps none.
    if not attributes or not (entry.isreg() or entry.isdir()):
        return
    flags = os.O_RDONLY | _NONBLOCK | _SAFELY
    file = os.open(name, flags, dir_fd=folder)
    complained = False
    try:
        for key, value in attributes.items():
            try:
                os.setxattr(file, key, value)
            except OSError as error:
                if not complained and not key.startswith(_OF_THE_HOST):
                    lost.add(entry.name, key, error)
                    complained = True
    finally:
        os.close(file)


def words(error: OSError) -> str:
    """What the system refused, for the user."""
    return (error.strerror or str(error)).lower()
