# SPDX-License-Identifier: Apache-2.0
"""Image names, by Docker's rules (the grammar of github.com/distribution/reference)."""

from __future__ import annotations

import re

from orchestrator.agent.images.image_errors import ImageError

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_SERVER = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_PATH = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is a full SHA-256 digest, the only supported kind."""
    return _DIGEST.fullmatch(text) is not None


def hex_of(digest: str) -> str:
    """The digest's 64 hex digits, which are safe as a file name. Raises `ImageError` for anything
    else."""
    if not is_digest(digest):
        raise ImageError(f"{digest[:100]!r} is not a digest: sha256: and 64 hex digits are needed")
    return digest.removeprefix("sha256:")


def full_name(text: str) -> str:
    """The normalized name: with its tag (`latest` if it has none), and without the server and
    folder that Docker omits (`docker.io/library/hello` is `hello:latest`).

    Raises `ImageError` for an invalid name.
    """
    name, _, digest = text.partition("@")
    if digest:
        hex_of(digest)
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    repository = head + slash + last
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, f"the tag {tag!r} is not letters, digits, '_', '.' and '-', at most 128")
    server, _, path = repository.partition("/")
    if path and (set(server) & set(".:[") or server == "localhost" or server != server.lower()):
        if not _SERVER.fullmatch(server):
            raise _bad(text, f"{server!r} is not a server's name")
        if server in ("docker.io", "index.docker.io"):
            path = path.removeprefix("library/")
            server = ""
    else:
        server, path = "", repository
    if not _PATH.fullmatch(path):
        raise _bad(text, "use lower-case letters and digits, single '.', '_' or '-' between them")
    return f"{server}/{path}:{tag or 'latest'}" if server else f"{path}:{tag or 'latest'}"


def _bad(text: str, why: str) -> ImageError:
    return ImageError(f"{text[:200]!r} is not an image name: {why}")
