# SPDX-License-Identifier: Apache-2.0
"""The user and groups of a container's process, resolved in the image's passwd(5) and group(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.linux.openat import read_in_root

_HIGHEST_ID = (1 << 32) - 2


@dataclass(frozen=True, slots=True)
class User:
    """A process's ids and home folder."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


@dataclass(frozen=True, slots=True)
class UserTables:
    """The texts of an image's passwd(5) and group(5)."""

    passwd: str = ""
    group: str = ""


def read_user_tables(root: Path) -> UserTables:
    """Read the user tables of a mounted root."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        group = read_in_root(root_fd, "etc/group") or b""
        passwd = read_in_root(root_fd, "etc/passwd") or b""
    finally:
        os.close(root_fd)
    return UserTables(passwd.decode(errors="replace"), group.decode(errors="replace"))


def resolve_user(wanted: str, passwd: str, group: str) -> User:
    """Resolve `user` or `user:group`, each a name or an id, in the texts of passwd(5) and group(5).

    As in Docker: empty means root; an id that is not in the table has group 0 and home `/`;
    supplementary groups are added unless a group is given. Raises RuntimeFailure for a name that is
    not in the image.
    """
    name, colon, group_name = wanted.partition(":")
    uid, gid, home, login = 0, 0, "/", ""
    name = name or "0"
    number = _number(name)
    for entry in _entries(passwd, 7):
        entry_uid, entry_gid = _number(entry[2]), _number(entry[3])
        if entry_uid is None or entry_gid is None:
            continue
        if entry[0] == name or entry_uid == number:
            login, uid, gid, home = entry[0], entry_uid, entry_gid, entry[5] or "/"
            break
    else:
        if number is None:
            raise RuntimeFailure(f"the image has no user `{name}`; give an id, or add the user")
        uid = number
    if colon and group_name:
        return User(uid, _resolve_group(group_name, group), (), home)
    groups = {
        gid_number
        for entry in _entries(group, 4)
        if login and login in entry[3].split(",") and (gid_number := _number(entry[2])) is not None
    }
    return User(uid, gid, tuple(sorted(groups)), home)


def resolve_groups(wanted: tuple[str, ...], group: str) -> tuple[int, ...]:
    """The ids of groups, each a name of the group(5) text or an id. Raises RuntimeFailure."""
    return tuple(_resolve_group(name, group) for name in wanted)


def _resolve_group(wanted: str, group: str) -> int:
    number = _number(wanted)
    for entry in _entries(group, 4):
        found = _number(entry[2])
        if entry[0] == wanted and found is not None:
            return found
    if number is None:
        raise RuntimeFailure(
            f"the image has no group `{wanted}`; give a group id, or add the group"
        )
    return number


def _entries(table: str, fields: int) -> Iterator[list[str]]:
    for line in table.splitlines():
        entry = line.strip().split(":")
        if len(entry) >= fields and not line.startswith("#"):
            yield entry


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal()):
        return None
    return value if (value := int(text)) <= _HIGHEST_ID else None
