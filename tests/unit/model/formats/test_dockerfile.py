# SPDX-License-Identifier: Apache-2.0
"""What a Dockerfile needs, and where its instructions stand."""

from __future__ import annotations

import pytest

from orchestrator.model.formats.dockerfile import bases, line_of, parse

ARCH = {"TARGETARCH": "amd64"}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("FROM scratch\n", []),
        ("FROM a:1\nRUN x\n", ["a:1"]),
        ("from --platform=$BUILDPLATFORM a AS b\nFROM B\n", ["a"]),
        ("ARG V=1\nFROM a:$V\n", ["a:1"]),
        ("ARG V\nFROM a:${V:-2}\n", ["a:2"]),
        ("ARG V=1\nFROM a:1${V:+-slim}\n", ["a:1-slim"]),
        ("ARG V=1\nARG W=$V.2\nFROM a:${W}\n", ["a:1.2"]),
        ('ARG V="1"\nFROM "a:${V}"\n', ["a:1"]),
        ("ARG OURS=1\nFROM a:$OURS\n", ["a:mine"]),
        ("FROM a-$TARGETARCH\n", ["a-amd64"]),
        ("FROM a\nARG V=1\nFROM b:$V\n", ["b:"]),
        ("FROM a AS x\nFROM b\nCOPY --from=x / /\n", ["a", "b"]),
        ("FROM a\nFROM b\nCOPY --chown=1 --from=0 / /\n", ["a", "b"]),
        ("FROM a AS x\nFROM b\nCOPY --from=c:1 / /\nADD --from=c:1 / /\n", ["b", "c:1"]),
        ("FROM b\nRUN --mount=type=bind,from=c,target=/c ls\n", ["b", "c"]),
        ("FROM b\nRUN echo --mount=from=c\n", ["b"]),
        ("FROM a AS unused\nFROM b\n", ["b"]),
        ("FROM a AS x\nFROM x AS y\nFROM y\n", ["a"]),
        ("FROM \\\n  # a remark\n\n  a:1 \\\n  AS x\n", ["a:1"]),
        ("# escape=`\nFROM `\n a\nRUN dir C:\\\nFROM b\n", ["b"]),
        ("FROM a\nRUN <<EOF\nFROM b\nEOF\nCOPY --from=c x y\n", ["a", "c"]),
        ("FROM a\nRUN <<-'E' sh\nFROM b\n\tE\nCOPY --from=c x y\n", ["a", "c"]),
    ],
)
def test_base_images_are_found(text: str, names: list[str]) -> None:
    found = bases(text, {"OURS": "mine"}, ARCH)
    assert sorted(base.name for base in found) == names


def test_bases_of_a_stage_that_is_asked_for() -> None:
    text = "FROM a AS one\nFROM b AS two\nFROM c\n"
    assert [base.name for base in bases(text, {}, ARCH, "ONE")] == ["a"]
    assert [base.name for base in bases(text, {}, ARCH, "1")] == ["b"]


def test_a_base_is_known_as_it_was_written() -> None:
    (base,) = bases("ARG N=a\nFROM ${N}:1\n", {}, ARCH)
    assert (base.written, base.name, base.line) == ("${N}:1", "a:1", 2)


def test_lines() -> None:
    text = '# RUN x\nFROM a\nRUN x \\\n  # not this\n  y\nRUN ["a", "b c"]\nRUN <<E\nx\nE\n'
    assert [(each.line, each.keyword) for each in parse(text)] == [
        (2, "FROM"), (3, "RUN"), (6, "RUN"), (7, "RUN"),
    ]  # fmt: skip
    assert line_of("RUN x y", text) == 3
    assert line_of("RUN a b c", text) == 6
    assert line_of("RUN <<E (x)", text) == 7
    assert line_of("RUN z", text) == 0
