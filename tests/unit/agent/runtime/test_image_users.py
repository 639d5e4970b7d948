# SPDX-License-Identifier: Apache-2.0
"""Who a container's process is."""

from __future__ import annotations

import pytest

from orchestrator.agent.runtime.interface import RuntimeFailure
from orchestrator.agent.runtime.spec.image_users import User, resolve_user

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
# a comment
broken
web:x:1000:1001:Web:/srv:/bin/sh
homeless:x:7:7:::
huge:x:99999999999:0::/:
"""
GROUP = """\
root:x:0:
logs:x:44:web,root
media:x:45:other,web
web:x:1001:
"""


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", User(0, 0, (44,), "/root")),
        ("root", User(0, 0, (44,), "/root")),
        ("web", User(1000, 1001, (44, 45), "/srv")),
        ("1000", User(1000, 1001, (44, 45), "/srv")),
        ("web:media", User(1000, 45, (), "/srv")),
        ("web:77", User(1000, 77, (), "/srv")),
        ("2000", User(2000, 0, (), "/")),
        ("2000:3000", User(2000, 3000, (), "/")),
        (":44", User(0, 44, (), "/root")),
        ("web:", User(1000, 1001, (44, 45), "/srv")),
        ("homeless", User(7, 7, (), "/")),
    ],
)
def test_resolving_names_and_ids(wanted: str, expected: User) -> None:
    assert resolve_user(wanted, PASSWD, GROUP) == expected


@pytest.mark.parametrize("wanted", ["", "0", "0:0"])
def test_resolving_without_user_tables(wanted: str) -> None:
    assert resolve_user(wanted, "", "") == User()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("nobody", "no user `nobody`"),
        ("web:nogroup", "no group `nogroup`"),
        ("99999999999", "no user `99999999999`"),
        ("-1", "no user `-1`"),
        ("huge", "no user `huge`"),
        ("²", "no user"),
    ],
)
def test_unknown_users_and_groups(wanted: str, words: str) -> None:
    with pytest.raises(RuntimeFailure, match=words):
        resolve_user(wanted, PASSWD, GROUP)
