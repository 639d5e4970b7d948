# SPDX-License-Identifier: Apache-2.0
"""Which build contexts are URLs, and of what."""

from __future__ import annotations

import pytest

from orchestrator.model.formats.build_contexts import DownloadedContext, GitContext, remote_context


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h.test/a/b.git", GitContext("https://h.test/a/b.git")),
        ("https://h.test/b.git#v1", GitContext("https://h.test/b.git", "v1")),
        ("https://h.test/b.git#v1:web/", GitContext("https://h.test/b.git", "v1", "web")),
        ("https://h.test/b.git#:web", GitContext("https://h.test/b.git", "", "web")),
        ("https://h.test/b#main", GitContext("https://h.test/b", "main")),
        ("git://h.test/b#main", GitContext("git://h.test/b", "main")),
        ("ssh://git@h.test/b.git", GitContext("ssh://git@h.test/b.git")),
        ("git+https://h.test/b", GitContext("https://h.test/b")),
        ("git@h.test:me/b.git#main:x", GitContext("git@h.test:me/b.git", "main", "x")),
        ("github.com/me/b", GitContext("https://github.com/me/b")),
        ("https://h.test/b.tar.gz", DownloadedContext("https://h.test/b.tar.gz")),
        (".", None),
        ("web", None),
        ("/srv/web#1", None),
        ("../a@b", None),
        ("C:/web", None),
    ],
)
def test_a_context_is_a_url_or_a_folder(text: str, expected: object) -> None:
    assert remote_context(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ftp://h.test/b.tar", "contexts of ftp:// are unknown"),
        ("file:///etc", "contexts of file:// are unknown"),
        ("https://h.test/b.git#--upload-pack=x", "no branch, tag or commit"),
        ("https://h.test/b.git#main:../x", "leaves the repository"),
    ],
)
def test_another_url_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remote_context(text)
