# SPDX-License-Identifier: Apache-2.0
"""A container's files as a tar: whose they are, as the container sees it."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from pathlib import Path

import pytest

from orchestrator.agent.images.layers.rootreader import changes, write_layer, write_root

pytestmark = pytest.mark.root

FIRST = 231_072
IDS = range(FIRST, FIRST + 65_536)


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """What a container with users of its own has written."""
    root = tmp_path / "upper"
    root.mkdir()
    for name, uid, gid in (("root", 0, 0), ("seven", 7, 8), ("last", 65_535, 65_535)):
        (root / name).write_text(name)
        os.chown(root / name, FIRST + uid, FIRST + gid)
    (root / "hosts").write_text("of the agent")
    (root / "link").symlink_to("seven")
    os.chown(root / "link", FIRST + 7, FIRST + 8, follow_symlinks=False)
    os.mknod(root / "gone", 0o600 | 0o020000, 0)
    # cap_net_bind_service=ep, of the root of this user namespace.
    words = (0x03000001, 1 << 10, 0, 0, 0, FIRST)
    os.setxattr(root / "root", "security.capability", struct.pack("<6I", *words))
    return root


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        return {member.name: member for member in tar.getmembers()}


def test_owners_in_a_layer_are_the_containers_ids(upper: Path) -> None:
    written = io.BytesIO()
    write_layer(upper, written, ids=IDS)
    found = members(written.getvalue())
    owners = {name: (m.uid, m.gid, m.uname, m.gname) for name, m in found.items()}
    assert owners == {
        "root": (0, 0, "", ""),
        "seven": (7, 8, "", ""),
        "last": (65_535, 65_535, "", ""),
        "link": (7, 8, "", ""),
        "hosts": (0, 0, "", ""),
        ".wh.gone": (0, 0, "", ""),
    }
    value = found["root"].pax_headers["SCHILY.xattr.security.capability"]
    words = struct.unpack("<5I", value.encode("utf-8", "surrogateescape"))
    assert words == (0x02000001, 1 << 10, 0, 0, 0)


def test_access_lists_have_the_containers_ids(upper: Path) -> None:
    entries = ((0x01, 6, 0xFFFFFFFF), (0x02, 4, FIRST + 7), (0x04, 4, 0xFFFFFFFF),
               (0x10, 4, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))  # fmt: skip
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(upper / "seven", "system.posix_acl_access", packed)
    written = io.BytesIO()
    write_root(upper, written, ids=IDS)
    text = members(written.getvalue())["seven"].pax_headers["SCHILY.xattr.system.posix_acl_access"]
    value = text.encode("utf-8", "surrogateescape")
    assert struct.unpack_from("<HHI", value, 12) == (0x02, 4, 7)
    assert len(value) == len(packed)


def test_ids_are_unchanged_with_the_hosts_users(upper: Path) -> None:
    written = io.BytesIO()
    write_layer(upper, written)
    assert members(written.getvalue())["seven"].uid == FIRST + 7


def test_a_hidden_path_is_an_addition_when_created_again(tmp_path: Path) -> None:
    low, high, upper = (tmp_path / name for name in ("low", "high", "upper"))
    for folder in ("opaque/sub", "plain/sub", "file"):
        (low / folder).mkdir(parents=True)
        (low / folder / "x").write_text("below")
        (upper / folder).mkdir(parents=True)
        (upper / folder / "x").write_text("above")
    (high / "opaque/sub").mkdir(parents=True)
    os.setxattr(high / "opaque", "trusted.overlay.opaque", b"y")
    (high / "file").write_text("in place of a folder")
    kinds = {path: kind for kind, path in changes(upper, [low, high])}
    assert kinds["/plain/sub/x"] == "C"
    assert kinds["/opaque/sub/x"] == "A"
    assert kinds["/file/x"] == "A"


def test_a_layer_keeps_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_text("x")
    written = io.BytesIO()
    write_layer(tmp_path, written)
    assert list(members(written.getvalue())) == [name]
