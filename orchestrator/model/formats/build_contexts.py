# SPDX-License-Identifier: Apache-2.0
"""Build contexts that are not folders: repositories and archives, by their URLs. Pure.

Source: https://docs.docker.com/build/concepts/context/#remote-context.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_WEB = ("http", "https")
_GIT = ("git", "ssh", "git+ssh", "git+https", "git+http")
_SCP = re.compile(r"[\w.-]+@[\w.-]+:(?!//)\S+")
_HUB = "github.com/"


@dataclass(frozen=True, slots=True)
class GitContext:
    """A folder of a Git repository."""

    url: str
    ref: str = ""
    """A branch, a tag or a commit; empty: the default branch."""
    folder: str = ""
    """Relative to the repository's root, without `..`; empty: all of it."""


@dataclass(frozen=True, slots=True)
class DownloadedContext:
    """A tar archive or a Dockerfile to be downloaded."""

    url: str


def remote_context(text: str) -> GitContext | DownloadedContext | None:
    """The remote build context that a text names; None for a local folder. Raises ValueError for a
    URL that cannot be a context."""
    base, _, fragment = text.partition("#")
    scheme = urlsplit(base).scheme if "://" in base else ""
    if scheme in _WEB and not base.endswith(".git") and not fragment:
        return DownloadedContext(text)
    if base.startswith(_HUB):
        base = f"https://{base}"
    elif scheme.startswith("git+"):
        base = base.removeprefix("git+")
    elif scheme not in (*_WEB, *_GIT) and not (not scheme and _SCP.fullmatch(base)):
        if scheme:
            raise ValueError(
                f"{text}: contexts of {scheme}:// are unknown; http, https, git and ssh are known"
            )
        return None
    ref, _, folder = fragment.partition(":")
    if ref.startswith("-"):
        raise ValueError(f"{text}: {ref!r} is no branch, tag or commit")
    folder = folder.strip("/")
    if ".." in folder.split("/"):
        raise ValueError(f"{text}: the folder {folder!r} leaves the repository")
    return GitContext(base, ref, folder)
