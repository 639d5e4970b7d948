# SPDX-License-Identifier: Apache-2.0
"""Names: images by Docker's rules, services as DNS labels, ids, and suggestions for typos.

Image syntax follows the reference grammar of the distribution project
(https://pkg.go.dev/github.com/distribution/reference); the stored form is Docker's familiar
one, so `docker.io/library/hello` and `hello` are the same image, `hello:latest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Compiled at first use: every command imports this module.
_DOMAIN = (
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"(?a)\w[\w.-]{0,127}"
_DIGEST = r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[0-9a-fA-F]{32,}"
_SHA256 = r"sha256:[0-9a-f]{64}"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?"
_HOSTNAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?"
_CONTAINER = r"[a-zA-Z0-9][a-zA-Z0-9_.-]+"
_HUB = ("docker.io", "index.docker.io")


@dataclass(frozen=True, slots=True)
class ImageName:
    """A parsed image name. `tag` is `latest` where neither tag nor digest was given."""

    registry: str = ""
    """`HOST[:PORT]`; empty: none was named."""
    repository: str = ""
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}" if self.registry else self.repository

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def parse_image(text: str) -> ImageName:
    """Split an image name. Raises ValueError with one line that says what is wrong with it."""
    rest, at, digest = text.partition("@")
    if at:
        _check_digest(text, digest)
    registry, repository = _split_registry(rest)
    repository, colon, tag = repository.partition(":")
    if colon:
        _check_tag(text, tag)
    _check_repository(text, registry, repository)
    if registry in _HUB:
        registry, repository = "", repository.removeprefix("library/")
    return ImageName(registry, repository, tag or ("" if digest else "latest"), digest)


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower()):
        return first, rest
    return "", text


def _check_digest(text: str, digest: str) -> None:
    if not re.fullmatch(_DIGEST, digest) or (
        digest.startswith("sha256:") and not re.fullmatch(_SHA256, digest)
    ):
        raise ValueError(
            f"image name {text!r} has a bad digest {digest!r}; "
            "a digest is sha256: and 64 hexadecimal digits"
        )


def _check_tag(text: str, tag: str) -> None:
    if not re.fullmatch(_TAG, tag):
        what = "an empty tag" if not tag else f"a bad tag {tag[:40]!r}"
        raise ValueError(
            f"image name {text!r} has {what}; a tag is letters, digits, '_', '.' and '-', "
            "at most 128 of them"
        )


def _check_repository(text: str, registry: str, repository: str) -> None:
    if not repository:
        raise ValueError(f"image name {text!r} has no repository; write such as hello:1")
    if registry and not re.fullmatch(_DOMAIN, registry):
        if "." in registry or ":" in registry:
            raise ValueError(f"image name {text!r} has a bad registry {registry!r}")
        raise ValueError(_upper_case(text))
    for part in repository.split("/"):
        if re.fullmatch(_COMPONENT, part):
            continue
        if not part:
            raise ValueError(f"image name {text!r} has an empty part between slashes")
        if re.fullmatch(_COMPONENT, part.lower()):
            raise ValueError(_upper_case(text))
        raise ValueError(
            f"image name {text!r} has a bad part {part!r}; a name is lower-case letters and "
            "digits, with single '.', '_' or '-' between them"
        )
    if len(registry) + len(repository) > 255:
        raise ValueError(f"image name {text[:40]!r}… is longer than 255 characters")
    if not registry and re.fullmatch(r"[0-9a-f]{64}", repository):
        raise ValueError(f"image name {text!r} looks like an id; write sha256: before a digest")


def _upper_case(text: str) -> str:
    return f"image name {text!r} has upper-case letters; write {text.lower()!r}"


def check_name(text: str, what: str = "name") -> None:
    """Raise ValueError for a name that is no DNS label (RFC 1123, with `_` as stacks use it).

    Raises ValueError with the user's words.
    """
    if not text:
        raise ValueError(f"the {what} is empty")
    if len(text) > 63:
        raise ValueError(f"{what} {text[:20]!r}… has {len(text)} characters; 63 are the most")
    if not re.fullmatch(_LABEL, text):
        raise ValueError(
            f"{what} {text!r} is not a DNS label; use letters, digits, '-' and '_', with a letter "
            "or digit at both ends"
        )


def check_container_name(text: str) -> None:
    """Raise ValueError for a name that Docker does not accept for a container."""
    if not re.fullmatch(_CONTAINER, text) or len(text) > 255:
        raise ValueError(
            f"container name {text[:40]!r} is not valid; use letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit, at least two"
        )


def check_hostname(text: str) -> None:
    """Raise ValueError for a hostname that the kernel or a resolver would reject (RFC 1123, with
    `_` as services use it)."""
    if len(text) > 63 or not re.fullmatch(_HOSTNAME, text):
        raise ValueError(
            f"hostname {text!r} is not valid; use letters, digits, '-', '_' and '.', at most 63"
        )


def short_id(text: str) -> str:
    """The form of an id in tables: its first 12 characters, or the first 12 digits of a digest."""
    return text.removeprefix("sha256:")[:12]


def near_miss(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` was most likely meant to be, if one is close enough."""
    import difflib  # imported only for suggestions

    known = list(candidates)
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    if close := difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6):
        return lowered[close[0]]
    return None


def near_image(name: str, names: Iterable[str]) -> str | None:
    """The image name that `name` was most likely meant to be: another tag of the same repository,
    or else a similar repository. Equal tags, such as `latest`, do not count as similarity."""
    known: dict[str, dict[str, str]] = {}
    for each in sorted(names):
        repository, tag = _split_tag(each)
        known.setdefault(repository, {})[tag] = each
    repository, tag = _split_tag(name)
    meant = repository if repository in known else near_miss(repository, known)
    if meant is None:
        return None
    tags = known[meant]
    return tags[near_miss(tag, tags) or next(iter(tags))]


def _split_tag(name: str) -> tuple[str, str]:
    path, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{path}{slash}{last}", tag
