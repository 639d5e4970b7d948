# SPDX-License-Identifier: Apache-2.0
"""Filters of `orc images`: by age, by label, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from orchestrator.model.convert import to_proto
from orchestrator.model.objects import Image
from orchestrator.pb import control_pb2

IMAGES = (
    Image(id="sha256:aa", nodes=("n1",), names=("old:1",), created_at=100.0, labels={"tier": "db"}),
    Image(id="sha256:bb", nodes=("n1",), names=("mid:1", "reg.example/mid:2"), created_at=200.0),
    Image(
        id="sha256:cc", nodes=("n1",), names=("new:1",), created_at=300.0, labels={"tier": "web"}
    ),
    Image(id="sha256:dd", nodes=("n1",), created_at=400.0),
)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), ["<none>:<none>", "new:1", "mid:1", "reg.example/mid:2", "old:1"]),
        (("--filter", "before=new:1"), ["mid:1", "reg.example/mid:2", "old:1"]),
        (("--filter", "since=mid:1"), ["<none>:<none>", "new:1"]),
        (("--filter", "since=old", "--filter", "before=new"), ["mid:1", "reg.example/mid:2"]),
        (("--filter", "until=1970-01-01T00:02:00Z"), ["old:1"]),
        (("--filter", "label=tier"), ["new:1", "old:1"]),
        (("--filter", "label=tier=db"), ["old:1"]),
        (("--filter", "dangling=true"), ["<none>:<none>"]),
        (("mid",), ["mid:1"]),
        (("*/mid",), ["reg.example/mid:2"]),
        (("new:1",), ["new:1"]),
    ],
)
def test_image_filters(
    manager: Any, run: Callable[..., Result], words: tuple[str, ...], names: list[str]
) -> None:
    manager.script.answers["ListImages"] = control_pb2.ListImagesReply(
        images=[to_proto(image) for image in IMAGES]
    )
    done = run("images", *words, "--format", "{{.Repository}}:{{.Tag}}")
    assert done.stdout.splitlines() == names, done.stderr


def test_filter_by_an_unknown_image(manager: Any, refused: Callable[..., str]) -> None:
    manager.script.answers["ListImages"] = control_pb2.ListImagesReply()
    assert "no image 'nothing'" in refused("images", "--filter", "before=nothing")
    assert "not understood" in refused("images", "--filter", "until=soon")
