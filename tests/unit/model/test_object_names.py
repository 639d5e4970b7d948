# SPDX-License-Identifier: Apache-2.0
"""Names of images and services, ids, and near misses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.names import (
    ImageName,
    check_hostname,
    check_name,
    near_image,
    near_miss,
    parse_image,
    short_id,
)

SHA = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "name", "canonical"),
    [
        ("hello", ImageName("", "hello", "latest", ""), "hello:latest"),
        ("hello:1", ImageName("", "hello", "1", ""), "hello:1"),
        ("team/hello:1.2-rc_3", ImageName("", "team/hello", "1.2-rc_3", ""), None),
        ("ghcr.io/a/b:v1", ImageName("ghcr.io", "a/b", "v1", ""), None),
        ("localhost/a", ImageName("localhost", "a", "latest", ""), "localhost/a:latest"),
        ("localhost:5000/a", ImageName("localhost:5000", "a", "latest", ""), None),
        ("host:5000/a/b:c", ImageName("host:5000", "a/b", "c", ""), None),
        ("[::1]:5000/a", ImageName("[::1]:5000", "a", "latest", ""), None),
        ("Host/a", ImageName("Host", "a", "latest", ""), None),
        (f"a@{SHA}", ImageName("", "a", "", SHA), f"a@{SHA}"),
        (f"a:1@{SHA}", ImageName("", "a", "1", SHA), f"a:1@{SHA}"),
        ("docker.io/library/hello", ImageName("", "hello", "latest", ""), "hello:latest"),
        ("docker.io/me/hello", ImageName("", "me/hello", "latest", ""), "me/hello:latest"),
        ("a__b/c--d/e.f_g", ImageName("", "a__b/c--d/e.f_g", "latest", ""), None),
    ],
)
def test_image(text: str, name: ImageName, canonical: str | None) -> None:
    assert parse_image(text) == name
    assert parse_image(str(name)) == name
    if canonical:
        assert str(name) == canonical


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no repository"),
        (":1", "has no repository"),
        ("Hello", "image name 'Hello' has upper-case letters; write 'hello'"),
        ("a/B:c", "has upper-case letters"),
        ("hello:", "has an empty tag; a tag is letters"),
        ("hello:-x", "has a bad tag '-x'"),
        ("hello:a b", "has a bad tag 'a b'"),
        ("hello:" + "a" * 129, "at most 128"),
        ("a//b", "has an empty part between slashes"),
        ("a/", "has an empty part between slashes"),
        ("-a", "has a bad part '-a'"),
        ("a_-b", "has a bad part"),
        ("hello world", "has a bad part 'hello world'"),
        ("a@sha256:12", "has a bad digest 'sha256:12'; a digest is sha256: and 64"),
        ("a@", "has a bad digest"),
        ("-.x/a", "has a bad registry '-.x'"),
        ("a" * 256, "is longer than 255"),
        ("ab" * 32, "looks like an id"),
    ],
)
def test_image_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="image name") as error:
        parse_image(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=30))
def test_image_never_fails_otherwise(text: str) -> None:
    try:
        name = parse_image(text)
    except ValueError:
        return
    assert parse_image(str(name)) == name


@pytest.mark.parametrize("text", ["web", "a", "0", "web-1", "stack_web", "x" * 63])
def test_name(text: str) -> None:
    check_name(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the service name is empty"),
        ("Web_", "is not a DNS label"),
        ("-a", "is not a DNS label"),
        ("a.b", "is not a DNS label"),
        ("a\n", "is not a DNS label"),
        ("x" * 64, "has 64 characters; 63 are the most"),
    ],
)
def test_name_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_name(text, "service name")


def test_hostname() -> None:
    check_hostname("Web-1.my_example")
    for text in ("", "a b", "-a", "x" * 64):
        with pytest.raises(ValueError, match="hostname"):
            check_hostname(text)


def test_short_id() -> None:
    assert short_id("0123456789abcdefghijklmno") == "0123456789ab"
    assert short_id(SHA) == "abababababab"


@pytest.mark.parametrize(
    ("word", "candidates", "meant"),
    [
        ("weeb", ["web", "db"], "web"),
        ("WEB", ["web", "db"], "web"),
        ("servcie", ["service", "network"], "service"),
        ("zzz", ["web", "db"], None),
        ("x", [], None),
    ],
)
def test_near_miss(word: str, candidates: list[str], meant: str | None) -> None:
    assert near_miss(word, candidates) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("me/app:latest", "me/app:1.0"),
        ("hello:2", "hello:1"),
        ("helo:1", "hello:1"),
        ("localhost:5000/wb:latest", "localhost:5000/web:latest"),
        ("c1:latest", None),
        ("nosuch:latest", None),
    ],
)
def test_an_image_that_was_meant(name: str, meant: str | None) -> None:
    known = ["hello:1", "me/app:1.0", "myapp:latest", "nextcloud:latest", "wordpress:latest"]
    assert near_image(name, [*known, "localhost:5000/web:latest"]) == meant
