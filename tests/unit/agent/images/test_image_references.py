# SPDX-License-Identifier: Apache-2.0
"""Image references, by Docker's rules."""

import pytest

from orchestrator.agent.images.image_errors import ImageError
from orchestrator.agent.images.image_names import full_name, hex_of


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("hello", "hello:latest"),
        ("hello:1", "hello:1"),
        ("docker.io/library/hello:1", "hello:1"),
        ("index.docker.io/library/hello", "hello:latest"),
        ("docker.io/team/app", "team/app:latest"),
        ("library/hello", "library/hello:latest"),
        ("localhost/x:1", "localhost/x:1"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("quay.io/a/b-c__d:V1.2_3-x", "quay.io/a/b-c__d:V1.2_3-x"),
        ("[::1]:5000/x:1", "[::1]:5000/x:1"),
        ("hello:1@sha256:" + "a" * 64, "hello:1"),
    ],
)
def test_names_are_normalized(given: str, kept: str) -> None:
    assert full_name(given) == kept


@pytest.mark.parametrize(
    "bad",
    ["", "Hello", "a b", "hello:", "hello:-1", "a//b", "/a", "a/", "-a", "a..b", "a___b", "a:b:c",
     "hello:" + "x" * 129, "hello@sha256:12", "ho st.x/a", "../x", "a\n"],
)  # fmt: skip
def test_invalid_names_are_named_in_the_error(bad: str) -> None:
    with pytest.raises(ImageError, match=r"is not (an image name|a digest)"):
        full_name(bad)


@pytest.mark.parametrize("bad", ["sha256:", "sha256:../../etc", "sha512:" + "a" * 128, "A" * 64])
def test_only_a_complete_digest_becomes_a_file_name(bad: str) -> None:
    with pytest.raises(ImageError, match="is not a digest"):
        hex_of(bad)
