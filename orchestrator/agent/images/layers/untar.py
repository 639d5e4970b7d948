# SPDX-License-Identifier: Apache-2.0
"""A program that verifies, decompresses and unpacks one layer, with its root in the target folder.

Arguments: FOLDER DIFF_ID LIMIT ENTRIES WHOLE PACKAGES; BLOB is its standard input (`bareprogram`).

Two processes, to use two cores: the first decompresses and hashes as the user nobody, since it
needs only its two open files; the second changes its root to FOLDER and makes the files of the tar.
From PACKAGES, a folder or empty, it imports `isal`, which inflates twice as fast as zlib. On
failure it prints one line and exits with status 1; the caller must then remove FOLDER.

BLOB may still grow. WHOLE is the descriptor of a pipe: a byte in it means that BLOB is complete,
and its end without one that the layer is not needed any more.

LIMIT is the maximum of bytes of the content, ENTRIES that of files and folders. For any input, both
processes use a bounded amount of memory: headers are limited, and the times of folders are kept in
a file. DIFF_ID `-` means a tar that is no layer (a build context): nothing is verified, and
whiteouts are ordinary names.

Layer rules: OCI image-spec, layer.md. Overlay's marks: kernel, filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from orchestrator.agent.images.layers.layercontent import (
    CHUNK,
    BadLayer,
    Blob,
    attempt,
    content,
    write_all,
)
from orchestrator.linux import libc
from orchestrator.linux.confine import limit_memory
from orchestrator.linux.trees import remove_tree

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_NOBODY = 65534
MAX_HEADER = 8 << 20
"""Maximum bytes of one file's headers: long names, extended attributes, holes. Far more than Linux
can store for any file."""
_LONG_HEADERS = f"the layer has a file with more than {MAX_HEADER >> 20} MiB of headers"
_LARGE = 64 << 20
"""Size of a file from which free disk space is checked first, in bytes."""
NO_SPACE = (
    "no space left on this node's disk for the image: remove unused images ('orc image prune'), or "
    "give it a larger disk"
)

_Made = TypeVar("_Made")


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Forward:
    """A pipe with the interface that tarfile needs: it has a position and can skip forward."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._header = MAX_HEADER

    def tell(self) -> int:
        return self._position

    def begin_header(self) -> None:
        """Start the header of the next file: reset its limit."""
        self._header = MAX_HEADER

    def read(self, size: int) -> bytes:
        """For tarfile, which reads only headers; their length is limited."""
        self._header -= size
        if self._header < 0:
            raise BadLayer(f"the layer has a file with more than {MAX_HEADER >> 20} MiB of headers")
        return self.read_content(size)

    def read_content(self, size: int) -> bytes:
        data = self._source.read(size)
        self._position += len(data)
        return data

    def seek(self, target: int) -> None:
        while self._position < target:
            if not self.read_content(min(CHUNK, target - self._position)):
                raise BadLayer("the layer ends in the middle of a file")


class Unpacker:
    """Makes files in the current root, where it may overwrite everything."""

    def __init__(self, layer: bool, entries: int) -> None:
        """`entries`: maximum number of files and folders."""
        self._layer = layer
        self._entries = self._left = entries
        self._times = _FolderTimes()

    def run(self, source: Source) -> None:
        """Unpack the whole tar and read the source to its end."""
        reader = Forward(source)
        try:
            archive = tarfile.TarFile(
                fileobj=reader,  # type: ignore[arg-type]
                encoding="utf-8",
                errors="surrogateescape",
            )
            member = archive.firstmember  # type: ignore[attr-defined]
            while member is not None:
                self._member(member, reader)
                reader.seek(archive.offset)
                reader.begin_header()
                if sum(map(len, archive.pax_headers.values())) > MAX_HEADER:
                    raise BadLayer(_LONG_HEADERS)
                try:
                    # Not next(), which treats a broken header as the end of the archive.
                    member = tarfile.TarInfo.fromtarfile(archive)
                except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                    member = None
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise BadLayer(f"the layer is not a valid tar: {error}") from error
        except RecursionError:
            raise BadLayer("the layer is not a valid tar: too many consecutive headers") from None
        # Last, since creating files in a folder changes its time.
        self._times.set()
        while reader.read_content(CHUNK):
            pass

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise BadLayer(
                f"the layer has more than {self._entries} files and folders, the most that this "
                "node unpacks"
            )

    def _member(self, member: tarfile.TarInfo, reader: Forward) -> None:
        self._count()
        path = os.path.normpath("/" + member.name).replace("//", "/")
        try:
            name = os.path.basename(path)
            if self._layer and name.startswith(_WHITEOUT):
                self._whiteout(os.path.dirname(path), name)
            elif path == "/" and not member.isdir():
                raise BadLayer("the layer's root is not a folder")
            else:
                self._make(path, member, reader)
        except OSError as error:
            if disk_is_full(error):
                raise BadLayer(NO_SPACE) from error
            raise BadLayer(f"cannot make {member.name!r}: {error.strerror}") from error

    def _make(self, path: str, member: tarfile.TarInfo, reader: Forward) -> None:
        mode = member.mode & 0o7777
        if member.isdir():
            self._folder(path)
        elif member.issym():
            self._place(path, lambda: os.symlink(member.linkname, path))
        elif member.islnk():
            target = os.path.normpath("/" + member.linkname).replace("//", "/")
            if target != path:
                self._place(path, lambda: os.link(target, path, follow_symlinks=False))
            return
        elif member.isfifo() or member.ischr() or member.isblk():
            kind = (
                stat.S_IFIFO
                if member.isfifo()
                else stat.S_IFCHR
                if member.ischr()
                else stat.S_IFBLK
            )
            device = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
            self._place(path, lambda: os.mknod(path, kind | 0o600, device))
        elif member.type in tarfile.REGULAR_TYPES or member.type == tarfile.GNUTYPE_SPARSE:
            self._file(path, member, reader)
            return
        else:
            raise BadLayer(f"{member.name!r} is of a kind that no layer has: {member.type!r}")
        time = _nanoseconds(member)
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, mode)
        self._xattrs(path, member)
        if member.isdir():
            self._times.add(path, time)
        else:
            os.utime(path, ns=(time, time), follow_symlinks=False)

    def _file(self, path: str, member: tarfile.TarInfo, reader: Forward) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        if member.size > _LARGE and member.sparse is None:
            _check_room(member.size)
        fd = self._place(path, lambda: os.open(path, flags, 0o600))
        try:
            # A sparse file lists the offsets of its data.
            pieces: Any = member.sparse if member.sparse is not None else [(0, member.size)]
            for offset, size in pieces:
                while size > 0:
                    data = reader.read_content(min(CHUNK, size))
                    if not data:
                        raise BadLayer(f"the layer ends in the middle of {member.name!r}")
                    size -= len(data)
                    view = memoryview(data)
                    while view:
                        written = os.pwrite(fd, view, offset)
                        offset += written
                        view = view[written:]
            if member.sparse is not None:
                os.ftruncate(fd, member.size)
            os.fchown(fd, member.uid, member.gid)
            os.fchmod(fd, member.mode & 0o7777)
            self._xattrs(fd, member)
            time = _nanoseconds(member)
            os.utime(fd, ns=(time, time))
        finally:
            os.close(fd)

    def _folder(self, path: str) -> None:
        try:
            os.mkdir(path, 0o755)
        except FileNotFoundError:
            self._parents(path)
            self._folder(path)
        except NotADirectoryError:
            self._parents(path)
            self._folder(path)
        except FileExistsError:
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(path)
                os.mkdir(path, 0o755)
                if self._layer and _is_whiteout(found):
                    # Removed and created again in this layer: hide the content of lower layers.
                    _make_opaque(path)

    def _place(self, path: str, make: Callable[[], _Made]) -> _Made:
        """Make a non-folder, replacing an earlier entry of the layer at this path."""
        try:
            return make()
        except (FileNotFoundError, NotADirectoryError):
            self._parents(path)
        except FileExistsError:
            remove_tree(path)
            return make()
        try:
            return make()
        except FileExistsError:
            remove_tree(path)
            return make()

    def _parents(self, path: str) -> None:
        """Make the parent folders of `path` that are not in the tar."""
        folder = ""
        for part in path.split("/")[1:-1]:
            folder += "/" + part
            try:
                if not stat.S_ISDIR(os.stat(folder).st_mode):
                    self._folder_in_place_of_whiteout(folder)
            except FileNotFoundError:
                self._count()
                os.mkdir(folder, 0o755)

    def _folder_in_place_of_whiteout(self, folder: str) -> None:
        if not (self._layer and _is_whiteout(os.lstat(folder))):
            raise BadLayer(f"{folder!r} is a file and a folder in one layer")
        self._folder(folder)

    def _whiteout(self, folder: str, name: str) -> None:
        self._parents(folder + "/x")
        if name == _OPAQUE:
            _make_opaque(folder)
        elif not name.startswith(_WHITEOUT + _WHITEOUT):  # others are AUFS metadata
            hidden = os.path.join(folder, name.removeprefix(_WHITEOUT))
            if os.path.basename(hidden) in ("", ".", ".."):
                raise BadLayer(f"{name!r} is a whiteout without a name")
            try:
                os.mknod(hidden, stat.S_IFCHR, 0)
                _hide_whiteouts(folder)
            except FileExistsError:
                # A whiteout concerns lower layers only: an entry of this layer is kept, and a
                # folder becomes opaque.
                if stat.S_ISDIR(os.lstat(hidden).st_mode):
                    _make_opaque(hidden)

    def _xattrs(self, target: str | int, member: tarfile.TarInfo) -> None:
        for key, text in member.pax_headers.items():
            if not key.startswith(_XATTR):
                continue
            name = key.removeprefix(_XATTR)
            if name.startswith("trusted.overlay."):
                continue  # these would control the overlay mount, not the file
            value = text.encode("utf-8", "surrogateescape")
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                # Labels of a security module or file system that this node lacks have no effect
                # here; a lost capability would make a program fail later.
                if name == "security.capability" or error.errno not in (
                    errno.ENOTSUP,
                    errno.EPERM,
                    errno.EINVAL,
                ):
                    raise


def disk_is_full(error: OSError) -> bool:
    """Whether the error means that the disk or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _make_opaque(folder: str) -> None:
    os.setxattr(folder, "trusted.overlay.opaque", b"y")


def _hide_whiteouts(folder: str) -> None:
    """Hide whiteouts in the folder's listings, also if no lower layer has it.

    The kernel filters whiteouts only in folders that it merged, in this mount or, as this attribute
    indicates, in an earlier one.
    """
    os.setxattr(folder, "trusted.overlay.origin", b"")


def is_opaque(folder: os.PathLike[str]) -> bool:
    """Whether a folder of a layer hides the same folder of lower layers."""
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


class _FolderTimes:
    """Modification times of folders, applied at the end. They are kept in an anonymous file, since
    their number is not bounded."""

    def __init__(self) -> None:
        name = "/.times"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(name, flags, 0o600), "w+b", buffering=CHUNK)
        os.unlink(name)

    def add(self, path: str, time: int) -> None:
        """Record a time; the last one of a path applies."""
        self._file.write(b"%d %s\0" % (time, os.fsencode(path)))

    def set(self) -> None:
        """Set the times of paths that are still folders."""
        self._file.seek(0)
        rest = b""
        while piece := self._file.read(CHUNK):
            *records, rest = (rest + piece).split(b"\0")
            for record in records:
                text, _, path = record.partition(b" ")
                with suppress(FileNotFoundError, NotADirectoryError):
                    if stat.S_ISDIR(os.lstat(path).st_mode):
                        os.utime(path, ns=(int(text), int(text)), follow_symlinks=False)
        self._file.close()


def _check_room(size: int) -> None:
    """Reject a file that exceeds the free disk space before it is written."""
    disk = os.statvfs("/")
    if size > disk.f_bavail * disk.f_frsize:
        raise BadLayer(NO_SPACE)


def _nanoseconds(member: tarfile.TarInfo) -> int:
    """The modification time. The PAX text is exact, tarfile's float is not."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 1_000_000_000
    whole, _, fraction = text.partition(".")
    part = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return int(whole or "0") * 1_000_000_000 + (-part if whole.startswith("-") else part)


def _feed(blob: Blob, pipe: int, diff_id: str, limit: int, parent: int) -> None:
    """Decompress to the pipe, and verify the digest at the end."""
    digest = hashlib.sha256()
    size = 0
    pieces = content(blob)
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise BadLayer(
                f"the layer unpacks to more than {limit >> 20} MiB, the most that this node takes "
                "(orc agent --max-layer-size)"
            )
        if os.getppid() != parent:
            raise BadLayer("the agent is gone")
        digest.update(piece)
        write_all(pipe, piece)
    found = f"sha256:{digest.hexdigest()}"
    if diff_id not in ("-", found):
        raise BadLayer(f"the layer's content is {found}, but the image's config says {diff_id}")


def _unpack(folder: str, pipe: int, layer: bool, entries: int) -> None:
    os.chroot(folder)
    os.chdir("/")
    with open(pipe, "rb", buffering=CHUNK) as source:
        Unpacker(layer, entries).run(source)


def _flush(folder: int) -> None:
    try:
        libc.syncfs(folder)
    except OSError as error:
        if disk_is_full(error):
            raise BadLayer(NO_SPACE) from error
        raise


def main(argv: list[str]) -> int:
    """Run the program; returns its exit status."""
    folder, diff_id, packages = argv[0], argv[1], argv[5]
    limit, entries, whole = (int(text) for text in argv[2:5])
    if packages:
        sys.path.append(packages)
    parent = os.getppid()
    os.umask(0)
    limit_memory()
    target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    outlet, inlet = os.pipe()
    fcntl.fcntl(inlet, fcntl.F_SETPIPE_SZ, CHUNK)
    child = os.fork()
    if child == 0:
        for descriptor in (inlet, 0, whole, target):
            os.close(descriptor)
        os._exit(attempt(lambda: _unpack(folder, outlet, diff_id != "-", entries)))
    os.close(outlet)
    status = attempt(lambda: _feed(Blob(0, whole), inlet, diff_id, limit, parent))
    os.close(inlet)
    status |= os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    if status == 0 and diff_id != "-":
        # One flush for all files of the layer, before it gets its final name.
        status = attempt(lambda: _flush(target))
    return status
