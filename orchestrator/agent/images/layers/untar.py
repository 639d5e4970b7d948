"""A program: verify, decompress and unpack one layer, with its root in the folder it fills.

Arguments: FOLDER DIFF_ID LIMIT ENTRIES WHOLE PACKAGES; BLOB is its standard input (`bareprogram`).

Two processes, so that both cores work: the first decompresses and hashes, as nobody, for it needs
no files but the two that are open; the second changes its root into FOLDER and makes what the tar
says. Of what is in PACKAGES, a folder or nothing, it takes `isal`, which inflates twice as fast as
zlib. On failure it prints one line and exits with status 1; FOLDER then holds rubbish that the
caller throws away.

BLOB may still grow. WHOLE is the descriptor of a pipe: a byte in it says that all of BLOB is there,
and its end without one that nobody needs the layer any more.

LIMIT is how many bytes the content may have, and ENTRIES how many files and folders. Whatever the
tar says, neither process takes more than a fixed amount of memory: headers have a limit, and what
must be remembered of folders is in a file. DIFF_ID `-` takes a tar that is no layer (a build
context): nothing is verified, and whiteouts are names like any other.

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
"""Bytes of all that describes one file: long names, extended attributes, the places of holes. Far
more than Linux can store of any file."""
_LONG_HEADERS = f"the layer has a file with more than {MAX_HEADER >> 20} MiB of headers"
_LARGE = 64 << 20
"""Bytes of a file from which on it is looked first whether the disk has room for it."""
NO_SPACE = (
    "no space left on this node's disk for the image: remove images there that nobody needs "
    "('orc image prune'), or give it a larger disk"
)

_Made = TypeVar("_Made")


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Forward:
    """A pipe as tarfile wants it: it knows its position and can skip ahead."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._header = MAX_HEADER

    def tell(self) -> int:
        return self._position

    def begin_header(self) -> None:
        """What `read` reads from now on belongs to the next file."""
        self._header = MAX_HEADER

    def read(self, size: int) -> bytes:
        """For tarfile, which reads headers alone: as long as they say that they are."""
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
    """Makes files in the current root, which must hold nothing that it may not overwrite."""

    def __init__(self, layer: bool, entries: int) -> None:
        """`entries`: how many files and folders there may be."""
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
                    # Not next(): that takes a broken header for the end of the archive.
                    member = tarfile.TarInfo.fromtarfile(archive)
                except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                    member = None
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise BadLayer(f"the layer is not a valid tar: {error}") from error
        except RecursionError:
            raise BadLayer("the layer is not a valid tar: a header follows a header") from None
        # Making files in a folder changes its time, so these come last.
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
            # A file whose holes were left out says where its pieces go.
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
                    # It was removed below and made anew here: nothing from below shows through.
                    _make_opaque(path)

    def _place(self, path: str, make: Callable[[], _Made]) -> _Made:
        """Make something that is no folder, in place of whatever the layer had there before."""
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
        """Make the folders above `path` that the tar has not listed."""
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
        elif not name.startswith(_WHITEOUT + _WHITEOUT):  # others are AUFS's own book-keeping
            hidden = os.path.join(folder, name.removeprefix(_WHITEOUT))
            if os.path.basename(hidden) in ("", ".", ".."):
                raise BadLayer(f"{name!r} removes nothing that has a name")
            try:
                os.mknod(hidden, stat.S_IFCHR, 0)
                _hide_whiteouts(folder)
            except FileExistsError:
                # A whiteout speaks of the layers below. What this layer has there stays, and a
                # folder no longer shows what is under it.
                if stat.S_ISDIR(os.lstat(hidden).st_mode):
                    _make_opaque(hidden)

    def _xattrs(self, target: str | int, member: tarfile.TarInfo) -> None:
        for key, text in member.pax_headers.items():
            if not key.startswith(_XATTR):
                continue
            name = key.removeprefix(_XATTR)
            if name.startswith("trusted.overlay."):
                continue  # these would steer the overlay mount, not the file
            value = text.encode("utf-8", "surrogateescape")
            try:
                if isinstance(target, int):
                    os.setxattr(target, name, value)
                else:
                    os.setxattr(target, name, value, follow_symlinks=False)
            except OSError as error:
                # Labels of a security module or a file system that is not here mean nothing
                # here; a lost capability would make a program fail later and elsewhere.
                if name == "security.capability" or error.errno not in (
                    errno.ENOTSUP,
                    errno.EPERM,
                    errno.EINVAL,
                ):
                    raise


def disk_is_full(error: OSError) -> bool:
    """Whether it is for want of space, or of what the owner may use of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _make_opaque(folder: str) -> None:
    os.setxattr(folder, "trusted.overlay.opaque", b"y")


def _hide_whiteouts(folder: str) -> None:
    """Keep whiteouts out of the folder's listings, also where no layer below has it.

    The kernel looks for whiteouts only in folders that it merged, in this mount or, as the presence
    of this attribute tells it, in an earlier one.
    """
    os.setxattr(folder, "trusted.overlay.origin", b"")


def is_opaque(folder: os.PathLike[str]) -> bool:
    """Whether nothing from below shows through a folder of a layer."""
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


class _FolderTimes:
    """Folders' times of change, for the end: in a file without a name, since there may be more of
    them than memory should hold."""

    def __init__(self) -> None:
        name = "/.times"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(name, flags, 0o600), "w+b", buffering=CHUNK)
        os.unlink(name)

    def add(self, path: str, time: int) -> None:
        """The last time of a path counts."""
        self._file.write(b"%d %s\0" % (time, os.fsencode(path)))

    def set(self) -> None:
        """Set the times of those that are still folders."""
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
    """Refuse a file that the disk has no room for before it is written."""
    disk = os.statvfs("/")
    if size > disk.f_bavail * disk.f_frsize:
        raise BadLayer(NO_SPACE)


def _nanoseconds(member: tarfile.TarInfo) -> int:
    """The time of change. The PAX text is exact, tarfile's float of it is not."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime) * 1_000_000_000
    whole, _, fraction = text.partition(".")
    part = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return int(whole or "0") * 1_000_000_000 + (-part if whole.startswith("-") else part)


def _feed(blob: Blob, pipe: int, diff_id: str, limit: int, parent: int) -> None:
    """Decompress into the pipe, and check at the end that it was the layer that was meant."""
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
    """The whole program; its exit status."""
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
        # One flush for all files of the layer, before its name promises that it is whole.
        status = attempt(lambda: _flush(target))
    return status
